// The source of data of a page that `sae browse` serves.

export class HttpSource {
  live = true;

  runs = () => get("api/runs");
  report = (run) => get(`api/runs/${run}/report`);
  record = (run, latent) => get(`api/runs/${run}/latents/${latent}`);
  logits = (run, latent) => get(`api/runs/${run}/latents/${latent}/logits`);
  neighbours = (run, latent) => get(`api/runs/${run}/latents/${latent}/neighbours`);
  coactive = (run, latent) => get(`api/runs/${run}/latents/${latent}/coactive`);
  matches = (run, latent) => get(`api/runs/${run}/latents/${latent}/matches`);
  document = (run, document) => get(`api/runs/${run}/documents/${document}`);
  search = (run, text) => get(`api/runs/${run}/search?${new URLSearchParams({ text })}`);
  prompt = (run, text) => send("POST", `api/runs/${run}/prompt`, { text });
  steer = (run, request) => send("POST", `api/runs/${run}/steer`, request);
  annotate = (run, latent, change) => send("PUT", `api/runs/${run}/latents/${latent}/annotation`, change);

  imageAddress = (run, document, revision) => `api/runs/${run}/images/${document}.png?of=${revision}`;
  atomAddress = (run, latent, revision) => `api/runs/${run}/atoms/${latent}.png?of=${revision}`;

  window(run, query, start, count, find, signal) {
    const params = new URLSearchParams({ ...query, start, count });
    if (find != null) params.set("find", find);
    return get(`api/runs/${run}/latents?${params}`, signal);
  }

  exportAddress(run, kind, query, latents) {
    const params = new URLSearchParams(latents ? { latents: latents.join(",") } : query);
    return `api/runs/${run}/export/${kind}?${params}`;
  }
}

async function get(path, signal) {
  return answer(await fetch(path, { signal }));
}

async function send(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(path, { method, headers, body: JSON.stringify(body) }));
}

async function answer(response) {
  if (response.ok) return response.json();
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error ?? `the server answered ${response.status}`);
}
