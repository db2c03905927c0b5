// Full-text search over names, labels, logit tokens and example texts.

import { html } from "./view.js";
import { count, visible } from "./format.js";
import { link } from "./route.js";
import { Brief } from "./latent.js";
import { useLoaded, useSource } from "./app_state.js";

const WHERE = { name: "name", label: "label", note: "note", logits: "logit tokens", example: "example", token: "strongest token" };

export function Search({ route, run, info }) {
  const source = useSource();
  const text = route.params.q ?? "";
  const { features } = info;
  const { value, error, loading } = useLoaded(() => source.search(run, text), [run, text, features.revision, features.marks]);
  return html`<main class="page">
    <section class="card" data-testid="search-results">
      <h3 role="status">
        ${loading ? "Searching…" : value ? html`${count(value.length)}${value.length >= 50 ? " or more" : ""} latents for <q dir="auto">${text}</q>` : "Search"}
      </h3>
      ${error && html`<p class="error" role="alert" data-testid="error">${error}</p>`}
      ${value && !value.length && html`<p class="muted">No name, label, logit token or example contains it.</p>`}
      <ol class="results">
        ${value?.map(
          (hit) =>
            html`<li key=${hit.latent} data-testid="search-hit" data-latent=${hit.latent}>
              <a href=${link({ page: "latents", latent: hit.latent })}>
                <span class="id">#${hit.latent}</span> <span dir="auto"><${Brief} item=${hit} /></span>
              </a>
              <span class="tag">${WHERE[hit.where] ?? hit.where}</span>
              <span class="snippet" dir="auto"><${Marked} text=${visible(hit.snippet ?? "")} wanted=${text} /></span>
            </li>`,
        )}
      </ol>
    </section>
  </main>`;
}

// The text with the match marked.
function Marked({ text, wanted }) {
  const at = text.toLowerCase().indexOf(wanted.toLowerCase());
  if (!wanted || at < 0) return text;
  return html`${text.slice(0, at)}<mark>${text.slice(at, at + wanted.length)}</mark>${text.slice(at + wanted.length)}`;
}
