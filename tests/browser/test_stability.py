"""The stability of latents on the page: the column, the panel with its links, the exported page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from playwright.sync_api import expect

from browser.conftest import Opened, served
from finished_runs import collected_run, finished_run
from sae.base.files import read_json
from sae.browser.opened import BrowsedRun
from sae.browser.records import full_record
from sae.config import CollectConfig, MatchConfig
from sae.evaluation.matching.run import match
from sae.evaluation.matching.scores import read_scores
from sae.features.collect.collect import collect


def test_a_latent_shows_its_stability_and_leads_to_its_matches(
    opened: Opened, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(collected_run(tiny_model, corpus).folder, first)
    shutil.copytree(finished_run(tiny_model, corpus, seed=1).folder, second)
    collect(second, CollectConfig(tokens=2_048))
    browsed = BrowsedRun(first)
    assert full_record(browsed.view(), 0)["stability"] is None
    match([first, second], MatchConfig(tokens=1_024, resamples=20))
    scores = read_scores(first, read_json(first / "config.json")["autoencoder"]["sha256"])
    assert scores is not None
    best = int(np.nanargmax(scores.stability))
    unknown = int(np.flatnonzero(np.isnan(scores.stability))[0])
    # an open page sees what was measured while it was open
    assert full_record(browsed.view(), best)["stability"]["runs"][0]["latent"] == scores.nearest[0, best]

    address = served([first, second])
    page = opened(address + "#/latents?view=table&sort=-stability")
    row = page.get_by_test_id("row").first
    expect(row).to_have_attribute("data-latent", str(best))
    expect(row).to_contain_text(f"{scores.stability[best]:.3f}")
    page = opened(address + f"#/latents/{unknown}")
    expect(page.get_by_test_id("stability-says")).to_contain_text("Unknown: the latent never fired")
    page = opened(address + f"#/latents/{best}")
    expect(page.get_by_test_id("fact-stability").locator("dd")).to_have_text(f"{scores.stability[best]:.3f}")
    said = page.get_by_test_id("stability-says")
    expect(said).to_contain_text(f"19 in 20 stay below {scores.info['chance']:.3f}")
    expect(said).to_contain_text("more stable than 99")
    page.get_by_test_id("stability-match").click()
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{scores.nearest[0, best]}")
    assert "run=1" in page.url
