"""Scores of a latent's name on its page: sentences, intervals, controls, the sortable columns, the exported page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from playwright.sync_api import expect

from browser.conftest import Opened, served
from finished_runs import collected_run
from sae.browser.export import export_static
from sae.config import ExplainConfig
from sae.features.explain.explain import explain
from sae.features.store.annotations import Annotations
from sae.features.store.store import FeatureStore


def test_a_latent_shows_what_its_name_scores_and_the_table_sorts_by_it(
    opened: Opened, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scored"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    firings = FeatureStore(folder).scalars["count"]
    # of those that fire often enough to have texts, the rarest are silent in most others
    latents = tuple(int(i) for i in np.argsort(np.where(firings < 120, np.inf, firings))[:6])
    measures = ("detection", "fuzzing", "simulation")
    explain(folder, ExplainConfig(latents=latents, score=measures, score_tokens=4096))
    scores = {i: entries["rules"] for i, entries in Annotations(folder).scores().items()}
    judged = {i: entry for i, entry in scores.items() if all(entry[m]["near"] for m in measures)}
    best = max(judged, key=lambda i: judged[i]["detection"]["near"]["value"])
    near = judged[best]["detection"]["near"]

    address = served([folder])
    page = opened(address + "#/latents?view=table&sort=-detection")
    row = page.get_by_test_id("row").first
    expect(row).to_have_attribute("data-latent", str(best))
    expect(row).to_contain_text(f"{near['value']:.3g}")
    about = page.get_by_test_id("sort-detection").get_attribute("title")
    assert about is not None
    assert "(judged by rules)" in about
    page = opened(address + f"#/latents/{best}")
    section = page.get_by_test_id("name-scores")
    expect(section.get_by_test_id("judged")).to_have_attribute("data-scorer", "rules")
    expect(section).to_contain_text("judged by the rule itself, without a model")
    says = page.get_by_test_id("says-detection")
    expect(says).to_contain_text(f"{int(100 * near['value'] + 0.5)} times in 100")
    expect(says).to_contain_text("a coin would 50 times")
    for measure in measures:
        bar = page.get_by_test_id(f"bar-{measure}-near")
        expect(bar.locator("circle.other")).to_have_count(1)
        expect(bar.locator("circle.shuffled")).to_have_count(0)
        expect(bar.locator("line.interval")).to_have_count(1)
    said = says.inner_text()
    export_static(folder, tmp_path / "page", latents=[best])
    page = opened(f"file://{tmp_path}/page/index.html#/latents/{best}")
    expect(page.get_by_test_id("says-detection")).to_have_text(said)
    # a latent without scores has no such section
    silent = next(i for i in range(128) if i not in scores)
    page = opened(address + f"#/latents/{silent}")
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{silent}")
    expect(page.get_by_test_id("name-scores")).to_have_count(0)
