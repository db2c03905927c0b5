"""Example latents of a report: one for each part of the density range, with the text that they fire on."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae.base.tables import number
from sae.features.store.store import FeatureStore
from sae.reporting.figures import IllustratedPage
from sae.reporting.subjects import Subject

SHOWN, EXAMPLES, SHADES = 12, 4, 10
STYLE = """
.latents { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 10px; }
.latent { border: 1px solid var(--line); border-radius: 6px; padding: 8px 10px; min-width: 0; }
.latent h3 { margin: 0; font-size: 14px; }
.latent p { margin: 4px 0 0; font-size: 13px; overflow-wrap: anywhere; }
.latent .muted { font-size: 12px; }
.latent mark { color: inherit; border-radius: 2px; }
"""


def latents(page: IllustratedPage, subjects: Sequence[Subject]) -> None:
    """The latents of every run whose features were collected."""
    for subject in subjects:
        store = subject.features
        if store is None:
            page.leave_out("Latents", "sae features RUN")
            continue
        chosen = spread(store.scalars["density"], SHOWN)
        page.section(
            f"Latents of {subject.name}" if len(subjects) > 1 else "Latents",
            f"{len(chosen)} of {store.width:,} latents, from the densest to the rarest at equal distances in "
            "rank, not picked by hand; for each the places where it fires most. "
            "Colour is the activation as a share of the largest.",
        )
        page.insert('<div class="latents">' + "".join(_card(subject, store, latent) for latent in chosen) + "</div>")


def spread(density: np.ndarray, count: int) -> list[int]:
    """At most `count` latents that fire, at equal distances in the rank of their density, the densest first."""
    firing = np.flatnonzero(density > 0)
    order = firing[np.argsort(-density[firing], kind="stable")]
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return order[np.unique(places)].tolist() if len(order) else []


def _card(subject: Subject, store: FeatureStore, latent: int) -> str:
    record = store.record(latent)
    named = store.annotations.names().get(latent, {})
    label = (store.annotations.all().get(latent) or {}).get("label") or named.get("name")
    title = f"#{latent:,}" + (f" {html.escape(str(label))}" if label else "")
    facts = [f"fires on {record['density']:.2%} of the tokens", f"largest {number(record['max'])}"]
    if isinstance(named.get("score"), (int, float)):
        facts.append(f"AUROC of the name {named['score']:.2f} (chance .5)")
    scores = subject.stability
    if scores is not None and np.isfinite(scores.stability[latent]):
        facts.append(f"stability {scores.stability[latent]:.2f} (chance {scores.info['chance_mean']:.2f})")
    top = [example for example in record["examples"] if example["band"] == "top"][:EXAMPLES]
    lines = "".join(f"<p>{_text(example, record['max'])}</p>" for example in top)
    return f'<div class="latent"><h3>{title}</h3><p class="muted">{html.escape(", ".join(facts))}</p>{lines}</div>'


def _text(example: dict[str, Any], largest: float) -> str:
    """An example's tokens, those on which the latent fires in colour."""
    parts = []
    for token, value in zip(example["tokens"], example["values"], strict=True):
        text = html.escape(token)
        shade = min(SHADES, int(np.ceil(SHADES * value / largest))) if largest > 0 else 0
        parts.append(f'<mark style="background: var(--a{shade})">{text}</mark>' if shade > 0 else text)
    return "".join(parts)
