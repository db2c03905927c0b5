// A latent's activations: counts and activations on log axes, with a range that can be selected.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import { count, number, percent } from "./format.js";
import { wordsOf } from "./kinds.js";

const H = 150;
const PAD = { left: 44, right: 18, top: 8, bottom: 24 };

export function Histogram({ record, features, range, onRange, small = false }) {
  const { tokens } = features;
  const { units } = wordsOf(features);
  const svg = useRef();
  const [drag, setDrag] = useState(null);
  // drawn in screen pixels, so that its text has the same size everywhere
  const [W, setW] = useState(560);
  useLayoutEffect(() => {
    if (!svg.current) return;
    const watch = new ResizeObserver(() => svg.current && setW(Math.max(160, svg.current.clientWidth)));
    watch.observe(svg.current);
    return () => watch.disconnect();
  }, [record.latent]);
  const height = small ? 96 : H;
  const { bins, silent } = binned(record.histogram);
  useEffect(() => setDrag(null), [record.latent]);
  if (!bins.length)
    return html`<div class="histogram" data-testid="histogram"><p class="muted">It fired on none of ${count(tokens)} ${units}.</p></div>`;
  const low = Math.log2(bins[0].low);
  const high = Math.log2(bins.at(-1).high);
  const most = Math.log10(Math.max(...bins.map((b) => b.count)) + 1);
  const x = (value) => PAD.left + ((Math.log2(value) - low) / (high - low)) * (W - PAD.left - PAD.right);
  const y = (n) => PAD.top + (1 - Math.log10(n + 1) / (most || 1)) * (height - PAD.top - PAD.bottom);
  const at = (event) => {
    const box = svg.current.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * W;
    const share = (px - PAD.left) / (W - PAD.left - PAD.right);
    return 2 ** (low + Math.max(0, Math.min(1, share)) * (high - low));
  };
  const brush = drag ? [Math.min(...drag), Math.max(...drag)] : range;
  const finish = (event) => {
    if (!drag) return;
    const [from, to] = [Math.min(drag[0], at(event)), Math.max(drag[0], at(event))];
    setDrag(null);
    onRange(Math.abs(x(to) - x(from)) < 4 ? null : [from, to]);
  };
  const total = bins.reduce((sum, bin) => sum + bin.count, 0);
  return html`<div class="histogram" data-testid="histogram">
    <svg
      ref=${svg}
      viewBox=${`0 0 ${W} ${height}`}
      height=${height}
      role="img"
      aria-label=${`Histogram of ${count(total)} activations from ${number(bins[0].low)} to ${number(bins.at(-1).high)}`}
      data-testid="histogram-plot"
      onPointerDown=${(event) => {
        if (!onRange || event.button) return;
        event.currentTarget.setPointerCapture(event.pointerId);
        setDrag([at(event), at(event)]);
      }}
      onPointerMove=${(event) => drag && setDrag([drag[0], at(event)])}
      onPointerUp=${finish}
      onPointerCancel=${() => setDrag(null)}
    >
      ${countTicks(10 ** most - 1).map(
        (n) =>
          html`<g key=${n} class="tick">
            <line x1=${PAD.left} x2=${W - PAD.right} y1=${y(n)} y2=${y(n)} />
            <text x=${PAD.left - 6} y=${y(n)} dy="0.32em" text-anchor="end">${short(n)}</text>
          </g>`,
      )}
      ${bins.map(
        (bin) =>
          html`<rect
            key=${bin.low}
            class=${brush && (bin.high <= brush[0] || bin.low >= brush[1]) ? "bar outside" : "bar"}
            data-testid="bar"
            data-count=${bin.count}
            x=${x(bin.low) + 0.75}
            width=${Math.max(1, x(bin.high) - x(bin.low) - 1.5)}
            y=${y(bin.count)}
            height=${Math.max(bin.count ? 1 : 0, height - PAD.bottom - y(bin.count))}
          >
            <title>${number(bin.low)} to ${number(bin.high)}: ${count(bin.count)} ${units}</title>
          </rect>`,
      )}
      ${valueTicks(low, high, W / 80).map(
        (value) => html`<text key=${value} class="axis" x=${x(value)} y=${height - 8} text-anchor="middle">${number(value)}</text>`,
      )}
      ${brush &&
      html`<rect
        class="brush"
        data-testid="brush"
        x=${x(Math.max(brush[0], bins[0].low))}
        width=${Math.max(1, x(Math.min(brush[1], bins.at(-1).high)) - x(Math.max(brush[0], bins[0].low)))}
        y=${PAD.top}
        height=${height - PAD.top - PAD.bottom}
      />`}
    </svg>
    <p class="under" data-testid="zero-mass">
      Silent on <b>${percent(silent / tokens)}</b> of ${count(tokens)} ${units}; fires on ${count(total)}.
      ${onRange &&
      (range
        ? html` <button class="quiet" data-testid="clear-range" onClick=${() => onRange(null)}>Clear the range</button>`
        : html` <span class="muted">Drag over the bars to see the examples of a range.</span>`)}
    </p>
  </div>`;
}

// Half-octave bins with both edges (2^e, 1.5 × 2^e, 2^(e+1), ...), from the first to the last that is not empty.
export function binned({ low_exponents: lows, counts, zeros }) {
  const all = lows.map((low, i) => ({ low, high: low * (Math.log2(low) % 1 ? 4 / 3 : 1.5), count: counts[i] }));
  const filled = all.map((bin) => bin.count > 0);
  return { bins: all.slice(Math.max(0, filled.indexOf(true)), filled.lastIndexOf(true) + 1), silent: zeros };
}

function countTicks(most) {
  const powers = Math.floor(Math.log10(most + 1));
  const step = Math.max(1, Math.ceil(powers / 4));
  return Array.from({ length: Math.floor(powers / step) + 1 }, (_, i) => 10 ** (i * step));
}

function valueTicks(low, high, most) {
  const step = Math.max(1, Math.ceil((high - low) / most));
  const first = Math.ceil(low);
  return Array.from({ length: Math.floor((high - first) / step) + 1 }, (_, i) => 2 ** (first + i * step));
}

const short = (n) => (n >= 1e6 ? `${n / 1e6}M` : n >= 1e3 ? `${n / 1e3}k` : String(n));
