// A latent's examples, in bands of its activation. A run's kind decides how an example is drawn.

import { html, useEffect, useRef, useState } from "./view.js";
import { count, number, percent } from "./format.js";
import { Strip, keepTabStop, moveOverTokens } from "./tokens.js";
import { useApp, useSource } from "./app_state.js";
import { wordsOf } from "./kinds.js";
import { ImageExample } from "./pictures.js";

const CONTEXTS = [
  ["short", 8, "Short"],
  ["whole", null, "Window"],
];

// By the run's kind: what draws an example, and how many are shown at first of a band and of the strongest.
const RENDERERS = {
  language: { Example: TokenExample, first: 4, strongest: 8 },
  image: { Example: ImageExample, first: 10, strongest: 20 },
};

export function Examples({ record, run, range, limit }) {
  const { features } = useApp().runs[run];
  const { kind } = features;
  const { first, strongest } = RENDERERS[kind];
  const [context, setContext] = useState("whole");
  const [open, setOpen] = useState({});
  const group = useRef();
  useEffect(() => setOpen({}), [record.latent]);
  useEffect(() => keepTabStop(group.current));
  const around = CONTEXTS.find(([name]) => name === context)[1];
  const sections = range ? [brushed(record, range)] : banded(record, strongest, wordsOf(features));
  return html`<section class="examples" data-testid="examples" ref=${group} onKeyDown=${moveOverTokens}>
    <div class="section-head">
      <h3>Examples</h3>
      ${kind === "language" &&
      html`<div class="segmented" role="radiogroup" aria-label="How much text around the peak">
        ${CONTEXTS.map(
          ([name, , title]) =>
            html`<button
              key=${name}
              role="radio"
              aria-checked=${context === name}
              data-testid=${`context-${name}`}
              onClick=${() => setContext(name)}
            >
              ${title}
            </button>`,
        )}
      </div>`}
    </div>
    ${sections.map(
      (section) =>
        html`<${Band}
          key=${section.title}
          section=${section}
          record=${record}
          run=${run}
          kind=${kind}
          around=${around}
          first=${limit ?? (section.testid === "band-top" || range ? strongest : first)}
          all=${open[section.title]}
          onAll=${() => setOpen({ ...open, [section.title]: !open[section.title] })}
        />`,
    )}
  </section>`;
}

// The strongest examples, then the quantile bands without those already shown.
export function banded(record, strongest, words) {
  const top = record.examples.filter((e) => e.band === "top").sort((a, b) => b.value - a.value);
  const seen = new Set(top.slice(0, strongest).map(identity));
  const bands = record.bands.map((band, i) => ({
    title: `${number(band.low)} to ${number(band.high)}`,
    note: `${percent(band.share)} of firing ${words.units}`,
    testid: `band-${i}`,
    examples: unique(band.examples.map((j) => record.examples[j])).filter((e) => !seen.has(identity(e))),
  }));
  const best = { title: "Strongest", note: words.one, testid: "band-top", examples: unique(top) };
  return [best, ...bands].filter((section) => section.examples.length);
}

// All stored examples with a peak in the selected range.
export function brushed(record, [low, high]) {
  const inside = record.examples.filter((e) => e.value >= low && e.value <= high);
  return {
    title: `Activation ${number(low)} to ${number(high)}`,
    note: "the range selected in the histogram",
    testid: "band-brushed",
    examples: unique(inside).sort((a, b) => b.value - a.value),
  };
}

const identity = (example) => `${example.document}:${example.position}`;

function unique(examples) {
  const seen = new Set();
  return examples.filter((e) => !seen.has(identity(e)) && seen.add(identity(e)));
}

function Band({ section, record, run, kind, around, first, all, onAll }) {
  const shown = all ? section.examples : section.examples.slice(0, first);
  const rest = section.examples.length - first;
  const { Example } = RENDERERS[kind];
  return html`<div class="band" data-testid=${section.testid}>
    <h4>
      ${section.title}
      <span class="muted">${section.note}</span>
    </h4>
    ${!shown.length && html`<p class="muted">No stored example is in this range.</p>`}
    <div class=${`shown ${kind}`}>
      ${shown.map(
        (example) =>
          html`<${Example} key=${identity(example)} example=${example} max=${record.max} run=${run} around=${around} />`,
      )}
    </div>
    ${rest > 0 &&
    html`<button class="quiet" data-testid="show-all" onClick=${onAll}>
      ${all ? "Show fewer" : `Show ${count(rest)} more`}
    </button>`}
  </div>`;
}

function TokenExample({ example, max, run, around }) {
  const source = useSource();
  const [whole, setWhole] = useState(null);
  const [failed, setFailed] = useState(null);
  async function toggle() {
    if (whole) return setWhole(null);
    try {
      setWhole(inDocument(example, await source.document(run, example.document)));
    } catch (error) {
      setFailed(error.message);
    }
  }
  return html`<div class="example" data-testid="example" data-value=${example.value}>
    <button
      class="value"
      data-testid="example-value"
      title=${source.live ? `document ${example.document}, position ${example.position}: show the whole document` : undefined}
      disabled=${!source.live}
      aria-expanded=${Boolean(whole)}
      onClick=${toggle}
    >
      ${number(example.value)}
    </button>
    <${Strip} example=${whole ?? example} max=${max} around=${whole ? null : around} />
    ${failed && html`<p class="error" role="alert">${failed}</p>`}
  </div>`;
}

// The whole document with the activations of the example's window.
function inDocument(example, { tokens, token_ids }) {
  const values = new Array(tokens.length).fill(0);
  example.values.forEach((value, i) => (values[example.start + i] = value));
  return { tokens, token_ids, values, peak: example.start + example.peak };
}
