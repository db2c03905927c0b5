// The page: its header, messages, and the part that the address names.

import { html, render, useEffect, useMemo, useRef, useState } from "./view.js";
import { count, number } from "./format.js";
import { current, go, link, pinsOf, useRoute } from "./route.js";
import { AppState } from "./app_state.js";
import { Compare } from "./compare.js";
import { Help, useKeys } from "./help.js";
import { HttpSource } from "./source_http.js";
import { noSteering, wordsOf } from "./kinds.js";
import { Latents } from "./latents.js";
import { Prompt } from "./prompt.js";
import { Collection, Report } from "./report.js";
import { Search } from "./search.js";
import { Steer } from "./steer.js";
import { StaticSource } from "./source_static.js";
import { useTheme } from "./theme.js";
import { TokenTip } from "./tip.js";

const POLL = 3000;

function App({ source, first }) {
  const route = useRoute();
  const [runs, setRuns] = useState(first);
  const [message, say] = useState(null);
  const [help, setHelp] = useState(false);
  const keys = useRef({});
  useKeys(keys);
  const run = Math.min(Number(route.params.run) || 0, runs.length - 1);
  const info = runs[run];

  async function refresh() {
    try {
      setRuns(await source.runs());
    } catch (error) {
      say(error.message);
    }
  }
  // a run that is still being collected is polled often, a finished one from time to time
  const unfinished = runs.some((each) => !each.features?.finished);
  useEffect(() => {
    if (!source.live) return;
    const timer = setInterval(() => document.hidden || refresh(), unfinished ? POLL : 10 * POLL);
    return () => clearInterval(timer);
  }, [unfinished]);
  useEffect(() => {
    document.title = `${route.latent != null && route.page === "latents" ? `#${route.latent} · ` : ""}${info.name} · Sparsight`;
  }, [route, info.name]);

  const search = useRef();
  keys.current = { "/": () => search.current.focus(), "?": () => setHelp(true) };
  const pins = pinsOf(route);
  const state = useMemo(() => ({ source, runs, say, refresh, pins }), [runs, route]);
  return html`<${AppState.Provider} value=${state}>
    <${Header} route=${route} run=${run} runs=${runs} source=${source} pins=${pins} search=${search} onHelp=${() => setHelp(true)} />
    ${info.features && !info.features.finished && html`<${Progress} features=${info.features} />`}
    ${message && html`<p class="message" role="alert" data-testid="message">${message} <button class="quiet" onClick=${() => say(null)}>Dismiss</button></p>`}
    <${Page} route=${route} run=${run} info=${info} keys=${keys} source=${source} />
    <${Help} open=${help} kind=${info.kind} onClose=${() => setHelp(false)} />
    <${TokenTip} />
  <//>`;
}

function Page({ route, run, info, keys, source }) {
  const parts = { route, run, info, keys };
  if (route.page === "run") return html`<${Report} ...${parts} />`;
  if (!info.features)
    return html`<main class="page"><section class="card"><h2>Nothing to show yet</h2><${Collection} info=${info} /></section></main>`;
  if (route.page === "compare") return html`<${Compare} ...${parts} />`;
  if (route.page === "search") return html`<${Search} ...${parts} />`;
  const reads = source.live && info.kind === "language";
  if (route.page === "prompt" && reads) return html`<${Prompt} key=${run} ...${parts} />`;
  if (route.page === "steer" && reads)
    return noSteering(info.features)
      ? html`<main class="page"><p class="muted" data-testid="no-steering">${noSteering(info.features)}</p></main>`
      : html`<${Steer} key=${run} ...${parts} />`;
  return html`<${Latents} ...${parts} />`;
}

function Header({ route, run, runs, source, pins, search, onHelp }) {
  const [theme, nextTheme] = useTheme();
  const tabs = [
    ["latents", "Latents"],
    ...(source.live && runs[run].kind === "language" ? [["prompt", "Prompt"]] : []),
    ...(source.live && runs[run].kind === "language" && !noSteering(runs[run].features ?? {}) ? [["steer", "Steer"]] : []),
    ["compare", pins.length ? `Compare (${pins.length})` : "Compare"],
    ["run", "Run"],
  ];
  useEffect(() => {
    if (document.activeElement !== search.current) search.current.value = route.params.q ?? "";
  }, [route.params.q]);
  return html`<header class="top">
    <a class="brand" href="#/latents" data-testid="brand"><span class="mark" aria-hidden="true"><i></i><i></i><i></i></span>Sparsight</a>
    ${runs.length > 1
      ? html`<select aria-label="Run" data-testid="run-select" value=${run} onChange=${(event) => go({ latent: null, params: { run: event.currentTarget.value } })}>
          ${runs.map((each, i) => html`<option key=${i} value=${i}>${each.name}</option>`)}
        </select>`
      : html`<span class="run-name" dir="auto" title=${runs[0].name}>${runs[0].name}</span>`}
    <nav aria-label="Parts of the page">
      ${tabs.map(
        ([page, title]) =>
          html`<a key=${page} data-testid=${`tab-${page}`} aria-current=${route.page === page ? "page" : undefined} href=${link({ page, latent: null })}>${title}</a>`,
      )}
    </nav>
    <form
      class="search"
      role="search"
      onSubmit=${(event) => {
        event.preventDefault();
        if (search.current.value.trim()) go({ page: "search", latent: null, params: { q: search.current.value.trim() } });
      }}
    >
      <input
        type="search"
        ref=${search}
        placeholder=${runs[run].kind === "image" ? "Search names, labels  ( / )" : "Search names, tokens, text  ( / )"}
        aria-label="Search names, labels, logit tokens and example text"
        data-testid="search"
        onKeyDown=${(event) => event.key === "Escape" && event.currentTarget.blur()}
      />
    </form>
    <button class="icon" data-testid="theme" title=${`Colours: ${theme}`} aria-label=${`Colours: ${theme}; change`} onClick=${nextTheme}>
      ${{ auto: "◐", light: "☀", dark: "☾" }[theme]}
    </button>
    <button class="icon" data-testid="help-open" title="Keys (?)" aria-label="Keys" onClick=${onHelp}>?</button>
  </header>`;
}

function Progress({ features }) {
  return html`<p class="collecting" role="status" data-testid="collecting-bar">
    <progress max="1" value=${features.progress}></progress>
    Collecting: ${number(100 * features.progress)}%, ${count(features.tokens)} ${wordsOf(features).units} so far. The page is updated meanwhile.
  </p>`;
}

async function start() {
  // the token is in a cookie now: keep it out of the address bar and the history
  if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname + location.hash);
  const source = globalThis.SPARSIGHT ? new StaticSource(globalThis.SPARSIGHT) : new HttpSource();
  const place = document.getElementById("app");
  try {
    const runs = await source.runs();
    place.replaceChildren();
    if (!location.hash) history.replaceState(null, "", `#/${current().page}`);
    render(html`<${App} source=${source} first=${runs} />`, place);
  } catch (error) {
    place.replaceChildren();
    render(html`<p class="error pad" role="alert" data-testid="error">${error.message}</p>`, place);
  }
}

start();
