// The page's state is in the address after #, so that a link brings it back, also from file://.
//
//     #/latents/123?sort=-density&filter=density:0.001..&pins=0:12,0:55

import { useEffect, useState } from "./view.js";

export const PAGES = ["latents", "prompt", "steer", "compare", "run", "search"];

export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [page, latent] = path.split("/");
  return {
    page: PAGES.includes(page) ? page : "latents",
    latent: /^\d{1,9}$/.test(latent ?? "") ? Number(latent) : null,
    params: Object.fromEntries(new URLSearchParams(query)),
  };
}

export function address({ page, latent, params }) {
  const kept = Object.entries(params).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(kept).toString();
  return `#/${page}${latent == null ? "" : `/${latent}`}${query ? `?${query}` : ""}`;
}

export const current = () => parse(location.hash);

// Change parts of the state; a null parameter is removed. `replace` leaves no entry in the browser's history.
export function go({ page, latent, params }, { replace = false } = {}) {
  const here = current();
  const next = {
    page: page ?? here.page,
    latent: latent === undefined ? (page && page !== here.page ? null : here.latent) : latent,
    params: { ...here.params, ...params },
  };
  const there = address(next);
  if (there === location.hash) return;
  if (replace) history.replaceState(null, "", there);
  else history.pushState(null, "", there);
  dispatchEvent(new Event("hashchange"));
}

export function link(change) {
  const here = current();
  return address({ page: here.page, latent: null, ...change, params: { ...here.params, ...change.params } });
}

export function useRoute() {
  const [route, set] = useState(current);
  useEffect(() => {
    const update = () => set(current());
    addEventListener("hashchange", update);
    addEventListener("popstate", update);
    update(); // the address may have changed since the first drawing
    return () => {
      removeEventListener("hashchange", update);
      removeEventListener("popstate", update);
    };
  }, []);
  return route;
}

// The part of the address that says what the table shows.
export function queryOf({ params }) {
  return {
    filter: params.filter ?? "",
    text: params.text ?? "",
    mark: params.mark ?? "",
    sort: params.sort ?? "latent",
  };
}

// Pinned latents: [[run, latent], ...], at most four.
export function pinsOf({ params }) {
  return (params.pins ?? "")
    .split(",")
    .map((pin) => pin.split(":").map(Number))
    .filter((pin) => pin.length === 2 && pin.every((n) => Number.isInteger(n) && n >= 0))
    .slice(0, 4);
}

export function togglePin(route, run, latent) {
  const pins = pinsOf(route);
  const rest = pins.filter(([r, l]) => r !== run || l !== latent);
  const next = rest.length < pins.length ? rest : [...pins, [run, latent]].slice(-4);
  go({ params: { pins: next.map((pin) => pin.join(":")).join(",") } }, { replace: true });
}
