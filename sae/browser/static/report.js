// The run itself: training curves, evaluation with intervals, configuration.

import { html, useEffect, useRef } from "./view.js";
import { count, number } from "./format.js";
import { useLoaded, useSource } from "./app_state.js";
import { wordsOf } from "./kinds.js";

export function Report({ run, info }) {
  const source = useSource();
  const { value, error } = useLoaded(() => source.report(run), [run, info]);
  if (error) return html`<main class="page"><p class="error" role="alert" data-testid="error">${error}</p></main>`;
  if (!value) return html`<main class="page"><p class="muted">Loading…</p></main>`;
  return html`<main class="page report" data-testid="run-page">
    <section class="card">
      <h2 dir="auto">${value.name}</h2>
      <p class="muted" dir="auto">${value.folder}</p>
      <${Collection} info=${info} />
      ${value.config?.imported && html`<${Origin} origin=${value.config.imported} />`}
    </section>
    <section class="card" data-testid="curves">
      <h3>Training</h3>
      ${value.curves ? html`<${Curves} curves=${value.curves} />` : html`<p class="muted">The run has no metrics.jsonl.</p>`}
    </section>
    <section class="card" data-testid="evaluation">
      <h3>Evaluation</h3>
      ${value.eval ? html`<${Evaluation} value=${value} />` : html`<p class="muted">Not evaluated yet: <code>sae eval ${value.folder}</code></p>`}
    </section>
    <section class="card" data-testid="config">
      <h3>Configuration</h3>
      ${value.config ? html`<${Settings} value=${value.config} />` : html`<p class="muted">The run has no config.json.</p>`}
    </section>
  </main>`;
}

export function Collection({ info }) {
  const { features, reason } = info;
  if (!features) return html`<p data-testid="no-features">No features yet. ${reason}</p>`;
  const left = Object.entries(features.left_out ?? {}).filter(([, n]) => n > 0);
  return html`<p data-testid="collection">
    Features of <b>${count(features.width)}</b> latents, <b>${count(features.alive)}</b> of which fire, over
    <b> ${count(features.tokens)}</b> ${wordsOf(features).units} ${features.kind === "language" && `of ${count(features.documents)} documents `}of ${" "}
    <code>${features.dataset}</code>, at ${" "}<code>${features.site}</code> of ${" "}<code>${features.model}</code>.
    ${left.length > 0 && ` Left out: ${left.map(([kind, n]) => `${count(n)} ${kind}`).join(", ")}.`}
    ${!features.finished && html`<b data-testid="collecting"> Collecting: ${number(100 * features.progress)}% done.</b>`}
  </p>`;
}

// Where an imported autoencoder comes from.
function Origin({ origin }) {
  const said = [origin.architecture, origin.model && `for ${origin.model}`, origin.licence && `licence ${origin.licence}`, origin.left_out && `trained without ${origin.left_out}`];
  return html`<p data-testid="origin" dir="auto">
    Imported from <b>${origin.tool}</b> (${origin.format}): ${said.filter(Boolean).join(", ")}.
    ${origin.notes.map((note) => html`<br />Note: ${note}.`)}
  </p>`;
}

// The most important curves first; the others follow in the file's order.
const FIRST = ["fvu", "loss", "mse", "l0", "dead"];

function Curves({ curves }) {
  const steps = curves.step ?? curves.tokens;
  const names = Object.keys(curves).filter((name) => !["step", "tokens", "time", "seconds"].includes(name));
  const ordered = [...FIRST.filter((name) => names.includes(name)), ...names.filter((name) => !FIRST.includes(name))];
  if (!steps?.length) return html`<p class="muted">No step is logged yet.</p>`;
  return html`<div class="curves">${ordered.map((name) => html`<${Curve} key=${name} name=${name} x=${steps} y=${curves[name]} />`)}</div>`;
}

function Curve({ name, x, y }) {
  const place = useRef();
  const last = y.findLast((value) => value != null);
  useEffect(() => {
    let plot;
    let watch;
    let wanted = true;
    chartLibrary().then((UPlot) => {
      if (!wanted) return;
      const ink = () => getComputedStyle(place.current).getPropertyValue("color");
      const faint = () => getComputedStyle(place.current).getPropertyValue("border-top-color");
      const axis = { stroke: ink, grid: { stroke: faint, width: 1 }, ticks: { stroke: faint, width: 1 }, font: "12px system-ui" };
      const width = () => Math.max(200, place.current.clientWidth);
      const options = {
        width: width(),
        height: 150,
        legend: { show: false },
        cursor: { points: { size: 6 } },
        scales: { x: { time: false }, y: { range: (_, low, high) => (low === high ? around(low) : UPlot.rangeNum(low, high, 0.1, true)) } },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map(tick) },
          { ...axis, size: (_, labels) => room(labels), values: (_, ticks) => ticks.map(tick) },
        ],
        series: [{}, { stroke: "#f16913", width: 1.5, spanGaps: true }],
      };
      plot = new UPlot(options, [x, y], place.current);
      watch = new ResizeObserver(() => place.current && plot.setSize({ width: width(), height: 150 }));
      watch.observe(place.current);
    });
    return () => {
      wanted = false;
      watch?.disconnect();
      plot?.destroy();
    };
  }, [x, y]);
  return html`<figure data-testid="curve" data-name=${name}>
    <figcaption><b>${name.replaceAll("_", " ")}</b> <span class="num">${number(last)}</span></figcaption>
    <div class="plot" ref=${place}></div>
  </figure>`;
}

let library;

// The chart library is loaded when a chart is drawn.
function chartLibrary() {
  library ??= new Promise((resolve, reject) => {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "static/vendor/uPlot.css" });
    const script = Object.assign(document.createElement("script"), { src: "static/vendor/uPlot.js" });
    script.onload = () => resolve(globalThis.uPlot);
    script.onerror = () => reject(new Error("static/vendor/uPlot.js cannot be read"));
    document.head.append(style, script);
  });
  return library;
}

// A round number on an axis, in as few characters as possible.
export function tick(n) {
  const size = Math.abs(n);
  const [scale, unit] = size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : size >= 1e4 ? [1e3, "k"] : [1, ""];
  const digits = String(Number((n / scale).toPrecision(6)));
  return `${digits.replaceAll("-", "−")}${unit}`;
}

// Pixels that the widest label needs beside its ticks.
function room(labels) {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.font = "12px system-ui";
  return Math.ceil(Math.max(0, ...(labels ?? []).map((label) => canvas.measureText(label).width))) + 20;
}

// Bounds of an axis on which all values are the same.
const around = (value) => (value ? [value - Math.abs(value) / 2, value + Math.abs(value) / 2] : [0, 1]);

// The numbers beside their controls, where the cross-entropy arises, and every measure with its meaning.
function Evaluation({ value: { controls, added, eval: measures } }) {
  return html`
    ${controls
      ? html`<p class="muted">${controls.meaning}</p>
          <${Rows} rows=${controls.rows} name="controls" />
          <p data-testid="beside-controls">${controls.said.length ? `As good as this autoencoder or better: ${controls.said.join("; ")}.` : "No control is as good."}</p>`
      : html`<p class="muted">No control was measured.</p>`}
    ${added.map(
      ({ partition, title, meaning, rows }) => html`<details key=${partition}>
        <summary>Delta CE by ${title.toLowerCase()}</summary>
        <p class="muted">Classes: ${meaning}. Delta CE is the loss that is added, nats a token; the last columns have it for the controls.</p>
        <${Rows} rows=${rows} name=${`added-${partition}`} />
      </details>`,
    )}
    <details open>
      <summary>Every measure</summary>
      <${Measures} measures=${measures} />
    </details>`;
}

// Rows with the same names as a table, intervals under their numbers.
function Rows({ rows, name }) {
  const heads = Object.keys(rows[0]);
  return html`<div class="wide" tabindex="0" role="region" aria-label=${name}><table class="plain" data-testid=${name}>
    <thead>
      <tr>${heads.map((head, i) => html`<th key=${head} class=${i ? "num" : ""}>${i ? head : ""}</th>`)}</tr>
    </thead>
    <tbody>
      ${rows.map(
        (row) => html`<tr key=${row[heads[0]]} data-name=${row[heads[0]]}>
          <th>${row[heads[0]]}</th>
          ${heads.slice(1).map((head) => html`<td key=${head} class="num">${cell(row[head])}</td>`)}
        </tr>`,
      )}
    </tbody>
  </table></div>`;
}

function cell(value) {
  if (value?.value === undefined) return typeof value === "number" ? value_(value) : "–";
  const interval = value.low == null ? "" : `${number(value.low)} to ${number(value.high)}`;
  return html`${number(value.value)} <span class="interval">${interval}</span>`;
}

// The measures with their names; {"value", "low", "high"} is a number with its 95% interval.
function Measures({ measures }) {
  return html`<div class="wide" tabindex="0" role="region" aria-label="Measures"><table class="plain" data-testid="measures">
    <thead>
      <tr><th>Measure</th><th class="num">Value</th><th class="num">95% interval</th><th>Meaning</th></tr>
    </thead>
    <tbody>
      ${measures.map(({ key, name, value, meaning }) => {
        const interval = value?.low !== undefined;
        const shown = interval ? value.value : value;
        return html`<tr key=${key} data-name=${key}>
          <th title=${key}>${name}</th>
          <td class=${typeof shown === "string" ? "num cut-short" : "num"} dir="auto" title=${typeof shown === "string" ? shown : undefined}>${typeof shown === "number" ? value_(shown) : shown}</td>
          <td class="num muted">${interval && `[${number(value.low, 4)}, ${number(value.high, 4)}]`}</td>
          <td class="muted">${meaning}</td>
        </tr>`;
      })}
    </tbody>
  </table></div>`;
}

// JSON as a table of dotted names.
function Settings({ value }) {
  return html`<table class="plain settings">
    <tbody>
      ${flat(value).map(
        ([name, shown]) =>
          html`<tr key=${name} data-name=${name}>
            <th dir="auto">${name}</th>
            <td class=${typeof shown === "number" ? "num" : ""} dir="auto">${typeof shown === "number" ? value_(shown) : String(shown)}</td>
          </tr>`,
      )}
    </tbody>
  </table>`;
}

const value_ = (n) => (Number.isInteger(n) ? count(n) : number(n, 4));

function flat(value, prefix = "") {
  return Object.entries(value).flatMap(([name, inner]) => {
    const full = prefix + name;
    if (Array.isArray(inner)) return [[full, inner.length > 12 ? `${inner.length} values` : inner.map(plain).join(", ")]];
    if (inner && typeof inner === "object") return flat(inner, `${full}.`);
    return inner == null ? [] : [[full, inner]];
  });
}

const plain = (item) => (typeof item === "number" ? number(item, 4) : typeof item === "object" ? JSON.stringify(item) : String(item));
