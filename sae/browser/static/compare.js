// Up to four latents side by side, from one run or several.

import { html } from "./view.js";
import { link, pinsOf, togglePin } from "./route.js";
import { Examples } from "./examples.js";
import { Histogram } from "./histogram.js";
import { Brief, Facts, Logits } from "./latent.js";
import { useApp, useLoaded, useSource } from "./app_state.js";
import { Atom } from "./pictures.js";

export function Compare({ route }) {
  const { runs } = useApp();
  const pins = pinsOf(route).filter(([run]) => runs[run]?.features);
  if (!pins.length)
    return html`<main class="page">
      <p class="muted" data-testid="no-pins">Nothing is pinned yet. Open a latent and press <kbd>c</kbd> to pin it; up to four pinned latents are shown here side by side.</p>
    </main>`;
  return html`<main class="compare page" data-testid="compare" style=${{ gridTemplateColumns: "repeat(auto-fit, minmax(min(100%, 260px), 1fr))" }}>
    ${pins.map(([run, latent]) => html`<${Column} key=${`${run}:${latent}`} run=${run} latent=${latent} route=${route} several=${runs.length > 1} />`)}
  </main>`;
}

function Column({ run, latent, route, several }) {
  const source = useSource();
  const { runs } = useApp();
  const { features, name } = runs[run];
  const { value: record, error } = useLoaded(() => source.record(run, latent), [run, latent, features.revision, features.marks]);
  return html`<article class="card" data-testid="pinned" data-run=${run} data-latent=${latent}>
    <header class="heading">
      <div class="title">
        <a class="id" href=${link({ page: "latents", latent, params: { run: run || "" } })}>#${latent}</a>
        <h2 dir="auto">${record && html`<${Brief} item=${record.row} />`}</h2>
        ${several && html`<p class="muted of-run" dir="auto" title=${name}>${name}</p>`}
      </div>
      <button class="quiet" data-testid="unpin" onClick=${() => togglePin(route, run, latent)}>Unpin</button>
    </header>
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${record &&
    html`${features.kind === "image" && html`<${Atom} run=${run} latent=${latent} />`}
      <${Facts} record=${record} features=${features} />
      <${Histogram} record=${record} features=${features} small />
      ${features.kind === "language" && html`<${Logits} run=${run} latent=${latent} revision=${features.revision} rows=${5} />`}
      <${Examples} record=${record} run=${run} limit=${5} />`}
  </article>`;
}
