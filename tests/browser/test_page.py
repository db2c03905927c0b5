"""The page in a real browser: what a researcher does with it, by what can be seen."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from browser.conftest import Opened, most_frequent, second_most_frequent, served
from finished_runs import collected_run
from sae.base.files import publish_json, read_json
from sae.config import CollectConfig
from sae.features.collect.collect import collect
from sae.features.store.annotations import Annotations
from sae.features.store.database import Blobs
from sae.features.store.store import FeatureStore
from sae.features.store.writer import PARTS, STORE
from sae.interop import Origin


def show(page: Page, state: str) -> None:
    """Go to another state of an open page."""
    page.evaluate("state => { location.hash = state; }", state)


def column(page: Page, place: int, expected: Callable[[list[str]], bool]) -> list[str]:
    """The texts of one column of the rows in sight, once they are as expected: rows are drawn, then filled."""
    deadline = time.monotonic() + 15
    while not expected(texts := page.get_by_test_id("row").locator(f"div:nth-child({place})").all_inner_texts()):
        assert time.monotonic() < deadline, texts
        page.wait_for_timeout(50)
    return texts


def test_the_first_latent_is_shown_with_all_its_parts(opened: Opened, address: str, run: Path) -> None:
    store = FeatureStore(run)
    latent = most_frequent(run)
    page = opened(address + f"#/latents/{latent}")
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{latent}")
    expect(page.get_by_test_id("latent-name")).to_have_text("words of water")
    expect(page.get_by_test_id("latent-score")).to_contain_text("score 0.910 [0.880, 0.940]")
    assert "token=" not in page.url
    density = 1 / store.scalars["density"][latent]
    shown = page.get_by_test_id("fact-density").locator("dd").inner_text()
    assert abs(float(shown.removeprefix("1 in ").replace(",", "")) / density - 1) < 0.02
    record = store.record(latent)
    assert f"{record['count']:,}" in page.get_by_test_id("zero-mass").inner_text()
    assert page.get_by_test_id("bar").count() == len(record["histogram"]["counts"])
    strongest = page.get_by_test_id("band-top").get_by_test_id("example")
    assert float(strongest.first.get_attribute("data-value") or 0) == record["max"]
    assert page.get_by_test_id("band-0").get_by_test_id("example").count()
    expect(page.get_by_test_id("logits-top").locator("li").first).to_contain_text("+")
    expect(page.get_by_test_id("logits-bottom").locator("li").first).to_contain_text("−")
    expect(page.get_by_test_id("neighbours").get_by_test_id("latent-link")).to_have_count(10)
    expect(page.get_by_test_id("coactive").get_by_test_id("latent-link").first).to_be_visible()
    page.get_by_test_id("neighbours").get_by_test_id("latent-link").first.click()
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{store.neighbours(latent)[0]['latent']}")


def test_the_table_sorts_and_filters_and_the_address_keeps_it(opened: Opened, address: str, run: Path) -> None:
    scalars = FeatureStore(run).scalars
    page = opened(address)
    expect(page.get_by_test_id("live-count")).to_have_text("128 of 128 latents")
    page.get_by_test_id("sort-density").click()
    expect(page.get_by_test_id("row").first).to_have_attribute("data-latent", str(most_frequent(run)))
    page.get_by_test_id("filter-alive").check()
    alive = int((scalars["count"] > 0).sum())
    expect(page.get_by_test_id("live-count")).to_have_text(f"{alive} of 128 latents")
    page.get_by_test_id("toggle-ranges").click()
    page.get_by_test_id("range-max-low").fill("2")
    page.get_by_test_id("range-max-low").press("Enter")
    page.get_by_test_id("range-entropy-high").fill("3")
    page.get_by_test_id("range-entropy-high").press("Enter")
    wanted = (scalars["max"] >= 2) & (scalars["entropy"] <= 3) & (scalars["count"] > 0)
    expect(page.get_by_test_id("live-count")).to_have_text(f"{int(wanted.sum())} of 128 latents")
    # beside a latent there is room for few columns; all of them stand in the wide table
    page.get_by_test_id("toggle-wide").click()
    page.get_by_test_id("sort-max").click()
    order = sorted(wanted.nonzero()[0].tolist(), key=lambda i: (-scalars["max"][i], i))
    expect(page.get_by_test_id("row").first).to_have_attribute("data-latent", str(order[0]))
    column(page, 1, lambda texts: len(texts) > 0 and texts == [str(i) for i in order[: len(texts)]])
    page.reload()
    expect(page.get_by_test_id("live-count")).to_have_text(f"{int(wanted.sum())} of 128 latents")
    expect(page.get_by_test_id("row").first).to_have_attribute("data-latent", str(order[0]))
    page.get_by_test_id("toggle-ranges").click()
    page.get_by_test_id("clear-filters").click()
    page.get_by_test_id("filter-text").fill("WATER")
    expect(page.get_by_test_id("live-count")).to_have_text("1 of 128 latents")
    page.get_by_test_id("filter-text").fill("")
    page.get_by_test_id("filter-mark").select_option("named")
    expect(page.get_by_test_id("live-count")).to_have_text("3 of 128 latents")
    for name in ("mean", "entropy", "norm", "cosine", "score"):
        expect(page.get_by_test_id(f"sort-{name}")).to_be_visible()
    page.get_by_test_id("sort-score").click()

    def three_falling(texts: list[str]) -> bool:
        numbers = [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)]
        return len(texts) == len(numbers) == 3 and numbers == sorted(numbers, reverse=True)

    assert "0.910" in column(page, 9, three_falling)


def test_a_name_tells_what_it_rests_on(opened: Opened, address: str, run: Path) -> None:
    latent = second_most_frequent(run)
    explained = Annotations(run).names()[latent]
    page = opened(address + f"#/latents/{latent}")
    expect(page.get_by_test_id("latent-name")).to_have_text(explained["name"])
    rule = page.get_by_test_id("rule")
    rule.locator("summary").click()
    evidence = rule.locator(".evidence")
    assert evidence.count() == sum(len(clause["values"]) for clause in explained["rule"]["clauses"])
    assert all("+" in text or "−" in text for text in evidence.locator(".num").all_inner_texts())
    expect(rule).to_contain_text(f"{explained['positives']} firing and {explained['negatives']} silent")


def test_a_range_of_the_histogram_chooses_the_examples(opened: Opened, address: str, run: Path) -> None:
    page = opened(address + f"#/latents/{most_frequent(run)}")
    box = page.get_by_test_id("histogram-plot").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.35, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=4)
    page.mouse.up()
    expect(page.get_by_test_id("brush")).to_be_visible()
    band = page.get_by_test_id("band-brushed")
    title = band.locator("h4").inner_text()
    low, high = map(float, re.findall(r"[\d.]+", title)[:2])
    values = [float(e.get_attribute("data-value") or 0) for e in band.get_by_test_id("example").all()]
    assert values
    assert all(low * 0.995 <= v <= high * 1.005 for v in values)
    assert values == sorted(values, reverse=True)
    expect(page.get_by_test_id("band-top")).to_have_count(0)
    page.get_by_test_id("clear-range").click()
    expect(page.get_by_test_id("band-top")).to_be_visible()


def test_an_example_opens_into_its_document(opened: Opened, address: str, run: Path) -> None:
    latent = most_frequent(run)
    example = max(FeatureStore(run).record(latent)["examples"], key=lambda e: e["value"])
    whole = "".join(FeatureStore(run).document(example["document"])["tokens"])
    page = opened(address + f"#/latents/{latent}")
    first = page.get_by_test_id("example").first
    page.get_by_test_id("context-short").click()
    shorter = page.locator(".examples .tok").count()
    page.get_by_test_id("context-whole").click()
    assert shorter < page.locator(".examples .tok").count()
    first.get_by_test_id("example-value").click()
    expect(first.get_by_test_id("strip")).to_contain_text(whole[-30:].strip())
    assert len(first.get_by_test_id("peak-token").all()) == 1


def test_keys_move_through_latents_examples_and_tokens(opened: Opened, address: str) -> None:
    page = opened(address + "#/latents?sort=-density")
    expect(page.get_by_test_id("latent")).to_be_visible()
    listed = column(page, 1, lambda texts: len(texts) > 2 and "…" not in texts)
    page.keyboard.press("j")
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{listed[1]}")
    page.keyboard.press("j")
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{listed[2]}")
    page.keyboard.press("k")
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{listed[1]}")
    stops = page.locator('[data-testid="examples"] .tok[tabindex="0"]')
    expect(stops).to_have_count(1)
    page.keyboard.press("n")
    assert focused(page)["peak"]
    first = focused(page)["example"]
    page.keyboard.press("n")
    assert focused(page)["example"] == first + 1
    page.keyboard.press("p")
    assert focused(page)["example"] == first
    before = focused(page)["place"]
    page.keyboard.press("ArrowLeft")
    assert focused(page)["place"] == before - 1
    page.keyboard.press("ArrowDown")
    assert focused(page)["example"] == first + 1
    expect(stops).to_have_count(1)
    expect(page.get_by_test_id("tip")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_test_id("help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("help")).to_be_hidden()
    page.keyboard.press("c")
    expect(page.get_by_test_id("tab-compare")).to_have_text("Compare (1)")
    page.keyboard.press("/")
    expect(page.get_by_test_id("search")).to_be_focused()
    page.keyboard.type("jkb?")
    expect(page.get_by_test_id("search")).to_have_value("jkb?")
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{listed[1]}")


def focused(page: Page) -> dict:
    return page.evaluate(
        """() => { const t = document.activeElement, e = t.closest('[data-testid="example"]');
        return { peak: t.classList.contains("peak"),
                 example: [...document.querySelectorAll('[data-testid="example"]')].indexOf(e),
                 place: [...document.querySelectorAll(".tok")].indexOf(t) }; }"""
    )


def test_labels_survive_collecting_again_and_are_found(opened: Opened, address: str, run: Path) -> None:
    latent = most_frequent(run)
    page = opened(address + f"#/latents/{latent}")
    page.get_by_test_id("latent").wait_for()
    page.keyboard.press("l")
    page.get_by_test_id("label-input").fill("rivers & <i>mills</i>")
    page.get_by_test_id("note-input").fill("seen in spring")
    page.get_by_test_id("label-save").click()
    expect(page.get_by_test_id("latent-name")).to_have_text("rivers & <i>mills</i>")
    expect(page.get_by_test_id("note")).to_have_text("seen in spring")
    page.keyboard.press("b")
    expect(page.get_by_test_id("bookmark")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(f'[data-testid="row"][data-latent="{latent}"]')).to_contain_text("★")
    tokens = FeatureStore(run).info["tokens"]
    collect(run, CollectConfig(tokens=6_000))
    assert FeatureStore(run).info["tokens"] < tokens
    page.reload()
    assert f"{FeatureStore(run).info['tokens']:,}" in page.get_by_test_id("zero-mass").inner_text()
    expect(page.get_by_test_id("latent-name")).to_have_text("rivers & <i>mills</i>")
    page.get_by_test_id("search").fill("mills")
    page.get_by_test_id("search").press("Enter")
    hit = page.get_by_test_id("search-hit").first
    expect(hit).to_have_attribute("data-latent", str(latent))
    expect(hit).to_contain_text("label")
    show(page, "#/latents?mark=bookmarked")
    expect(page.get_by_test_id("live-count")).to_have_text("1 of 128 latents")
    assert Annotations(run).all()[latent] == {
        "label": "rivers & <i>mills</i>",
        "note": "seen in spring",
        "bookmark": True,
    }
    Annotations(run).set(latent, label=None, note=None, bookmark=False)


def test_search_finds_text_of_examples(opened: Opened, address: str) -> None:
    page = opened(address + "#/search?q=children")
    hit = page.get_by_test_id("search-hit").first
    expect(hit.locator("mark").first).to_have_text("children")
    latent = hit.get_attribute("data-latent")
    hit.get_by_role("link").click()
    expect(page.get_by_test_id("latent-id")).to_have_text(f"#{latent}")


def test_a_prompt_shows_the_latents_of_its_tokens(opened: Opened, address: str) -> None:
    page = opened(address + "#/prompt", refusals=True)
    page.get_by_test_id("prompt-a").fill("the river ran past a mill")
    page.get_by_test_id("prompt-run").click()
    tokens = page.get_by_test_id("tokens-a").locator(".tok")
    expect(tokens.first).to_have_text("<s>", timeout=60_000)
    rows = page.get_by_test_id("prompt-latent")
    everything = rows.count()
    tokens.nth(3).click()
    expect(page.get_by_test_id("prompt-listing")).to_contain_text("token 3")
    expect(rows).to_have_count(8)
    page.get_by_test_id("prompt-all-tokens").click()
    expect(rows).to_have_count(everything)
    page.get_by_test_id("density-cut").fill("2")
    expect(page.get_by_test_id("density-cut-value")).to_have_text("1 in 10")
    assert 0 < rows.count() < everything
    rows.first.get_by_test_id("show-tokens").click()
    assert page.get_by_test_id("tokens-a").locator(".a10").count() >= 1
    page.get_by_test_id("prompt-contrast").check()
    page.get_by_test_id("prompt-b").fill("ships from far coasts")
    page.get_by_test_id("prompt-run").click()
    expect(page.get_by_test_id("prompt-listing")).to_contain_text("Differences")
    signs = {cell[0] for cell in rows.locator("td:nth-child(3)").all_inner_texts()}
    assert signs == {"+", "−"}
    page.get_by_test_id("prompt-a").fill("word " * 200)
    page.get_by_test_id("prompt-run").click()
    expect(page.get_by_test_id("error")).to_contain_text("reads contexts of 64")


def test_steering_writes_both_texts(opened: Opened, address: str, run: Path) -> None:
    latent = most_frequent(run)
    page = opened(address + f"#/latents/{latent}")
    page.get_by_test_id("steer-this").click()
    expect(page.get_by_test_id("push")).to_have_attribute("data-latent", str(latent))
    page.get_by_test_id("steer-latent").fill("9")
    page.get_by_test_id("steer-add").click()
    expect(page.get_by_test_id("push")).to_have_count(2)
    page.get_by_test_id("push-mode").nth(1).select_option("ablate")
    page.get_by_test_id("push-strength").first.fill("8")
    expect(page.get_by_test_id("push").first).to_contain_text("+8.00 × max")
    page.get_by_test_id("steer-prompt").fill("the river")
    page.get_by_test_id("steer-tokens").fill("12")
    page.get_by_test_id("steer-run").click()
    page.get_by_test_id("steer-answer").wait_for(timeout=60_000)
    plain, steered = (page.get_by_test_id(f"steer-{name}").inner_text() for name in ("plain", "steered"))
    assert plain.startswith("the river")
    assert steered.startswith("the river")
    assert plain != steered
    expect(page.get_by_test_id("steer-kl")).to_contain_text("nats")


def test_a_model_without_next_tokens_offers_no_steering_and_says_why(opened: Opened, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(run, folder)
    why = "BertForMaskedLM reads both ways"
    info = {**FeatureStore(folder).info, "no_next_token": why}
    with contextlib.closing(sqlite3.connect(folder / STORE)) as connection, connection:
        Blobs(connection, folder / STORE).put("parts", [(PARTS["info"], json.dumps(info).encode())])
    evaluation = read_json(folder / "eval.json")
    publish_json(folder / "eval.json", {**evaluation, "downstream": None, "downstream_missing": why})
    page = opened(served([folder]) + f"#/latents/{most_frequent(folder)}")
    expect(page.get_by_test_id("no-steering")).to_contain_text(f"predicts no next token ({why})")
    for name in ("steer-this", "tab-steer"):
        expect(page.get_by_test_id(name)).to_have_count(0)
    expect(page.get_by_test_id("tab-prompt")).to_be_visible()
    show(page, "#/steer?push=9:add:1")
    expect(page.get_by_test_id("steer-run")).to_have_count(0)
    expect(page.get_by_test_id("no-steering")).to_contain_text(why)
    show(page, "#/run")
    expect(page.get_by_test_id("evaluation")).to_contain_text(f"the model predicts no next token: {why}")


def test_latents_of_two_runs_stand_side_by_side(opened: Opened, address: str, run: Path) -> None:
    latent = most_frequent(run)
    page = opened(address + f"#/latents/{latent}")
    match = page.get_by_test_id("matches")
    expect(match.get_by_test_id("latent-link").first).to_contain_text(f"#{latent}")
    expect(match).to_contain_text("+1.00")
    match.get_by_test_id("compare-match").click()
    columns = page.get_by_test_id("pinned")
    expect(columns).to_have_count(2)
    expect(columns.nth(1)).to_have_attribute("data-run", "1")
    for i in range(2):
        expect(columns.nth(i).get_by_test_id("example").first).to_be_visible()
        expect(columns.nth(i).get_by_test_id("histogram-plot")).to_be_visible()
    page.reload()
    expect(columns).to_have_count(2)
    columns.first.get_by_test_id("unpin").click()
    expect(columns).to_have_count(1)


def test_the_run_page_shows_curves_evaluation_and_configuration(opened: Opened, address: str, run: Path) -> None:
    page = opened(address + "#/run")
    expect(page.get_by_test_id("curve").first.locator("canvas")).to_be_visible()
    names = [curve.get_attribute("data-name") for curve in page.get_by_test_id("curve").all()]
    assert {"fvu", "l0"} <= set(names)
    row = page.get_by_test_id("evaluation").locator('tr[data-name="fvu"]')
    assert re.search(r"\d\s+\[[\d.]+, [\d.]+\]", row.inner_text())
    numbers = read_json(run / "eval.json")
    controls = page.get_by_test_id("controls")
    for control in numbers["controls"]:
        fvu = page.evaluate(f"async () => (await import('/static/format.js')).number({control['fvu']['value']})")
        expect(controls.locator(f'tr[data-name="{control["control"]}"] td').first).to_contain_text(fvu)
    page.get_by_text("Delta CE by token predicted").click()
    words = page.get_by_test_id("added-word").locator("tbody tr")
    expect(words).to_have_count(len(numbers["added_by_class"]["word"]))
    expect(page.get_by_test_id("config").locator('tr[data-name="train.sae.width"]')).to_contain_text("128")
    expect(page.get_by_test_id("collection")).to_contain_text(f"{FeatureStore(run).info['tokens']:,}")


def test_the_run_page_says_where_an_imported_run_comes_from(
    opened: Opened, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    record = read_json(folder / "config.json")
    origin = Origin("SAELens", architecture="topk", model="gpt2", licence="mit", notes=("<b>one threshold</b>",))
    imported = {**origin._asdict(), "format": "saelens", "source": "somewhere"}
    publish_json(folder / "config.json", record | {"imported": imported})
    said = opened(served([folder]) + "#/run").get_by_test_id("origin")
    expect(said).to_contain_text("Imported from SAELens (saelens): topk, for gpt2, licence mit.")
    expect(said).to_contain_text("Note: <b>one threshold</b>.")


def test_a_selection_can_be_taken_away(opened: Opened, address: str, run: Path, tmp_path: Path) -> None:
    page = opened(address + "#/latents?sort=-max&filter=count:1..")
    page.get_by_test_id("export").click()
    scalars = FeatureStore(run).scalars
    alive = (scalars["count"] > 0).nonzero()[0].tolist()
    with page.expect_download() as download:
        page.get_by_test_id("export-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert [int(r["latent"]) for r in rows] == sorted(alive, key=lambda i: (-scalars["max"][i], i))
    with page.expect_download() as download:
        page.get_by_test_id("export-python").click()
    snippet = tmp_path / "snippet.py"
    snippet.write_bytes(Path(download.value.path()).read_bytes())
    told = subprocess.run([sys.executable, snippet], capture_output=True, text=True, timeout=120, check=True)
    assert len(told.stdout.splitlines()) == len(alive)


def test_a_page_opened_before_the_collection_fills_itself(
    opened: Opened, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    import queue
    import shutil
    import threading

    from finished_runs import collected_run, finished_run
    from sae.browser.serve import serve

    folder = tmp_path / "fresh"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder)
    addresses: queue.Queue[str] = queue.Queue()
    threading.Thread(target=serve, args=([str(folder)],), kwargs={"ready": addresses.put}, daemon=True).start()
    page = opened(addresses.get(timeout=30))
    expect(page.get_by_test_id("no-features")).to_contain_text("sae features")
    page.get_by_test_id("tab-run").click()
    expect(page.get_by_test_id("curve").first).to_be_visible()
    page.get_by_test_id("tab-latents").click()
    for name in ("features.scalars.npy", "features.sqlite"):
        shutil.copyfile(collected_run(tiny_model, corpus).folder / name, folder / name)
    expect(page.get_by_test_id("latent")).to_be_visible()
    expect(page.get_by_test_id("live-count")).to_have_text("128 of 128 latents")
