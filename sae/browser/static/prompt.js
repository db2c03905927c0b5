// A text of the reader's: its tokens, the latents that fire at each, and the differences between two texts.

import { classes, html, useEffect, useMemo, useRef, useState } from "./view.js";
import { count, number, oneIn, signed } from "./format.js";
import { sendsOn } from "./help.js";
import { go, link } from "./route.js";
import { Brief } from "./latent.js";
import { Token, keepTabStop, moveOverTokens } from "./tokens.js";
import { useSource } from "./app_state.js";

const CUTS = [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001];
const SHOWN = 60;

export function Prompt({ route, run }) {
  const source = useSource();
  const [texts, setTexts] = useState([route.params.a ?? "", route.params.b ?? ""]);
  const [two, setTwo] = useState(Boolean(route.params.b));
  const [answers, setAnswers] = useState([null, null]);
  const [state, setState] = useState({ busy: false, error: null });
  const [selected, setSelected] = useState(null);
  const [latent, setLatent] = useState(null);
  const [cut, setCut] = useState(0);

  async function examine(event) {
    event?.preventDefault();
    const asked = two ? texts : texts.slice(0, 1);
    setState({ busy: true, error: null });
    try {
      const got = [];
      for (const text of asked) got.push(await source.prompt(run, text));
      setAnswers([got[0], got[1] ?? null]);
      setSelected(null);
      setLatent(null);
      setState({ busy: false, error: null });
      go({ params: { a: texts[0], b: two ? texts[1] : "" } }, { replace: true });
    } catch (error) {
      setState({ busy: false, error: error.message });
    }
  }
  useEffect(() => {
    if (route.params.a) examine();
  }, [run]);

  const ready = !state.busy && texts[0].trim() !== "" && (!two || texts[1].trim() !== "");
  const density = CUTS[cut];
  const listed = useMemo(() => rank(answers, selected, density), [answers, selected, density]);
  const max = latent != null ? strongest(answers, latent) : null;
  return html`<main class="prompt page">
    <form class="card" onSubmit=${examine} onKeyDown=${sendsOn(ready, examine)}>
      <div class=${two ? "texts two" : "texts"}>
        ${(two ? [0, 1] : [0]).map(
          (i) =>
            html`<textarea
              key=${i}
              rows="3"
              dir="auto"
              aria-label=${i ? "Second prompt" : "Prompt"}
              placeholder=${i ? "A second text, to compare with the first" : "Type a text and see which latents fire at each token"}
              data-testid=${i ? "prompt-b" : "prompt-a"}
              value=${texts[i]}
              onInput=${(event) => setTexts(texts.with(i, event.currentTarget.value))}
            ></textarea>`,
        )}
      </div>
      <div class="line">
        <button class="primary" type="submit" data-testid="prompt-run" title="Ctrl+Enter, or Cmd+Enter" disabled=${!ready}>
          ${state.busy ? "Reading…" : "Examine"}
        </button>
        <label class="check">
          <input type="checkbox" data-testid="prompt-contrast" checked=${two} onChange=${(event) => setTwo(event.currentTarget.checked)} />
          Compare two prompts
        </label>
        <span class="grow"></span>
        <label class="slider">
          Hide latents that fire on more than
          <input
            type="range"
            min="0"
            max=${CUTS.length - 1}
            value=${cut}
            data-testid="density-cut"
            aria-valuetext=${oneIn(density)}
            onInput=${(event) => setCut(Number(event.currentTarget.value))}
          />
          <b class="num" data-testid="density-cut-value">${cut ? oneIn(density) : "nothing hidden"}</b>
        </label>
      </div>
      ${state.error && html`<p class="error" role="alert" data-testid="error">${state.error}</p>`}
    </form>
    ${answers[0] &&
    html`<div class="prompt-answer">
      <section class="card">
        ${answers.map(
          (answer, which) =>
            answer &&
            html`<${PromptTokens}
              key=${which}
              which=${which}
              answer=${answer}
              latent=${latent}
              max=${max}
              selected=${selected}
              density=${density}
              onChoose=${(at) => setSelected(selected && selected.which === which && selected.at === at ? null : { which, at })}
            />`,
        )}
        <p class="muted">
          ${latent == null
            ? "Colour: the strongest latent at each token. Select a token to see its latents, or a latent to see its tokens."
            : html`Colour: latent #${latent}. <button class="quiet" onClick=${() => setLatent(null)}>All latents</button>`}
        </p>
      </section>
      <section class="card">
        <h3 data-testid="prompt-listing">
          ${selected
            ? html`Latents at token ${selected.at}${answers[1] ? ` of prompt ${"AB"[selected.which]}` : ""}
                <button class="quiet" data-testid="prompt-all-tokens" onClick=${() => setSelected(null)}>All tokens</button>`
            : answers[1]
              ? "Differences: largest activation in A minus largest in B"
              : "Strongest latents of the text"}
        </h3>
        <${PromptLatents} listed=${listed} latent=${latent} onChoose=${setLatent} contrast=${Boolean(answers[1]) && !selected} />
      </section>
    </div>`}
  </main>`;
}

function PromptTokens({ which, answer, latent, max, selected, density, onChoose }) {
  const group = useRef();
  useEffect(() => keepTabStop(group.current));
  const allowed = (entry) => (answer.rows[entry.latent]?.density ?? 0) <= density;
  const overall = Math.max(1e-9, ...answer.latents.flatMap((row, i) => (answer.kinds[i] === "ordinary" ? row.filter(allowed).map((e) => e.value) : [])));
  return html`<div class="prompt-tokens" ref=${group} onKeyDown=${moveOverTokens} data-testid=${which ? "tokens-b" : "tokens-a"}>
    <div class="strip" dir="auto">
      ${answer.tokens.map((text, at) => {
        const row = answer.latents[at].filter((entry) => (latent == null ? allowed(entry) : entry.latent === latent));
        const value = answer.kinds[at] === "ordinary" || latent != null ? (row[0]?.value ?? 0) : 0;
        const piece = { text, value, ids: [answer.token_ids[at]], peak: false };
        return html`<${Token}
          key=${at}
          piece=${piece}
          max=${latent == null ? overall : max}
          focusable=${false}
          role="button"
          aria-pressed=${selected?.which === which && selected.at === at}
          extra=${classes("press", answer.kinds[at] !== "ordinary" && "special", selected?.which === which && selected.at === at && "chosen")}
          onClick=${() => onChoose(at)}
          onKeyDown=${(event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), onChoose(at))}
        />`;
      })}
    </div>
  </div>`;
}

function PromptLatents({ listed, latent, onChoose, contrast }) {
  if (!listed.length) return html`<p class="muted">No latent is below the density limit.</p>`;
  return html`<table class="plain listing-table" data-testid="prompt-latents">
    <thead>
      <tr>
        <th class="num">Latent</th>
        <th>Name or strongest token</th>
        <th class="num">${contrast ? "A − B" : "Activation"}</th>
        <th class="num">% of max</th>
        <th class="num">Density</th>
        <th></th>
      </tr>
    </thead>
    <tbody>
      ${listed.slice(0, SHOWN).map(
        (entry) =>
          html`<tr key=${entry.latent} data-testid="prompt-latent" data-latent=${entry.latent} class=${entry.latent === latent ? "selected" : ""}>
            <td class="num"><a href=${link({ page: "latents", latent: entry.latent })}>#${entry.latent}</a></td>
            <td class="brief-cell" dir="auto"><${Brief} item=${entry.row} /></td>
            <td class=${contrast ? (entry.value < 0 ? "num minus" : "num plus") : "num"}>${contrast ? signed(entry.value) : number(entry.value)}</td>
            <td class="num">${entry.row.max ? `${number(Math.round((100 * Math.abs(entry.value)) / entry.row.max))}%` : "–"}</td>
            <td class="num">${oneIn(entry.row.density)}</td>
            <td>
              <button class="quiet" data-testid="show-tokens" aria-pressed=${entry.latent === latent} onClick=${() => onChoose(entry.latent === latent ? null : entry.latent)}>
                Show tokens
              </button>
            </td>
          </tr>`,
      )}
    </tbody>
    ${listed.length > SHOWN && html`<caption>${count(SHOWN)} of ${count(listed.length)}</caption>`}
  </table>`;
}

// Latents by their largest activation over ordinary tokens, or by the difference between two prompts.
function rank(answers, selected, density) {
  if (!answers[0]) return [];
  const maxima = answers.map((answer) => (answer ? maximaOf(answer) : new Map()));
  let values = maxima[0];
  if (selected) values = new Map(answers[selected.which].latents[selected.at].map((entry) => [entry.latent, entry.value]));
  else if (answers[1]) {
    const all = new Set([...maxima[0].keys(), ...maxima[1].keys()]);
    values = new Map([...all].map((i) => [i, (maxima[0].get(i) ?? 0) - (maxima[1].get(i) ?? 0)]));
  }
  const row = (i) => answers[0].rows[i] ?? answers[1]?.rows[i] ?? {};
  return [...values]
    .map(([latent, value]) => ({ latent, value, row: row(latent) }))
    .filter((entry) => (entry.row.density ?? 0) <= density && entry.value !== 0)
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

function maximaOf(answer) {
  const maxima = new Map();
  answer.latents.forEach((row, at) => {
    if (answer.kinds[at] !== "ordinary") return;
    for (const { latent, value } of row) maxima.set(latent, Math.max(value, maxima.get(latent) ?? 0));
  });
  return maxima;
}

function strongest(answers, latent) {
  const values = answers.flatMap((answer) => answer?.latents.flat().filter((e) => e.latent === latent) ?? []);
  return Math.max(1e-9, ...values.map((entry) => entry.value));
}
