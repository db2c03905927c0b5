// Steering: the text that the model generates with some latents pushed, beside the plain text.

import { html, useState } from "./view.js";
import { number, signed, visible } from "./format.js";
import { go, link } from "./route.js";
import { Brief } from "./latent.js";
import { useLoaded, useSource } from "./app_state.js";
import { sendsOn } from "./help.js";

const MODES = { add: "add", set: "set to", ablate: "remove" };

// "123:add:2,55:ablate:0" <-> [{latent, mode, strength}]
export function pushesOf({ params }) {
  return (params.push ?? "").split(",").flatMap((part) => {
    const [latent, mode = "add", strength = "1"] = part.split(":");
    return /^\d{1,9}$/.test(latent) && MODES[mode] ? [{ latent: Number(latent), mode, strength: Number(strength) || 0 }] : [];
  });
}

export function Steer({ route, run }) {
  const source = useSource();
  const pushes = pushesOf(route);
  const [prompt, setPrompt] = useState(route.params.a ?? "");
  const [settings, setSettings] = useState({ tokens: 40, temperature: 0, seed: 0 });
  const [state, setState] = useState({ busy: false, error: null, answer: null });
  const [added, setAdded] = useState("");
  const setPushes = (next) =>
    go({ params: { push: next.map((p) => `${p.latent}:${p.mode}:${p.strength}`).join(",") } }, { replace: true });
  const change = (i, part) => setPushes(pushes.with(i, { ...pushes[i], ...part }));

  async function generate(event) {
    event.preventDefault();
    setState({ ...state, busy: true, error: null });
    try {
      const answer = await source.steer(run, { prompt, interventions: pushes, ...settings });
      setState({ busy: false, error: null, answer });
      go({ params: { a: prompt } }, { replace: true });
    } catch (error) {
      setState({ busy: false, error: error.message, answer: null });
    }
  }
  function add(event) {
    event.preventDefault();
    const latent = added.trim().replace(/^#/, "");
    if (!/^\d{1,9}$/.test(latent) || pushes.some((p) => p.latent === Number(latent))) return;
    setPushes([...pushes, { latent: Number(latent), mode: "add", strength: 1 }]);
    setAdded("");
  }
  const ready = !state.busy && prompt.trim() !== "" && pushes.length > 0;
  const numeric = (name, title, attributes) =>
    html`<label class="field">
      ${title}
      <input
        type="number"
        data-testid=${`steer-${name}`}
        value=${settings[name]}
        ...${attributes}
        onChange=${(event) => setSettings({ ...settings, [name]: Number(event.currentTarget.value) })}
      />
    </label>`;
  return html`<main class="steer page">
    <section class="card">
      <h3>Latents to steer</h3>
      <p class="muted">Strength is in units of the latent's largest activation in the collected text.</p>
      ${pushes.map((push, i) => html`<${Push} key=${push.latent} run=${run} push=${push} onChange=${(part) => change(i, part)} onRemove=${() => setPushes(pushes.toSpliced(i, 1))} />`)}
      <form class="line" onSubmit=${add}>
        <input placeholder="Latent number" aria-label="Latent number" inputmode="numeric" data-testid="steer-latent" value=${added} onInput=${(event) => setAdded(event.currentTarget.value)} />
        <button type="submit" data-testid="steer-add">Add</button>
      </form>
    </section>
    <form class="card" onSubmit=${generate} onKeyDown=${sendsOn(ready, generate)}>
      <textarea rows="3" dir="auto" aria-label="Prompt" placeholder="The beginning of a text" data-testid="steer-prompt" value=${prompt} onInput=${(event) => setPrompt(event.currentTarget.value)}></textarea>
      <div class="line">
        <button class="primary" type="submit" data-testid="steer-run" title="Ctrl+Enter, or Cmd+Enter" disabled=${!ready}>
          ${state.busy ? "Writing…" : "Generate"}
        </button>
        ${numeric("tokens", "Tokens", { min: 1, max: 256, step: 1 })} ${numeric("temperature", "Temperature", { min: 0, max: 5, step: 0.1 })}
        ${numeric("seed", "Seed", { min: 0, step: 1 })}
      </div>
      ${state.error && html`<p class="error" role="alert" data-testid="error">${state.error}</p>`}
    </form>
    ${state.answer && html`<${Answer} answer=${state.answer} />`}
  </main>`;
}

function Push({ run, push, onChange, onRemove }) {
  const source = useSource();
  const { value, error } = useLoaded(() => source.record(run, push.latent), [run, push.latent]);
  const least = push.mode === "set" ? 0 : -10;
  return html`<div class="push" data-testid="push" data-latent=${push.latent}>
    <a class="id" href=${link({ page: "latents", latent: push.latent })}>#${push.latent}</a>
    <span class="what" dir="auto">${value ? html`<${Brief} item=${value.row} />` : html`<span class="error">${error}</span>`}</span>
    <select aria-label="What is done to it" data-testid="push-mode" value=${push.mode} onChange=${(event) => onChange({ mode: event.currentTarget.value })}>
      ${Object.entries(MODES).map(([mode, title]) => html`<option key=${mode} value=${mode}>${title}</option>`)}
    </select>
    ${push.mode !== "ablate" &&
    html`<input
        type="range"
        min=${least}
        max="10"
        step="0.25"
        aria-label=${`Strength of latent ${push.latent}, in units of its maximum`}
        data-testid="push-strength"
        value=${push.strength}
        onInput=${(event) => onChange({ strength: Number(event.currentTarget.value) })}
      />
      <output class=${push.strength < 0 ? "num minus" : "num plus"}>${signed(push.strength)} × max</output>`}
    <button class="quiet" aria-label=${`Remove latent ${push.latent}`} data-testid="push-remove" onClick=${onRemove}>Remove</button>
  </div>`;
}

function Answer({ answer }) {
  const text = (name, title) =>
    html`<section class="card">
      <h3>${title}</h3>
      <p class="written" dir="auto" data-testid=${`steer-${name}`}><span class="muted">${shown(answer.prompt)}</span>${shown(answer[name])}</p>
    </section>`;
  return html`<div class="side-by-side" data-testid="steer-answer">
      ${text("plain", "Without")} ${text("steered", "With")}
    </div>
    <p class="muted" data-testid="steer-kl">
      Next-token distributions differ by ${number(answer.mean_kl)} nats (KL of steered from plain, mean over the generated tokens).
      ${answer.note && html` Note: ${answer.note}.`}
    </p>`;
}

// Line breaks stay line breaks in running text; all other hidden characters are made visible.
const shown = (text) => text.split("\n").map(visible).join("\n");
