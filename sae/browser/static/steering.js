// What steering with a latent does, as measured by `sae steer --measure`: dose and response, and what it costs.

import { html } from "./view.js";
import { number } from "./format.js";
import { link } from "./route.js";

const W = 420;
const H = 130;
const PAD = { left: 50, right: 22, top: 8, bottom: 22 };
const CONTROL = "random latents";

export function Steering({ record }) {
  const measured = record.steering;
  if (!measured) return null;
  const { proposed, rows } = measured;
  const prompted = rows.find((row) => row.method === "prompt");
  return html`<section class="card steering" data-testid="steering">
    <h3>Steering with it</h3>
    <p>
      ${proposed.dose == null
        ? html`No strength is proposed: ${proposed.why}.`
        : html`Proposed strength <a data-testid="proposed" href=${link({ page: "steer", params: { push: `${record.latent}:add:${proposed.dose}` } })}>${number(proposed.dose)} × its maximum</a>: ${proposed.why}.`}
    </p>
    <${Curves} rows=${rows} measure="response" title="How strongly it fires on the text that is written, over its maximum" proposed=${proposed.dose} />
    <${Curves} rows=${rows} measure="loss_added" title="What the text costs in fluency: nats a token over unsteered text" proposed=${proposed.dose} />
    ${prompted && html`<p class="muted">A first sentence with its name instead: response ${interval(prompted.response)}, ${interval(prompted.loss_added)} nats a token.</p>`}
    <details>
      <summary>How it was measured, and a text at each strength</summary>
      <p class="muted">
        ${measured.prompts} beginnings of held-out documents, each continued by ${measured.tokens} tokens. A strength of 1 adds the
        latent's atom times its largest activation; the other lines add vectors of the same length. The model itself then reads the
        texts without steering. Bands are 95% intervals over the beginnings. The latent judges its own effect here: where its name
        is wrong, so is the response.
      </p>
      ${rows
        .filter((row) => row.method === "latent")
        .map((row) => html`<p key=${row.dose} dir="auto"><span class="num">${number(row.dose)} ×</span> <span class="written">${row.text}</span></p>`)}
    </details>
  </section>`;
}

const interval = (v) => (v == null ? "unknown" : `${number(v.value)}${v.low == null ? "" : ` [${number(v.low)}, ${number(v.high)}]`}`);

function Curves({ rows, measure, title, proposed }) {
  const methods = [...new Set(rows.filter((row) => row.dose).map((row) => row.method))];
  const lines = methods.map((method) => ({ method, points: rows.filter((row) => row.method === method && row[measure]) }));
  const all = lines.flatMap((line) => line.points);
  if (!all.length) return null;
  const doses = all.map((row) => Math.log2(row.dose));
  const [first, last] = [Math.min(...doses), Math.max(...doses)];
  const values = all.flatMap((row) => [row[measure].value, row[measure].low ?? row[measure].value, row[measure].high ?? row[measure].value]);
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1e-9)];
  const x = (dose) => PAD.left + ((Math.log2(dose) - first) / (last - first || 1)) * (W - PAD.left - PAD.right);
  const y = (value) => PAD.top + (1 - (value - low) / (high - low)) * (H - PAD.top - PAD.bottom);
  const path = (points, of) => points.map((row, i) => `${i ? "L" : "M"}${x(row.dose).toFixed(1)} ${y(of(row[measure])).toFixed(1)}`).join("");
  const band = (points) => {
    const edge = (v, end) => v[end] ?? v.value;
    const back = [...points].reverse();
    return `${path(points, (v) => edge(v, "high"))}${path(back, (v) => edge(v, "low")).replace("M", "L")}Z`;
  };
  return html`<figure>
    <figcaption class="muted">${title}</figcaption>
    <svg viewBox=${`0 0 ${W} ${H}`} role="img" aria-label=${title} data-testid=${`curve-${measure}`}>
      ${[low, high].map((v) => html`<g class="tick" key=${v}><line x1=${PAD.left} x2=${W - PAD.right} y1=${y(v)} y2=${y(v)} /><text x=${PAD.left - 6} y=${y(v)} dy="0.32em" text-anchor="end">${number(v)}</text></g>`)}
      ${proposed != null && html`<line class="proposed" x1=${x(proposed)} x2=${x(proposed)} y1=${PAD.top} y2=${H - PAD.bottom} />`}
      ${lines.map(
        ({ method, points }) => html`<g key=${method} class=${`method m${methods.indexOf(method)}${method === CONTROL ? " control" : ""}`}>
          ${(method === "latent" || method === CONTROL) && html`<path class="band" d=${band(points)} />`}
          <path class="line" d=${path(points, (v) => v.value)} />
          ${points.map((row) => html`<circle key=${row.dose} cx=${x(row.dose)} cy=${y(row[measure].value)} r="2.5"><title>${method}, ${number(row.dose)} × maximum: ${interval(row[measure])}</title></circle>`)}
        </g>`,
      )}
      ${[...new Set(all.map((row) => row.dose))].map((dose) => html`<text class="dose" key=${dose} x=${x(dose)} y=${H - 6} text-anchor="middle">${dose}</text>`)}
    </svg>
    <p class="legend">${methods.map((method, i) => html`<span key=${method} class=${`m${i}`}>${method}</span>`)}</p>
  </figure>`;
}
