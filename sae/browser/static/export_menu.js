// Exports of the latents in the table: as a table, as code, as a page of their own.

import { html, useEffect, useRef, useState } from "./view.js";
import { count } from "./format.js";
import { useApp, useSource } from "./app_state.js";

const LARGEST_PAGE = 2000;

export function ExportMenu({ run, query, total, pins }) {
  const source = useSource();
  const { runs } = useApp();
  const [open, setOpen] = useState(false);
  const [which, setWhich] = useState("table");
  const menu = useRef();
  useEffect(() => {
    if (!open) return;
    const away = (event) => !menu.current?.contains(event.target) && setOpen(false);
    const escape = (event) => event.key === "Escape" && setOpen(false);
    addEventListener("pointerdown", away);
    addEventListener("keydown", escape);
    return () => {
      removeEventListener("pointerdown", away);
      removeEventListener("keydown", escape);
    };
  }, [open]);
  if (!source.live) return null;
  const pinned = pins.filter(([r]) => r === run).map(([, latent]) => latent);
  const listed = which === "pinned" ? pinned : null;
  const many = (listed ? listed.length : total) ?? 0;
  const get = (kind, title) =>
    html`<a class="item" role="menuitem" download data-testid=${`export-${kind}`} href=${source.exportAddress(run, kind, query, listed)}>${title}</a>`;
  return html`<div class="menu" ref=${menu}>
    <button data-testid="export" aria-haspopup="menu" aria-expanded=${open} onClick=${() => setOpen(!open)}>Export</button>
    ${open &&
    html`<div class="sheet" role="menu" data-testid="export-menu">
      <select aria-label="Which latents" data-testid="export-which" value=${which} onChange=${(event) => setWhich(event.currentTarget.value)}>
        <option value="table">All ${count(total)} latents in the table</option>
        ${pinned.length > 0 && html`<option value="pinned">The ${pinned.length} pinned latents</option>`}
      </select>
      ${get("csv", "Table as CSV")} ${get("python", "Python snippet")}
      ${many <= LARGEST_PAGE
        ? get("static", "Static page (.zip)")
        : html`<p class="muted">For a static page of more than ${count(LARGEST_PAGE)} latents, run the command below.</p>`}
      <p class="muted">All latents, from a terminal:</p>
      <code class="command">sae export ${runs[run].folder} --to static --out DIR</code>
      ${runs[run].kind === "language" && html`<code class="command">sae export ${runs[run].folder} --to neuronpedia --out DIR</code>`}
    </div>`}
  </div>`;
}
