// A text of one's own: its tokens, the latents that fire at each, and what sets two texts apart.

import { classes, html, useEffect, useMemo, useRef, useState } from "./view.js";
import { count, number, oneIn, signed } from "./format.js";
import { sendsOn } from "./help.js";
import { go, link } from "./route.js";
import { Brief } from "./latent.js";
import { Token, keepTabStop, moveOverTokens } from "./tokens.js";
import { useSource } from "./app_state.js";

const CUTS = [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001];
const SHOWN = 60;

export function Prompt({ route, run }) {
  const source = useSource();
  const [texts, setTexts] = useState([route.params.a ?? "", route.params.b ?? ""]);
  const [two, setTwo] = useState(Boolean(route.params.b));
  const [answers, setAnswers] = useState([null, null]);
  const [state, setState] = useState({ busy: false, error: null });
  const [chosen, setChosen] = useState(null);
  const [latent, setLatent] = useState(null);
  const [cut, setCut] = useState(0);

  async function examine(event) {
    event?.preventDefault();
    const asked = two ? texts : texts.slice(0, 1);
    setState({ busy: true, error: null });
    try {
      const got = [];
      for (const text of asked) got.push(await source.prompt(run, text));
      setAnswers([got[0], got[1] ?? null]);
      setChosen(null);
      setLatent(null);
      setState({ busy: false, error: null });
      go({ params: { a: texts[0], b: two ? texts[1] : "" } }, { replace: true });
    } catch (error) {
      setState({ busy: false, error: error.message });
    }
  }
  useEffect(() => {
    if (route.params.a) examine();
  }, [run]);

  const ready = !state.busy && texts[0].trim() !== "" && (!two || texts[1].trim() !== "");
  const density = CUTS[cut];
  const listed = useMemo(() => rank(answers, chosen, density), [answers, chosen, density]);
  const max = latent != null ? strongest(answers, latent) : null;
  return html`<main class="prompt page">
    <form class="card" onSubmit=${examine} onKeyDown=${sendsOn(ready, examine)}>
      <div class=${two ? "texts two" : "texts"}>
        ${(two ? [0, 1] : [0]).map(
          (i) =>
            html`<textarea
              key=${i}
              rows="3"
              dir="auto"
              aria-label=${i ? "Second prompt" : "Prompt"}
              placeholder=${i ? "A second text, to set apart from the first" : "Type a text and see which latents fire at each token"}
              data-testid=${i ? "prompt-b" : "prompt-a"}
              value=${texts[i]}
              onInput=${(event) => setTexts(texts.with(i, event.currentTarget.value))}
            ></textarea>`,
        )}
      </div>
      <div class="line">
        <button class="primary" type="submit" data-testid="prompt-run" title="Ctrl+Enter, or Cmd+Enter" disabled=${!ready}>
          ${state.busy ? "Reading…" : "Examine"}
        </button>
        <label class="check">
          <input type="checkbox" data-testid="prompt-contrast" checked=${two} onChange=${(event) => setTwo(event.currentTarget.checked)} />
          Contrast two prompts
        </label>
        <span class="grow"></span>
        <label class="slider">
          Hide latents that fire on more than
          <input
            type="range"
            min="0"
            max=${CUTS.length - 1}
            value=${cut}
            data-testid="density-cut"
            aria-valuetext=${oneIn(density)}
            onInput=${(event) => setCut(Number(event.currentTarget.value))}
          />
          <b class="num" data-testid="density-cut-value">${cut ? oneIn(density) : "nothing hidden"}</b>
        </label>
      </div>
      ${state.error && html`<p class="error" role="alert" data-testid="error">${state.error}</p>`}
    </form>
    ${answers[0] &&
    html`<div class="prompt-answer">
      <section class="card">
        ${answers.map(
          (answer, which) =>
            answer &&
            html`<${PromptTokens}
              key=${which}
              which=${which}
              answer=${answer}
              latent=${latent}
              max=${max}
              chosen=${chosen}
              density=${density}
              onChoose=${(at) => setChosen(chosen && chosen.which === which && chosen.at === at ? null : { which, at })}
            />`,
        )}
        <p class="muted">
          ${latent == null
            ? "Colour: the strongest latent at each token. Choose a token to see its latents, or a latent to see its tokens."
            : html`Colour: latent #${latent}. <button class="quiet" onClick=${() => setLatent(null)}>All latents</button>`}
        </p>
      </section>
      <section class="card">
        <h3 data-testid="prompt-listing">
          ${chosen
            ? html`Latents at token ${chosen.at}${answers[1] ? ` of prompt ${"AB"[chosen.which]}` : ""}
                <button class="quiet" data-testid="prompt-all-tokens" onClick=${() => setChosen(null)}>All tokens</button>`
            : answers[1]
              ? "What sets them apart: largest activation in A minus that in B"
              : "Strongest latents of the text"}
        </h3>
        <${PromptLatents} listed=${listed} latent=${latent} onChoose=${setLatent} contrast=${Boolean(answers[1]) && !chosen} />
      </section>
    </div>`}
  </main>`;
}

function PromptTokens({ which, answer, latent, max, chosen, density, onChoose }) {
  const group = useRef();
  useEffect(() => keepTabStop(group.current));
  const allowed = (entry) => (answer.rows[entry.latent]?.density ?? 0) <= density;
  const overall = Math.max(1e-9, ...answer.latents.flatMap((row, i) => (answer.kinds[i] === "ordinary" ? row.filter(allowed).map((e) => e.value) : [])));
  return html`<div class="prompt-tokens" ref=${group} onKeyDown=${moveOverTokens} data-testid=${which ? "tokens-b" : "tokens-a"}>
    <div class="strip" dir="auto">
      ${answer.tokens.map((text, at) => {
        const row = answer.latents[at].filter((entry) => (latent == null ? allowed(entry) : entry.latent === latent));
        const value = answer.kinds[at] === "ordinary" || latent != null ? (row[0]?.value ?? 0) : 0;
        const piece = { text, value, ids: [answer.token_ids[at]], peak: false };
        return html`<${Token}
          key=${at}
          piece=${piece}
          max=${latent == null ? overall : max}
          focusable=${false}
          role="button"
          aria-pressed=${chosen?.which === which && chosen.at === at}
          extra=${classes("press", answer.kinds[at] !== "ordinary" && "special", chosen?.which === which && chosen.at === at && "chosen")}
          onClick=${() => onChoose(at)}
          onKeyDown=${(event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), onChoose(at))}
        />`;
      })}
    </div>
  </div>`;
}

function PromptLatents({ listed, latent, onChoose, contrast }) {
  if (!listed.length) return html`<p class="muted">No latent passes the density cut-off.</p>`;
  return html`<table class="plain listing-table" data-testid="prompt-latents">
    <thead>
      <tr>
        <th class="num">Latent</th>
        <th>Name or strongest token</th>
        <th class="num">${contrast ? "A − B" : "Activation"}</th>
        <th class="num">of its max</th>
        <th class="num">Density</th>
        <th></th>
      </tr>
    </thead>
    <tbody>
      ${listed.slice(0, SHOWN).map(
        (entry) =>
          html`<tr key=${entry.latent} data-testid="prompt-latent" data-latent=${entry.latent} class=${entry.latent === latent ? "selected" : ""}>
            <td class="num"><a href=${link({ page: "latents", latent: entry.latent })}>#${entry.latent}</a></td>
            <td class="brief-cell" dir="auto"><${Brief} item=${entry.row} /></td>
            <td class=${contrast ? (entry.value < 0 ? "num minus" : "num plus") : "num"}>${contrast ? signed(entry.value) : number(entry.value)}</td>
            <td class="num">${entry.row.max ? `${number(Math.round((100 * Math.abs(entry.value)) / entry.row.max))}%` : "–"}</td>
            <td class="num">${oneIn(entry.row.density)}</td>
            <td>
              <button class="quiet" data-testid="show-tokens" aria-pressed=${entry.latent === latent} onClick=${() => onChoose(entry.latent === latent ? null : entry.latent)}>
                Show tokens
              </button>
            </td>
          </tr>`,
      )}
    </tbody>
    ${listed.length > SHOWN && html`<caption>${count(SHOWN)} of ${count(listed.length)}</caption>`}
  </table>`;
}

// Latents by their largest activation over ordinary tokens; with two answers by the difference of those.
function rank(answers, chosen, density) {
  if (!answers[0]) return [];
  const maxima = answers.map((answer) => (answer ? maximaOf(answer) : new Map()));
  let values = maxima[0];
  if (chosen) values = new Map(answers[chosen.which].latents[chosen.at].map((entry) => [entry.latent, entry.value]));
  else if (answers[1]) {
    const all = new Set([...maxima[0].keys(), ...maxima[1].keys()]);
    values = new Map([...all].map((i) => [i, (maxima[0].get(i) ?? 0) - (maxima[1].get(i) ?? 0)]));
  }
  const row = (i) => answers[0].rows[i] ?? answers[1]?.rows[i] ?? {};
  return [...values]
    .map(([latent, value]) => ({ latent, value, row: row(latent) }))
    .filter((entry) => (entry.row.density ?? 0) <= density && entry.value !== 0)
    .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

function maximaOf(answer) {
  const found = new Map();
  answer.latents.forEach((row, at) => {
    if (answer.kinds[at] !== "ordinary") return;
    for (const { latent, value } of row) found.set(latent, Math.max(value, found.get(latent) ?? 0));
  });
  return found;
}

function strongest(answers, latent) {
  const values = answers.flatMap((answer) => answer?.latents.flat().filter((e) => e.latent === latent) ?? []);
  return Math.max(1e-9, ...values.map((entry) => entry.value));
}
