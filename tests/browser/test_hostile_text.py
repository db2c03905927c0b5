"""Corpora hold anything: markup, controls, text that turns around. All of it is text, and is seen."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from browser.conftest import HOSTILE, Opened, most_frequent
from sae.features.store.store import FeatureStore


def test_hostile_text_is_shown_as_text(opened: Opened, address: str, hostile_run: Path) -> None:
    latent = most_frequent(hostile_run)
    page = opened(address + f"#/latents/{latent}?run=1")
    expect(page.get_by_test_id("latent-name")).to_have_text(HOSTILE[0])
    expect(page.get_by_test_id("note")).to_contain_text(b"\\x1b".decode("unicode_escape"))
    inside = page.locator("#app")
    assert inside.locator("script, img, iframe, b[onmouseover]").count() == 0
    assert page.get_by_test_id("run-select").locator("option").nth(1).inner_text() == "<b>second & last"
    for show_all in page.get_by_test_id("show-all").all():
        show_all.click()
    for state in ("#/search?run=1&q=<img", "#/search?run=1&q=\u202e", "#/run?run=1", f"#/compare?pins=1:{latent}"):
        page.evaluate("state => { location.hash = state; }", state)
        page.wait_for_timeout(300)
        assert inside.locator("script, img, iframe").count() == 0


def test_every_latent_of_a_hostile_corpus_opens(opened: Opened, address: str, hostile_run: Path) -> None:
    alive = (FeatureStore(hostile_run).scalars["count"] > 0).nonzero()[0].tolist()
    page = opened(address + "#/latents?run=1", width=800)
    for latent in alive[:: max(1, len(alive) // 12)]:
        page.evaluate("state => { location.hash = state; }", f"#/latents/{latent}?run=1")
        expect(page.get_by_test_id("latent-id")).to_have_text(f"#{latent}")
        expect(page.get_by_test_id("peak-token").first).not_to_have_text("")
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not wide, f"latent {latent} makes the page scroll sideways"


def test_what_cannot_be_seen_is_made_visible(opened: Opened, address: str, hostile_run: Path) -> None:
    page = opened(address + "#/latents?run=1")
    page.get_by_test_id("latent").wait_for()
    shown = page.evaluate(
        """async () => { const { visible } = await import("/static/format.js");
        return visible("a\\u0000\\n\\t\\u001b\\u007f\\u202e\\u2066\\ufeffb"); }"""
    )
    assert shown == "a␀↵⇥␛␡⟨202E⟩⟨2066⟩⟨FEFF⟩b"


def test_a_character_split_over_tokens_is_one_piece(opened: Opened, address: str) -> None:
    page = opened(address)
    pieces = page.evaluate(
        """async () => { const { pieces } = await import("/static/tokens.js");
        return pieces({
            tokens: ["x", "\\u65e5", "", ""], token_ids: [1, 2, 3, 4], values: [0, 1, 3, 0], peak: 2 }); }"""
    )
    assert [(p["text"], p["value"], p["peak"], p["ids"]) for p in pieces] == [
        ("x", 0, False, [1]),
        ("日", 3, True, [2, 3, 4]),
    ]
