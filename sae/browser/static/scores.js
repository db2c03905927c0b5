// How well a latent's name predicts where it fires, as `sae explain --score` measured it: with controls and intervals.

import { html } from "./view.js";
import { count, number } from "./format.js";

const W = 420;
const ROW = 22;
const PAD = { left: 96, right: 156, top: 4, bottom: 20 };
const AGAINST = { random: "random texts", near: "near latents" };
const CONTROLS = { other: "another latent's name", shuffled: "its words shuffled" };

const MEASURES = {
  detection: {
    title: "Detection",
    ask: "In which of these texts does the latent fire?",
    span: [0, 1],
    chance: 0.5,
    says: (near, against) =>
      `Of a text in which it fires and one ${against}, the name picks the right one ${times(near.value)} ${range(near)}; a coin would 50 times.`,
  },
  fuzzing: {
    title: "Fuzzing",
    ask: "Are the marked tokens those at which it fires?",
    span: [0, 1],
    chance: 0.5,
    says: (near, against) =>
      `Of a text with the right tokens marked and one ${against}, the name picks the right one ${times(near.value)} ${range(near)}; a coin would 50 times.`,
  },
  simulation: {
    title: "Simulation",
    ask: "How strongly does it fire at each token?",
    span: [-0.2, 1],
    chance: 0,
    says: (near) =>
      `The strengths predicted from the name correlate by ${number(near.value)} ${range(near)} with the true ones; 1 is perfect, and guessing gives 0.`,
  },
};

const WHERE = {
  detection: { random: "drawn at random", near: "in which a similar latent fires instead" },
  fuzzing: { random: "with other tokens marked", near: "with the tokens of a similar latent marked" },
  simulation: { random: "", near: "" },
};

export function Scores({ record }) {
  const scorers = Object.entries(record.scores ?? {}).sort(([a], [b]) => (a === "rules") - (b === "rules"));
  if (!scorers.length) return null;
  return html`<section class="card scores" data-testid="name-scores">
    <h3>How much the name tells</h3>
    ${scorers.map(([scorer, entry]) => html`<${Judged} key=${scorer} scorer=${scorer} entry=${entry} />`)}
    <p class="legend"><span class="own">the name, with its 95% interval</span><span class="other">another latent's name</span>${scorers.some(([scorer]) => scorer !== "rules") && html`<span class="shuffled">its words shuffled</span>`}<span class="chance">chance</span></p>
    <details>
      <summary>How it was measured</summary>
      <p class="muted">
        A judge reads the name and texts of up to 33 tokens that the name was not made from, and does not see where the latent fires.
        Near latents are those with the nearest atoms and those that often fire at the same tokens; in their texts this latent is known to
        be silent. A name that only tells the subject does well against random texts and badly against these. What another latent's name
        scores is owed to the texts alone, what shuffled words score is not owed to their order. Detection and fuzzing are AUROC; intervals
        are over documents. A low score may be the judge's fault: compare the judges where there are several.
      </p>
    </details>
  </section>`;
}

function Judged({ scorer, entry }) {
  const judge = scorer === "rules" ? "the rule itself, without a model" : `the model ${scorer.replace(/^\w+:/, "")}`;
  const measures = Object.keys(MEASURES).filter((measure) => entry[measure]);
  const texts = entry.texts[measures[0]];
  return html`<div data-testid="judged" data-scorer=${scorer}>
    <p>
      <b dir="auto">${entry.words}</b>, judged by ${judge} on ${count(texts.fires)} texts in which the latent fires,
      ${" "}${count(texts.random)} ${measures[0] === "fuzzing" ? "with wrong marks" : "random ones"} and ${count(texts.near)} of near latents${entry.unanswered > 0 && `; ${Math.round(100 * entry.unanswered)}% of the questions stayed without an answer`}.
    </p>
    ${measures.map((measure) => html`<${Measure} key=${measure} measure=${measure} scores=${entry[measure]} />`)}
  </div>`;
}

function Measure({ measure, scores }) {
  const { title, ask, says } = MEASURES[measure];
  const harder = scores.near ? "near" : "random";
  const shown = scores[harder];
  return html`<figure data-testid=${`score-${measure}`}>
    <figcaption><b>${title}</b> <span class="muted">${ask}</span></figcaption>
    ${shown
      ? html`<p data-testid=${`says-${measure}`}>${verdict(measure, shown)} ${says(shown, WHERE[measure][harder])}</p>
          <${Bars} measure=${measure} scores=${scores} />`
      : html`<p class="muted">There are too few texts to tell.</p>`}
  </figure>`;
}

// What the harder comparison says in a word, from its interval and the control.
function verdict(measure, { low, high, value, other }) {
  const { chance } = MEASURES[measure];
  if (low <= chance && high >= chance) return "No better than chance, as far as these texts tell.";
  if (high < chance) return "Worse than chance: the name misleads.";
  if (other != null && other >= low) return "Better than chance, but another latent's name may do as well.";
  return value >= (measure === "simulation" ? 0.7 : 0.85) ? "Good." : "Better than chance, and far from sure.";
}

function Bars({ measure, scores }) {
  const { span, chance, title } = MEASURES[measure];
  const rows = Object.keys(AGAINST).filter((against) => scores[against]);
  const height = PAD.top + rows.length * ROW + PAD.bottom;
  const x = (value) => PAD.left + ((Math.max(span[0], value) - span[0]) / (span[1] - span[0])) * (W - PAD.left - PAD.right);
  return html`<svg viewBox=${`0 0 ${W} ${height}`} role="img" aria-label=${`${title}: ${rows.map((r) => `against ${AGAINST[r]} ${spoken(scores[r])}`).join("; ")}`}>
    ${[span[0], chance, 1]
      .filter((tick, i, all) => all.indexOf(tick) === i && tick >= 0)
      .map((tick) => html`<g key=${tick} class=${tick === chance ? "tick at-chance" : "tick"}>
        <line x1=${x(tick)} x2=${x(tick)} y1=${PAD.top} y2=${height - PAD.bottom} />
        <text x=${x(tick)} y=${height - 6} text-anchor="middle">${tick}</text>
      </g>`)}
    ${rows.map((against, i) => {
      const score = scores[against];
      const y = PAD.top + (i + 0.5) * ROW;
      return html`<g key=${against} data-testid=${`bar-${measure}-${against}`}>
        <title>${spoken(score)}</title>
        <text x=${PAD.left - 10} y=${y} dy="0.32em" text-anchor="end">${AGAINST[against]}</text>
        <line class="interval" x1=${x(score.low)} x2=${x(score.high)} y1=${y} y2=${y} />
        ${Object.keys(CONTROLS).map((who) => score[who] != null && html`<circle key=${who} class=${who} cx=${x(score[who])} cy=${y} r="4" />`)}
        <circle class="own" cx=${x(score.value)} cy=${y} r="4.5" />
        <text x=${W - PAD.right + 10} y=${y} dy="0.32em">${number(score.value)} [${number(score.low)}, ${number(score.high)}]</text>
      </g>`;
    })}
  </svg>`;
}

const times = (value) => `${Math.round(100 * value)} times in 100`;
const range = ({ low, high }) => `[${number(low)}, ${number(high)}]`;

function spoken(score) {
  const controls = Object.entries(CONTROLS).filter(([who]) => score[who] != null);
  return [`${number(score.value)} ${range(score)}`, ...controls.map(([who, name]) => `${name} ${number(score[who])}`)].join(", ");
}
