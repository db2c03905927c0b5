// The keys, and the overlay that lists them.

import { html, useEffect, useRef } from "./view.js";
import { focusToken } from "./tokens.js";

// The third entry limits a key to one kind of run.
const KEYS = [
  ["j  k", "next and previous latent of the table"],
  ["n  p", "next and previous example"],
  ["← → ↑ ↓", "move over the tokens of the examples", "language"],
  ["/", "search"],
  ["l", "label the latent"],
  ["b", "bookmark the latent"],
  ["c", "pin the latent, to compare it"],
  ["Ctrl+Enter", "examine the prompt, or generate the steered text", "language"],
  ["?", "show this list"],
];

// Ctrl+Enter and Cmd+Enter send a form, wherever the focus is in it.
export const sendsOn = (ready, send) => (event) => {
  if (ready && event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
};

// One listener for the whole page; its parts put their actions into `keys.current`.
export function useKeys(keys) {
  useEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.target.closest?.("input, textarea, select")) return;
      const act = keys.current[event.key] ?? ALWAYS[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

const ALWAYS = { n: () => moveExample(1), p: () => moveExample(-1) };

function moveExample(by) {
  const group = document.querySelector('[data-testid="examples"]');
  const all = [...(group?.querySelectorAll('[data-testid="example"]') ?? [])];
  if (!all.length) return;
  const at = all.indexOf(document.activeElement?.closest?.('[data-testid="example"]'));
  const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.max(0, Math.min(all.length - 1, at + by))];
  const token = next.querySelector(".tok.peak") ?? next.querySelector(".tok");
  if (token) focusToken(group, token);
  else next.focus();
}

export function Help({ open, kind, onClose }) {
  const dialog = useRef();
  useEffect(() => {
    if (open && !dialog.current.open) dialog.current.showModal();
    if (!open && dialog.current.open) dialog.current.close();
  }, [open]);
  return html`<dialog ref=${dialog} data-testid="help" aria-label="Keys" onClose=${onClose} onClick=${(event) => event.target === dialog.current && onClose()}>
    <div class="section-head">
      <h2>Keys</h2>
      <button class="quiet" data-testid="help-close" onClick=${onClose}>Close</button>
    </div>
    <dl class="keys">
      ${KEYS.filter(([, , only]) => !only || only === kind).map(
        ([key, what]) =>
          html`<div key=${key}>
            <dt>${key.split("  ").map((k) => html`<kbd key=${k}>${k}</kbd> `)}</dt>
            <dd>${what}</dd>
          </div>`,
      )}
    </dl>
    <h2>Colours</h2>
    ${kind === "image"
      ? html`<p>An atom's picture is white where the latent changes nothing. A frame in an example marks the place of the feature map where the latent fires.</p>`
      : html`<p>
          A token's background shows the latent's activation there, ${[1, 4, 7, 10].map((a, i) => html`<span key=${a} class=${`tok a${a}`}>${["weak", "to", "its", "maximum"][i]}</span> `)}
          and the token at an example's peak is <span class="tok a8 peak">bold and outlined</span>.
        </p>`}
    <p>Positive numbers are <span class="plus">+blue</span>, negative ones <span class="minus">−orange</span>; both always have their sign.</p>
  </dialog>`;
}
