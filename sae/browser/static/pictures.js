// Images of a run, and atoms as images, magnified by whole numbers.

import { html } from "./view.js";
import { number, quoted } from "./format.js";
import { useApp, useSource } from "./app_state.js";

const SIDE = 96;

// Width and height on the screen of an image of this shape: at most `side`, unless the image is larger.
function sized([, height, width], side) {
  const scale = Math.max(1, Math.floor(side / Math.max(height, width)));
  return { width: width * scale, height: height * scale };
}

export function ImageExample({ example, run }) {
  const source = useSource();
  const { features } = useApp().runs[run];
  const label = features.labels ? example.tokens[example.peak] : "";
  const box = placeOf(features.grids, example.position);
  const name = `image ${example.document}${label && `, label ${quoted(label)}`}${box ? `, place ${example.position}` : ""}`;
  return html`<figure class="shot" data-testid="example" data-value=${example.value} tabindex="-1" title=${name}>
    <div class="pixels">
      <img src=${source.imageAddress(run, example.document, features.revision)} alt=${name} loading="lazy" ...${sized(features.shape, SIDE)} />
      ${box && html`<i class="place" data-testid="place" style=${box}></i>`}
    </div>
    <figcaption><b class="num" data-testid="example-value">${number(example.value)}</b> ${label && html`<span class="muted" dir="auto">${quoted(label, 14)}</span>`}</figcaption>
  </figure>`;
}

// The place in the image of a row of the code, in percent of its sides; null for a code of one row.
export function placeOf(grids, position) {
  for (const [rows, columns] of grids) {
    if (position < rows * columns) {
      const [row, column] = [Math.floor(position / columns), position % columns];
      return { left: `${(100 * column) / columns}%`, top: `${(100 * row) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` };
    }
    position -= rows * columns;
  }
  return null;
}

// A latent's atom as an image.
export function Atom({ run, latent, side = 128 }) {
  const source = useSource();
  const { features } = useApp().runs[run];
  const said =
    features.positions > 1
      ? "its atom, decoded from all places"
      : `what it adds to an image: ${features.shape[0] === 3 ? "lighter and darker than grey" : "purple brighter, orange darker"}`;
  return html`<figure class="atom" data-testid="atom">
    <div class="pixels"><img src=${source.atomAddress(run, latent, features.revision)} alt=${said} ...${sized(features.shape, side)} /></div>
    <figcaption class="muted">${said}</figcaption>
  </figure>`;
}

// A small picture of an atom before a latent's name; nothing for a run on text.
export function Thumb({ run, latent }) {
  const source = useSource();
  const { features } = useApp().runs[run];
  if (features.kind !== "image") return null;
  return html`<img class="thumb" data-testid="thumb" alt="" loading="lazy" fetchpriority="low" src=${source.atomAddress(run, latent, features.revision)} />`;
}
