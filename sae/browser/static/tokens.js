// A strip of tokens coloured by a latent's activation. Text is always set as text: a corpus may hold anything.

import { classes, html } from "./view.js";
import { number, visible } from "./format.js";

// Of the tokens that share a split character the first has its text and the others "": they are shown as one piece,
// with the strongest activation among them.
export function pieces({ tokens, values, token_ids: ids, peak }) {
  const joined = [];
  tokens.forEach((text, i) => {
    const value = values[i] ?? 0;
    const last = joined.at(-1);
    if (text === "" && last) {
      last.value = Math.max(last.value, value);
      last.ids.push(ids?.[i]);
      last.peak ||= i === peak;
      last.end = i;
    } else {
      joined.push({ text, value, ids: [ids?.[i]], peak: i === peak, start: i, end: i });
    }
  });
  return joined;
}

// Level 0 (silent) to 10 (the latent's maximum): classes a1 to a10 of the style sheet.
export function level(value, max) {
  if (!(value > 0)) return 0;
  return Math.max(1, Math.min(10, Math.round((value / max) * 10)));
}

// Tooltip of a token: its text, activation and id.
export function told(piece) {
  const ids = piece.ids.filter((id) => id != null);
  return `${visible(piece.text)} · ${piece.value > 0 ? number(piece.value) : "silent"}${ids.length ? ` · token ${ids.join("+")}` : ""}`;
}

export function Token({ piece, max, focusable, extra, first, ...rest }) {
  // a leading space stays outside the coloured box, so that no sliver of colour hangs at the end of a line
  const [, space, shown] = visible(piece.text).match(/^( *)(.*)$/s);
  return html`${shown && !first && space}<span
    class=${classes("tok", `a${level(piece.value, max)}`, piece.peak && "peak", extra)}
    data-testid=${piece.peak ? "peak-token" : "token"}
    data-value=${piece.value}
    data-tip=${told(piece)}
    tabindex=${focusable == null ? undefined : focusable ? 0 : -1}
    ...${rest}
    >${shown || space}</span
  >${shown.endsWith("↵") && html`<wbr />`}`;
}

// One window of tokens, cut to `around` pieces on both sides of the peak (null shows all).
export function Strip({ example, max, around }) {
  const all = pieces(example);
  const centre = Math.max(
    0,
    all.findIndex((piece) => piece.peak),
  );
  const from = around == null ? 0 : Math.max(0, centre - around);
  const to = around == null ? all.length : centre + around + 1;
  const shown = all.slice(from, to);
  return html`<div class="strip" dir="auto" data-testid="strip">
    ${from > 0 && html`<span class="cut">…</span>`}
    ${shown.map((piece, i) => html`<${Token} key=${piece.start} piece=${piece} max=${max} focusable=${false} first=${!i} />`)}
    ${to < all.length && html`<span class="cut">…</span>`}
  </div>`;
}

// Arrow keys move over the tokens of a group of strips; the Tab key stops once in the group.
export function moveOverTokens(event) {
  const token = event.target.closest?.(".tok");
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down", Home: "home", End: "end" }[event.key];
  if (!token || step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  const group = event.currentTarget;
  const strip = token.closest(".strip");
  const inStrip = [...strip.querySelectorAll(".tok")];
  let next;
  if (typeof step === "number") {
    const all = [...group.querySelectorAll(".tok")];
    next = all[all.indexOf(token) + step];
  } else if (step === "home" || step === "end") {
    next = inStrip.at(step === "home" ? 0 : -1);
  } else {
    const strips = [...group.querySelectorAll(".strip")];
    const other = strips[strips.indexOf(strip) + (step === "up" ? -1 : 1)];
    next = other && (other.querySelector(".tok.peak") ?? other.querySelector(".tok"));
  }
  event.preventDefault();
  if (next) focusToken(group, next);
}

// The group's one tab stop is the token that last had the focus, at first the first peak.
export function keepTabStop(group) {
  if (!group || group.querySelector('.tok[tabindex="0"]')) return;
  const first = group.querySelector(".tok.peak") ?? group.querySelector(".tok");
  if (first) first.tabIndex = 0;
}

export function focusToken(group, token) {
  for (const other of group.querySelectorAll('.tok[tabindex="0"]')) other.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}
