// The page of all latents: filters, the table, and the selected latent beside it.

import { html, useEffect, useMemo, useRef, useState } from "./view.js";
import { go, queryOf } from "./route.js";
import { COLUMNS, Table, liveCount, useRows } from "./table.js";
import { ExportMenu } from "./export_menu.js";
import { Latent } from "./latent.js";
import { useApp, useSource } from "./app_state.js";
import { wordsOf } from "./kinds.js";
import { Thumb } from "./pictures.js";

const NARROW = ["latent", "name", "density"];
const RANGES = COLUMNS.filter((column) => !["latent", "name"].includes(column.name));

export function Latents({ route, run, info, keys }) {
  const source = useSource();
  const query = queryOf(route);
  const { features } = info;
  const rows = useRows(run, query, `${features.revision}/${features.marks}`);
  const wide = route.params.view === "table";
  const [place, setPlace] = useState(null);
  const first = rows?.get(0)?.latent;
  const selected = route.latent ?? (wide ? null : (first ?? null));

  // the row of the selected latent, wherever it was selected
  useEffect(() => {
    if (!rows || selected == null) return setPlace(null);
    if (place != null && rows.get(place)?.latent === selected) return;
    if (first === selected) return setPlace(0);
    let wanted = true;
    source.window(run, query, 0, 0, selected).then(
      (got) => wanted && setPlace(got.found),
      () => wanted && setPlace(null),
    );
    return () => (wanted = false);
  }, [rows, selected]);

  async function step(by) {
    const next = place == null ? 0 : place + by;
    const row = await rows?.row(next);
    if (!row) return;
    setPlace(next);
    go({ latent: row.latent }, { replace: true });
  }
  keys.current = { ...keys.current, j: () => step(1), k: () => step(-1) };

  const columns = useMemo(() => chosenColumns(wide, query, features).map((column) => dressed(column, run, features)), [
    wide,
    query.sort,
    query.filter,
    run,
    features.revision,
    features.scorer,
  ]);
  const open = (latent, index) => {
    setPlace(index);
    go({ latent, params: { view: "" } });
  };
  return html`<main class=${wide ? "latents wide" : route.latent == null ? "latents listing" : "latents"}>
    <section class="list" aria-label="All latents">
      <${Filters} query=${query} rows=${rows} run=${run} wide=${wide} features=${features} />
      ${rows?.error && html`<p class="error" role="alert" data-testid="error">${rows.error}</p>`}
      ${rows
        ? html`<${Table} rows=${rows} columns=${columns} sort=${query.sort} selected=${selected} place=${place} onOpen=${open} />`
        : html`<p class="muted pad">Loading…</p>`}
    </section>
    ${!wide &&
    html`<section class="detail" data-testid="detail">
      <button class="back quiet" data-testid="back" onClick=${() => go({ latent: null })}>‹ All latents</button>
      ${selected != null
        ? html`<${Latent} run=${run} latent=${selected} info=${info} route=${route} keys=${keys} />`
        : rows && html`<p class="muted pad">No latent matches these filters.</p>`}
    </section>`}
  </main>`;
}

// Beside a latent there is room for a few columns: the most important, and one by which rows are sorted or filtered.
function chosenColumns(wide, query, features) {
  // columns of scores of names, where there are any
  if (wide) return COLUMNS.filter((column) => !column.judged || features.scorer);
  const asked = [query.sort.replace(/^-/, ""), ...parseRanges(query.filter).map(([name]) => name)];
  const extra = asked.find((name) => RANGES.some((column) => column.name === name)) ?? "max";
  return COLUMNS.filter((column) => NARROW.includes(column.name) || column.name === extra);
}

// The column of names for the run's kind: its title, and pictures of atoms.
function dressed(column, run, features) {
  if (column.judged) return { ...column, about: `${column.about} (judged by ${features.scorer})` };
  if (column.name !== "name") return column;
  const show = (row) => html`<${Thumb} run=${run} latent=${row.latent} />${column.show(row)}`;
  return { ...column, title: wordsOf(features).named, show };
}

function Filters({ query, rows, run, wide, features }) {
  const [open, setOpen] = useState(false);
  const { pins } = useApp();
  const text = useRef();
  const set = (params) => go({ params }, { replace: true });
  const typed = useDelayed((value) => set({ text: value }));
  const ranges = parseRanges(query.filter);
  const change = (name, end, value) => set({ filter: withBound(ranges, name, end, value) });
  const alive = ranges.some(([name, low]) => name === "count" && Number(low) >= 1);
  useEffect(() => {
    if (text.current && document.activeElement !== text.current) text.current.value = query.text;
  }, [query.text]);
  return html`<div class="filters">
    <div class="line">
      <input
        type="search"
        ref=${text}
        placeholder=${`Filter by ${wordsOf(features).find}`}
        aria-label=${`Filter by ${wordsOf(features).find}`}
        data-testid="filter-text"
        onInput=${(event) => typed(event.currentTarget.value)}
      />
      <select
        aria-label="Only latents with"
        data-testid="filter-mark"
        value=${query.mark}
        onChange=${(event) => set({ mark: event.currentTarget.value })}
      >
        <option value="">All</option>
        <option value="named">Named</option>
        <option value="labelled">Labelled</option>
        <option value="bookmarked">Bookmarked</option>
      </select>
      <button data-testid="toggle-ranges" aria-expanded=${open} class=${ranges.length ? "on" : ""} onClick=${() => setOpen(!open)}>
        Ranges${ranges.length ? ` (${ranges.length})` : ""}
      </button>
    </div>
    <div class="line">
      <span class="grow" role="status" data-testid="live-count"><b>${liveCount(rows)}</b> latents</span>
      <label class="check">
        <input
          type="checkbox"
          data-testid="filter-alive"
          checked=${alive}
          onChange=${(event) => change("count", 0, event.currentTarget.checked ? "1" : "")}
        />
        Firing
      </label>
      <${ExportMenu} run=${run} query=${query} total=${rows?.total} pins=${pins} features=${features} />
      <button
        data-testid="toggle-wide"
        aria-pressed=${wide}
        title="Show all columns instead of the selected latent"
        onClick=${() => set({ view: wide ? "" : "table" })}
      >
        ${wide ? "Split" : "Wide"}
      </button>
    </div>
    ${open &&
    html`<div class="ranges" data-testid="ranges">
      ${RANGES.filter((column) => !column.judged || features.scorer).map((column) => {
        const [, low, high] = ranges.find(([name]) => name === column.name) ?? [null, "", ""];
        return html`<div class="range" key=${column.name}>
          <span title=${column.about}>${column.title}</span>
          ${[low, high].map(
            (bound, end) =>
              html`<input
                key=${end}
                inputmode="decimal"
                aria-label=${`${column.title} ${end ? "at most" : "at least"}`}
                placeholder=${end ? "max" : "min"}
                data-testid=${`range-${column.name}-${end ? "high" : "low"}`}
                value=${bound}
                onChange=${(event) => change(column.name, end, event.currentTarget.value.trim())}
              />`,
          )}
        </div>`;
      })}
      <button class="quiet" data-testid="clear-filters" onClick=${() => set({ filter: "", text: "", mark: "" })}>Clear all filters</button>
    </div>`}
  </div>`;
}

// "density:0.001..0.01,max:3.." <-> [["density", "0.001", "0.01"], ["max", "3", ""]]
export function parseRanges(filter) {
  if (!filter) return [];
  return filter.split(",").map((part) => {
    const [name, bounds = ""] = part.split(":");
    const [low, high = ""] = bounds.split("..");
    return [name, low, high];
  });
}

function withBound(ranges, name, end, value) {
  const others = ranges.filter(([other]) => other !== name);
  const range = ranges.find(([other]) => other === name) ?? [name, "", ""];
  const changed = [name, end === 0 ? value : range[1], end === 1 ? value : range[2]];
  const kept = changed[1] || changed[2] ? [...others, changed] : others;
  return kept.map(([column, low, high]) => `${column}:${low}..${high}`).join(",");
}

function useDelayed(act) {
  const timer = useRef();
  return (value) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => act(value), 150);
  };
}
