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
  return html`<section class="card stability" data-testid="stability">
    <h3>Stability ${score != null && html`<span class="num">${number(score)}</span>`}</h3>
    ${score == null
      ? html`<p data-testid="stability-says">Unknown: the latent never fired on the tokens compared, so its atom is no evidence.</p>`
      : html`<p data-testid="stability-says">
            ${verdict(score, chance, others)} 1 would mean that every run has exactly this latent. By chance a latent has ${number(usual)}, and 19 in
            20 stay below ${number(chance)}. It is more stable than ${percent(stability.below)} of this run's latents.
          </p>
          <p class="muted">
            ${by === "atoms"
              ? "The score is the mean, over the other runs, of the largest |cosine| between this latent's atom and an atom there."
              : "The score is the mean, over the other runs, of the largest |correlation| of this latent's activations with those of a latent there."}
            ${" "}What another run finds too is less likely to be an accident of one training; it need not mean anything for that.
          </p>
          <table class="plain">
            <thead>
              <tr><th>Run</th><th>Best match</th><th class="num">Cosine</th><th class="num" title="of the activations, with the latent they correlate with most">Correlation</th></tr>
            </thead>
            <tbody>
              ${runs.map((run) => html`<${Match} key=${run.weights} match=${run} place=${opened.findIndex((o) => o.features?.weights === run.weights)} />`)}
            </tbody>
          </table>`}
  </section>`;
}

function verdict(score, chance, others) {
  if (score >= FOUND) return `Found again: ${others} ${others.endsWith("runs") ? "have" : "has"} nearly the same latent.`;
  if (score > chance) return `Found in part: the best matches in ${others} are like it, but not the same.`;
  return `Not found again: what ${others} ${others.endsWith("runs") ? "have" : "has"} is no more like it than chance.`;
}

function Match({ match, place }) {
  const to = place < 0 ? null : link({ page: "latents", latent: match.latent, params: { run: place || "" } });
  return html`<tr>
    <td dir="auto">${match.name}</td>
    <td>${to ? html`<a class="id" data-testid="stability-match" href=${to}>#${match.latent}</a>` : html`<span class="id">#${match.latent}</span>`}</td>
    <td class="num">${signed(match.cosine)}</td>
    <td class="num">${signed(match.correlation)}</td>
  </tr>`;
}
