// How stable a latent is over other trainings, as `sae match` measured it, with links to its matches in the opened runs.

import { html } from "./view.js";
import { count, number, percent, signed } from "./format.js";
import { link } from "./route.js";
import { useApp } from "./app_state.js";

const FOUND = 0.9;

export function Stability({ record }) {
  const { runs: opened } = useApp();
  const { stability } = record;
  if (!stability) return null;
  const { score, chance, chance_mean: usual, by, runs } = stability;
  const others = runs.length === 1 ? "the other run" : `the ${count(runs.length)} other runs`;
  return html`<section class="panel" data-testid="stability">
    <h3>Stability ${score != null && html`<span class="num">${number(score)}</span>`} <span class="muted">by ${by}</span></h3>
    ${score == null
      ? html`<p data-testid="stability-says">Unknown: the latent never fired on the tokens compared, so its atom is no evidence.</p>`
      : html`<p data-testid="stability-says">
            ${verdict(score, chance, others)} By chance a latent has ${number(usual)}, and 19 in 20 stay below ${number(chance)}. It is more stable
            than ${percent(stability.below)} of this run's latents.
          </p>
          <ol class="links">
            ${runs.map((run) => html`<${Match} key=${run.weights} match=${run} by=${by} place=${opened.findIndex((o) => o.features?.weights === run.weights)} />`)}
          </ol>
          <details>
            <summary>What this means</summary>
            <p class="muted">
              ${by === "atoms"
                ? "The mean, over the other runs, of the largest |cosine| between this latent's atom and an atom there."
                : "The mean, over the other runs, of the largest |correlation| of this latent's activations with those of a latent there."}
              ${" "}1 would mean that every run has exactly this latent. What other trainings find too is less likely to be an accident of one; it
              need not mean anything for that.
            </p>
          </details>`}
  </section>`;
}

function verdict(score, chance, others) {
  if (score >= FOUND) return `Found again: ${others} ${others.endsWith("runs") ? "have" : "has"} nearly the same latent.`;
  if (score > chance) return `Found in part: the best matches in ${others} are like it, but not the same.`;
  return `Not found again: what ${others} ${others.endsWith("runs") ? "have" : "has"} is no more like it than chance.`;
}

function Match({ match, by, place }) {
  const what = html`<span class="id">#${match.latent}</span> <span class="what" dir="auto">${match.name}</span>`;
  const about = match.correlation == null ? "" : `its activations correlate by ${signed(match.correlation)} with those of the latent most like it there`;
  return html`<li title=${about}>
    ${place < 0
      ? html`<span>${what}</span>`
      : html`<a data-testid="stability-match" href=${link({ page: "latents", latent: match.latent, params: { run: place || "" } })}>${what}</a>`}
    <span class="num">${signed(by === "atoms" ? match.cosine : match.correlation)}</span>
  </li>`;
}
