// The table of latents: only the rows in sight are drawn, so that it stays fast with a million.

import { classes, html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import { count, number, oneIn, quoted, visible } from "./format.js";
import { go } from "./route.js";
import { useSource } from "./app_state.js";

export const ROW = 30;
const CHUNK = 100;
// browsers lose layout precision in elements taller than this; beyond, the scroll bar is scaled
const TALLEST = 30_000_000;

export const COLUMNS = [
  { name: "latent", title: "Latent", width: "58px", show: (row) => row.latent },
  { name: "name", title: "Name", about: "its label, its name, or the token on which it fires most", width: "minmax(100px, 1fr)", show: Title, text: true },
  { name: "density", title: "Density", width: "92px", show: (row) => oneIn(row.density), about: "share of the collected tokens or images on which it fires" },
  { name: "max", title: "Max", width: "64px", show: (row) => number(row.max), about: "largest activation" },
  { name: "mean", title: "Mean", width: "64px", show: (row) => number(row.mean), about: "mean activation where it fires" },
  { name: "entropy", title: "Entropy", width: "76px", show: (row) => number(row.entropy), about: "of the tokens or labels on which it fires, in bits" },
  { name: "norm", title: "Norm", width: "64px", show: (row) => number(row.norm), about: "length of its atom" },
  { name: "cosine", title: "Nearest", width: "78px", show: (row) => number(row.cosine), about: "largest cosine with another atom" },
  { name: "score", title: "Score", width: "64px", show: (row) => number(row.score), about: "AUROC of its name on held-out examples" },
  { name: "stability", title: "Stable", width: "70px", show: (row) => number(row.stability), about: "how nearly other trainings find it again, 0 to 1 (sae match)" },
  { name: "detection", title: "Detects", width: "78px", show: (row) => number(row.detection), about: "how surely its name finds the texts in which it fires among those of near latents; 0.5 is chance", judged: true },
  { name: "fuzzing", title: "Fuzzing", width: "76px", show: (row) => number(row.fuzzing), about: "how surely its name tells the tokens at which it fires from those of near latents; 0.5 is chance", judged: true },
  { name: "simulation", title: "Simulates", width: "86px", show: (row) => number(row.simulation), about: "correlation of the strengths predicted from its name with the true ones; 0 is chance", judged: true },
];

function Title(row) {
  const title = row.label || row.name;
  return html`${row.bookmark && html`<span class="star" title="bookmarked">★ </span>`}${title
    ? html`<span class=${row.label ? "label" : "name"} title=${title}>${title}</span>`
    : row.token
      ? html`<code class="token-name" title=${visible(row.token)}>${quoted(row.token)}</code>`
      : html`<span class="muted">never fires</span>`}`;
}

// The rows of a query, loaded in chunks when they come into sight.
export class RowCache {
  constructor(source, run, query, changed) {
    Object.assign(this, { source, run, query, changed });
    this.chunks = new Map();
    this.total = null;
    this.of = null;
    this.error = null;
    this.stopped = new AbortController();
  }

  stop() {
    this.stopped.abort();
  }

  get(index) {
    return this.chunks.get(Math.floor(index / CHUNK))?.[index % CHUNK];
  }

  want(first, last) {
    const from = Math.max(0, Math.floor(first / CHUNK));
    const to = Math.floor(Math.min(last, (this.total ?? CHUNK) - 1) / CHUNK);
    for (let chunk = from; chunk <= to; chunk++) if (!this.chunks.has(chunk)) this.load(chunk);
  }

  async load(chunk, find) {
    this.chunks.set(chunk, null);
    try {
      const got = await this.source.window(this.run, this.query, chunk * CHUNK, CHUNK, find, this.stopped.signal);
      this.chunks.set(chunk, got.rows);
      Object.assign(this, { total: got.total, of: got.of, error: null });
      this.changed();
      return got;
    } catch (error) {
      if (error.name === "AbortError") return null;
      this.chunks.delete(chunk);
      this.error = error.message;
      this.changed();
      return null;
    }
  }

  async row(index) {
    if (index < 0 || (this.total != null && index >= this.total)) return null;
    if (!this.get(index)) await this.load(Math.floor(index / CHUNK));
    return this.get(index) ?? null;
  }
}

export function Table({ rows, columns, sort, selected, place, onOpen }) {
  const frame = useRef();
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  const total = rows.total ?? 0;
  const full = total * ROW;
  const tall = Math.min(full, TALLEST);
  // pixels of the list for each pixel of the scroll bar
  const scale = full > tall ? (full - height) / (tall - height) : 1;
  const first = Math.max(0, Math.floor((top * scale) / ROW) - 6);
  const last = Math.min(total - 1, first + Math.ceil(height / ROW) + 12);

  useLayoutEffect(() => {
    const watch = new ResizeObserver(() => frame.current && setHeight(frame.current.clientHeight));
    watch.observe(frame.current);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    // while the reader scrolls fast, nothing is loaded
    const timer = setTimeout(() => rows.want(first, last), 40);
    return () => clearTimeout(timer);
  }, [rows, first, last, total]);
  useEffect(() => {
    if (place == null) return;
    const [from, to] = [(place * ROW) / scale, ((place + 1) * ROW) / scale];
    const seen = frame.current;
    if (from < seen.scrollTop || to > seen.scrollTop + seen.clientHeight)
      seen.scrollTop = Math.max(0, from - seen.clientHeight / 2);
  }, [place, rows]);

  const grid = { gridTemplateColumns: columns.map((column) => column.width).join(" ") };
  const shown = Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i);
  return html`<div class="table" role="grid" aria-rowcount=${total} aria-label="Latents" data-testid="table">
    <div class="head" role="row" style=${grid}>
      ${columns.map((column) => html`<${Head} key=${column.name} column=${column} sort=${sort} />`)}
    </div>
    <div
      class="frame"
      ref=${frame}
      tabindex="0"
      data-testid="table-frame"
      aria-activedescendant=${place == null ? undefined : `row-${place}`}
      onScroll=${(event) => setTop(event.currentTarget.scrollTop)}
    >
      <div style=${{ height: `${tall}px`, position: "relative" }}>
        <div class="rows" style=${{ transform: `translateY(${top + (first * ROW - top * scale)}px)` }}>
          ${shown.map((index) => {
            const row = rows.get(index);
            return html`<div
              key=${index}
              id=${`row-${index}`}
              role="row"
              aria-rowindex=${index + 1}
              aria-selected=${row?.latent === selected}
              class=${classes("row", row && row.latent === selected && "selected", row && !row.count && "dead")}
              style=${grid}
              data-testid="row"
              data-latent=${row?.latent}
              onClick=${() => row && onOpen(row.latent, index)}
            >
              ${row
                ? columns.map(
                    (column) =>
                      html`<div key=${column.name} role="gridcell" class=${column.text ? "text" : "num"} dir=${column.text ? "auto" : undefined}>
                        ${column.show(row)}
                      </div>`,
                  )
                : html`<div class="muted" role="gridcell">…</div>`}
            </div>`;
          })}
        </div>
      </div>
    </div>
  </div>`;
}

function Head({ column, sort }) {
  const name = sort.replace(/^-/, "");
  const down = sort.startsWith("-");
  const mine = name === column.name;
  const falling = !["latent", "name"].includes(column.name);
  const next = mine ? (down ? column.name : `-${column.name}`) : falling ? `-${column.name}` : column.name;
  return html`<div role="columnheader" aria-sort=${mine ? (down ? "descending" : "ascending") : "none"} class=${column.text ? "text" : "num"}>
    <button data-testid=${`sort-${column.name}`} title=${column.about} onClick=${() => go({ params: { sort: next === "latent" ? "" : next } }, { replace: true })}>
      ${column.title}${mine && html`<span class="arrow" aria-hidden="true">${down ? "↓" : "↑"}</span>`}
    </button>
  </div>`;
}

// The rows of the current query, loaded again whenever the query or the store's revision changes.
export function useRows(run, query, revision) {
  const source = useSource();
  const [, redraw] = useState(0);
  const [rows, setRows] = useState(null);
  const key = JSON.stringify([run, query, revision]);
  useEffect(() => {
    const made = new RowCache(source, run, query, () => redraw((n) => n + 1));
    made.load(0).then(() => setRows(made));
    return () => made.stop();
  }, [key]);
  return rows;
}

export const liveCount = (rows) => (rows ? `${count(rows.total)} of ${count(rows.of)}` : "…");
