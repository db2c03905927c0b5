// One latent: its name, how often, how strongly and on what it fires, and what its atom does.

import { html, useEffect, useRef, useState } from "./view.js";
import { count, number, oneIn, percent, quoted, signed, visible } from "./format.js";
import { go, link, pinsOf, togglePin } from "./route.js";
import { Examples } from "./examples.js";
import { Histogram } from "./histogram.js";
import { useApp, useLoaded, useSource } from "./app_state.js";
import { noSteering, wordsOf } from "./kinds.js";
import { Atom, Thumb } from "./pictures.js";
import { Scores } from "./scores.js";
import { Stability } from "./stability.js";
import { Steering } from "./steering.js";

export function Latent({ run, latent, info, route, keys }) {
  const source = useSource();
  const { features } = info;
  const loaded = useLoaded(() => source.record(run, latent), [run, latent, features.revision, features.marks]);
  const [range, setRange] = useState(null);
  useEffect(() => setRange(null), [run, latent]);
  if (loaded.error) return html`<p class="error" role="alert" data-testid="error">${loaded.error}</p>`;
  const record = loaded.value;
  if (!record) return html`<p class="muted pad">Loading…</p>`;
  return html`<article class=${loaded.loading ? "latent stale" : "latent"} data-testid="latent" data-latent=${record.latent}>
    <${Heading} key=${record.latent} run=${run} record=${record} route=${route} keys=${keys} />
    <div class="overview">
      ${features.kind === "image" && html`<${Atom} run=${run} latent=${record.latent} />`}
      <${Facts} record=${record} features=${features} />
    </div>
    <div class="columns">
      <div class="reading">
        <${Histogram} record=${record} features=${features} range=${range} onRange=${setRange} />
        <${Examples} record=${record} run=${run} range=${range} />
        <${Scores} record=${record} />
        <${Steering} record=${record} />
      </div>
      <aside class="relations">
        ${features.kind === "language" && html`<${Logits} run=${run} latent=${record.latent} revision=${features.revision} />`}
        <${Related} run=${run} latent=${record.latent} what="neighbours" measure="cosine" title="Nearest atoms" revision=${features.revision} />
        <${Related} run=${run} latent=${record.latent} what="coactive" measure="jaccard" title="Fires together with" revision=${features.revision} />
        <${Stability} record=${record} />
        <${Matches} run=${run} latent=${record.latent} route=${route} />
      </aside>
    </div>
  </article>`;
}

function Heading({ run, record, route, keys }) {
  const source = useSource();
  const { say, refresh, runs } = useApp();
  const [editing, setEditing] = useState(false);
  const [shown, setShown] = useState(record.annotation);
  useEffect(() => setShown(record.annotation), [record]);
  const pinned = pinsOf(route).some(([r, l]) => r === run && l === record.latent);
  const { explanation } = record;

  async function annotate(change) {
    try {
      setShown(await source.annotate(run, record.latent, change));
      refresh();
    } catch (error) {
      say(error.message);
    }
  }
  const pin = () => togglePin(route, run, record.latent);
  const bookmark = () => source.live && annotate({ bookmark: !shown.bookmark });
  keys.current = { ...keys.current, b: bookmark, c: pin, l: () => source.live && setEditing(true) };

  return html`<header class="heading">
    <div class="title">
      <span class="id" data-testid="latent-id">#${record.latent}</span>
      <h2 dir="auto" data-testid="latent-name">
        ${shown.label || explanation?.name || (record.row.token ? html`<code class="token-name">${quoted(record.row.token)}</code>` : "never fires")}
      </h2>
      ${explanation &&
      html`<span class="score" data-testid="latent-score" title="AUROC of the name on held-out examples">
        ${shown.label && html`<span dir="auto">${explanation.name}</span> · `}score ${number(explanation.score)}
        ${explanation.low != null && html` [${number(explanation.low)}, ${number(explanation.high)}]`}
        ${explanation.precision != null && html` · precision ${number(explanation.precision)}, recall ${number(explanation.recall)}`}
      </span>`}
    </div>
    <div class="actions">
      ${source.live &&
      html`<button data-testid="bookmark" aria-pressed=${shown.bookmark} title="Bookmark (b)" onClick=${bookmark}>
          ${shown.bookmark ? "★" : "☆"} Bookmark
        </button>
        <button data-testid="label" title="Label (l)" onClick=${() => setEditing(true)}>Label</button>`}
      <button data-testid="pin" aria-pressed=${pinned} title="Pin to compare (c)" onClick=${pin}>${pinned ? "Pinned" : "Pin"}</button>
      ${source.live &&
      runs[run].kind === "language" &&
      (noSteering(runs[run].features)
        ? html`<span class="muted" data-testid="no-steering">${noSteering(runs[run].features)}</span>`
        : html`<a class="button" data-testid="steer-this" href=${link({ page: "steer", params: { push: `${record.latent}:add:1` } })}>Steer</a>`)}
    </div>
    ${editing && html`<${LabelForm} shown=${shown} onDone=${() => setEditing(false)} onSave=${annotate} />`}
    ${explanation?.rule && html`<${Rule} explanation=${explanation} />`}
    ${!editing && shown.note && html`<p class="note" dir="auto" data-testid="note">${shown.note}</p>`}
  </header>`;
}

// The evidence for the name: statements with their weights, and how well they tell firing from silent tokens.
function Rule({ explanation }) {
  const { rule, control, positives, negatives } = explanation;
  return html`<details class="rule" data-testid="rule">
    <summary>Why this name</summary>
    <dl>
      ${rule.clauses.map(
        (clause) =>
          html`<dt key=${clause.family}>${clause.family}</dt>
            <dd dir="auto">
              ${clause.values.map(
                (entry) => html`<span class="evidence" key=${entry.value} title=${`${percent(entry.share)} of the firing tokens`}>
                  <code class="token-name">${quoted(entry.value, 48)}</code> <span class="num">${signed(entry.weight)}</span>
                </span>`,
              )}
            </dd>`,
      )}
    </dl>
    <p class="muted">
      Weights are log-odds. Scored on ${count(positives)} firing and ${count(negatives)} silent held-out tokens${control != null &&
      html`; the rule of another latent scores ${number(control)}`}.
    </p>
  </details>`;
}

function LabelForm({ shown, onDone, onSave }) {
  const label = useRef();
  const note = useRef();
  useEffect(() => label.current.focus(), []);
  async function save(event) {
    event.preventDefault();
    await onSave({ label: label.current.value.trim() || null, note: note.current.value.trim() || null });
    onDone();
  }
  return html`<form class="label-form" onSubmit=${save} onKeyDown=${(event) => event.key === "Escape" && onDone()}>
    <input ref=${label} maxlength="500" defaultValue=${shown.label ?? ""} placeholder="Label" aria-label="Label" data-testid="label-input" />
    <input ref=${note} maxlength="2000" defaultValue=${shown.note ?? ""} placeholder="Note" aria-label="Note" data-testid="note-input" />
    <button type="submit" class="primary" data-testid="label-save">Save</button>
    <button type="button" class="quiet" onClick=${onDone}>Cancel</button>
  </form>`;
}

export function Facts({ record, features }) {
  const { row } = record;
  const { units, diversity } = wordsOf(features);
  const facts = [
    ["Density", oneIn(record.density), `${percent(record.density)} of ${count(features.tokens)} ${units}`, "density"],
    ["Max", number(record.max), "largest activation", "max"],
    ["Mean", number(record.mean), "mean activation where it fires", "mean"],
    ["Entropy", number(row.entropy), `in bits, of the ${diversity} on which it fires`, "entropy"],
    ["Norm", number(row.norm), "length of its atom", "norm"],
  ];
  if (row.stability != null) facts.push(["Stability", number(row.stability), "how nearly other trainings find it again, 0 to 1", "stability"]);
  return html`<dl class="facts">
    ${facts.map(
      ([name, value, about, id]) =>
        html`<div key=${id} title=${about} data-testid=${`fact-${id}`}>
          <dt>${name}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>`;
}

export function Logits({ run, latent, revision, rows = 8 }) {
  const source = useSource();
  const { value, error } = useLoaded(() => source.logits(run, latent), [run, latent, revision]);
  const [all, setAll] = useState(false);
  const most = value ? Math.max(1e-9, ...[...value.top, ...value.bottom].map((entry) => Math.abs(entry.value))) : 1;
  const list = (entries, id) =>
    html`<ol class="logits" data-testid=${`logits-${id}`}>
      ${entries.slice(0, all ? 20 : rows).map(
        (entry, i) =>
          html`<li key=${i}>
            <code class="token-name" dir="auto" title=${visible(entry.token)}>${quoted(entry.token, 24)}</code>
            <span class=${entry.value < 0 ? "gauge minus" : "gauge plus"} aria-hidden="true">
              <i style=${{ width: `${(100 * Math.abs(entry.value)) / most}%` }}></i>
            </span>
            <span class=${entry.value < 0 ? "num minus" : "num plus"}>${signed(entry.value)}</span>
          </li>`,
      )}
    </ol>`;
  return html`<section class="panel" data-testid="logits">
    <div class="section-head">
      <h3>Logits</h3>
      ${value && value.top.length > rows && html`<button class="quiet" onClick=${() => setAll(!all)}>${all ? "Fewer" : "All"}</button>`}
    </div>
    ${error && html`<p class="muted" data-testid="logits-none">${error}</p>`}
    ${!value && !error && html`<p class="muted">Computing…</p>`}
    ${value && html`${list(value.top, "top")}${list(value.bottom, "bottom")}`}
  </section>`;
}

function Related({ run, latent, what, measure, title, revision }) {
  const source = useSource();
  const { value, error } = useLoaded(() => source[what](run, latent), [run, latent, revision]);
  return html`<section class="panel" data-testid=${what}>
    <h3>${title} <span class="muted">${measure}</span></h3>
    ${error && html`<p class="muted">${error}</p>`}
    ${!value && !error && html`<p class="muted">Computing…</p>`}
    ${value && !value.length && html`<p class="muted">None.</p>`}
    ${value && html`<${LatentLinks} items=${value} measure=${measure} here=${run} />`}
  </section>`;
}

// Links to latents of another run (`run`), or of this one (`here`).
export function LatentLinks({ items, measure, run, here }) {
  return html`<ol class="links">
    ${items.map(
      (item) =>
        html`<li key=${item.latent}>
          <a href=${link({ page: "latents", latent: item.latent, params: run == null ? {} : { run } })} data-testid="latent-link">
            <span class="id">#${item.latent}</span> <${Thumb} run=${run ?? here} latent=${item.latent} />
            <span class="what" dir="auto"><${Brief} item=${item} /></span>
          </a>
          <span class="num">${signed(item[measure])}</span>
        </li>`,
    )}
  </ol>`;
}

// The name of a latent where there is one, else its strongest token.
export function Brief({ item }) {
  const title = item.label || item.name;
  if (title) return html`<span class="brief" title=${title}>${title}</span>`;
  if (!item.token) return html`<span class="muted">never fires</span>`;
  return html`<code class="token-name" title=${visible(item.token)}>${quoted(item.token, 20)}</code>`;
}

function Matches({ run, latent, route }) {
  const source = useSource();
  const { runs } = useApp();
  const several = runs.length > 1;
  const { value, error } = useLoaded(() => (several ? source.matches(run, latent) : null), [run, latent]);
  if (!several) return null;
  return html`<section class="panel" data-testid="matches">
    <h3>In the other runs <span class="muted">cosine</span></h3>
    ${error && html`<p class="muted">${error}</p>`}
    ${value?.map(
      (match) =>
        html`<div key=${match.run} class="match">
          <h4 dir="auto">${match.name}</h4>
          ${match.reason && html`<p class="muted">${match.reason}</p>`}
          <${LatentLinks} items=${match.latents} measure="cosine" run=${match.run} />
          ${match.latents[0] &&
          html`<button class="quiet" data-testid="compare-match" onClick=${() => compare(route, [run, latent], [match.run, match.latents[0].latent])}>
            Compare side by side
          </button>`}
        </div>`,
    )}
  </section>`;
}

function compare(route, ...wanted) {
  const pins = [...pinsOf(route), ...wanted].map((pin) => pin.join(":"));
  go({ page: "compare", params: { pins: [...new Set(pins)].slice(-4).join(",") } });
}
