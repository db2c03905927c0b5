"""Everything on the pages fits: nothing is cut without a way to see it, and no number runs over two lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Opened, most_frequent
from sae.browser.export import export_static
from sae.evaluation.bootstrap import Interval
from sae.features.store.annotations import Annotations
from sae.pictures.lines import Curve, draw_lines
from sae.pictures.page import Page as Document

WIDTHS = pytest.mark.parametrize("width", [1280, 800])
LONG = ("words about rivers, mills and everything else that moves in water, " * 4).strip()

FAULTS = """() => {
  const faults = [];
  const said = (e) => `${e.tagName.toLowerCase()}.${e.className} "${e.textContent.trim().slice(0, 40)}"`;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  for (const e of document.body.querySelectorAll("*")) {
    if (!e.checkVisibility() || e.closest("svg, dialog, select, [aria-hidden=true]") || !e.clientWidth) continue;
    const style = getComputedStyle(e);
    // what is cut with an ellipsis says the whole of it in a title, its own or of what it cuts
    const told = e.title || e.querySelector("[title]");
    if (e.scrollWidth > e.clientWidth + 1 && !scrolls(e) && style.display !== "inline")
      if (!(style.textOverflow === "ellipsis" && told)) faults.push(`wider than its box: ${said(e)}`);
    if (e.matches(".num, .interval, th.num")) {
      const range = document.createRange();
      const walk = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
      while (walk.nextNode()) {
        range.selectNodeContents(walk.currentNode);
        const lines = new Set([...range.getClientRects()].filter((r) => r.width).map((r) => Math.round(r.top)));
        if (lines.size > 1) faults.push(`a number over ${lines.size} lines: ${said(e)}`);
      }
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page scrolls sideways");
  if (document.body.scrollWidth > innerWidth) faults.push("the body is wider than the window");
  return faults;
}"""


def check_fit(page: Page) -> None:
    faults = page.evaluate(FAULTS)
    assert not faults, faults[:10]


@pytest.fixture
def long_name(run: Path) -> Iterator[int]:
    """A latent with a name that no row has room for."""
    latent, annotations = most_frequent(run), Annotations(run)
    annotations.set(latent, label=LONG, note=None, bookmark=False)
    yield latent
    annotations.set(latent, label=None, note=None, bookmark=False)


@WIDTHS
def test_every_page_of_a_run_on_text_fits(opened: Opened, address: str, long_name: int, width: int) -> None:
    page = opened(address + f"#/latents/{long_name}", width=width)
    expect(page.get_by_test_id("coactive").get_by_test_id("latent-link").first).to_be_visible()
    check_fit(page)
    for state, shown in (
        ("#/latents?view=table", "row"),
        (f"#/compare?pins=0:{long_name},1:{long_name},0:3,1:9", "histogram-plot"),
        (f"#/steer?push={long_name}:add:-2", "push"),
        ("#/search?q=river", "search-hit"),
        ("#/run", "curve"),
    ):
        page.evaluate("state => { location.hash = state; }", state)
        page.get_by_test_id(shown).first.wait_for()
        page.wait_for_timeout(200)
        check_fit(page)


@WIDTHS
def test_the_answer_to_a_prompt_fits(opened: Opened, address: str, long_name: int, width: int) -> None:
    page = opened(address + "#/prompt", width=width)
    page.get_by_test_id("prompt-a").fill("the river ran past a mill")
    page.get_by_test_id("prompt-run").click()
    row = page.locator(f'[data-testid="prompt-latent"][data-latent="{long_name}"]')
    expect(row).to_be_visible(timeout=60_000)
    check_fit(page)
    name = row.locator("[title]")
    expect(name).to_have_attribute("title", LONG)
    # one line high, as every other row
    others = page.get_by_test_id("prompt-latent").evaluate_all("rows => rows.map((r) => r.offsetHeight)")
    assert max(others) < 1.5 * min(others)


@WIDTHS
def test_every_page_of_a_run_on_images_fits(opened: Opened, image_address: str, width: int) -> None:
    page = opened(image_address + "#/latents/3", width=width)
    page.get_by_test_id("atom").wait_for()
    check_fit(page)
    for state, shown in (
        ("#/latents?view=table", "row"),
        ("#/compare?pins=0:3,1:0", "atom"),
        ("#/run", "curve"),
    ):
        page.evaluate("state => { location.hash = state; }", state)
        page.get_by_test_id(shown).first.wait_for()
        page.wait_for_timeout(200)
        check_fit(page)


def test_the_exported_page_fits(opened: Opened, run: Path, tmp_path: Path) -> None:
    latent = most_frequent(run)
    export_static(run, tmp_path / "page", latents=[latent, 3])
    page = opened(f"file://{tmp_path}/page/index.html#/latents/{latent}", width=800)
    page.get_by_test_id("example").first.wait_for()
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')")
    check_fit(page)
    page.evaluate("location.hash = '#/run'")
    page.get_by_test_id("curve").first.wait_for()
    check_fit(page)


@pytest.mark.parametrize("key", ["Control+Enter", "Meta+Enter"])
def test_a_key_sends_a_prompt(opened: Opened, address: str, key: str) -> None:
    page = opened(address + "#/prompt")
    page.get_by_test_id("prompt-a").press(key)  # without a text it asks for nothing
    page.get_by_test_id("prompt-a").fill("the river")
    page.get_by_test_id("density-cut").press(key)  # anywhere in the form
    expect(page.get_by_test_id("prompt-latent").first).to_be_visible(timeout=60_000)


def test_a_key_writes_a_steered_text(opened: Opened, address: str) -> None:
    page = opened(address + "#/steer?push=9:add:2")
    page.get_by_test_id("steer-prompt").fill("the river")
    page.get_by_test_id("steer-tokens").fill("4")
    page.get_by_test_id("steer-prompt").press("Control+Enter")
    expect(page.get_by_test_id("steer-answer")).to_be_visible(timeout=60_000)


LABELS = """() => {
  globalThis.labels = [];
  const write = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    const wide = this.measureText(text).width;
    const left = { right: x - wide, center: x - wide / 2 }[this.textAlign] ?? x;
    if (this.canvas.width > 300) globalThis.labels.push({ text, left, right: left + wide, of: this.canvas.width });
    return write.apply(this, arguments);
  };
}"""


@WIDTHS
def test_labels_of_the_axes_are_whole(opened: Opened, address: str, width: int) -> None:
    page = opened(address + "#/latents", width=width)
    page.evaluate(LABELS)
    page.evaluate("location.hash = '#/run'")
    page.get_by_test_id("curve").last.locator("canvas").wait_for()
    page.wait_for_function("labels.length > 20")
    labels = page.evaluate("labels")
    cut = [label for label in labels if label["left"] < 0 or label["right"] > label["of"]]
    assert not cut, cut
    # round numbers are written without zeros that say nothing
    assert not [label["text"] for label in labels if "." in label["text"] and label["text"].rstrip("kMG").endswith("0")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.05, "0.05"), (1e-5, "0.00001"), (2e-8, "2e−8"), (-0.1, "−0.1"), (5000, "5000"), (20_000, "20k"), (3e6, "3M")],
)
def test_ticks_take_little_room(opened: Opened, address: str, value: float, shown: str) -> None:
    page = opened(address)
    assert page.evaluate(f'async () => (await import("/static/report.js")).tick({value})') == shown


@pytest.mark.parametrize("kind", ["text", "images"])
def test_measures_are_said_in_words(opened: Opened, address: str, image_address: str, kind: str) -> None:
    page = opened((address if kind == "text" else image_address) + "#/run")
    row = page.get_by_test_id("evaluation").locator('tr[data-name="fvu"]')
    expect(row.locator("th")).to_have_text("FVU")
    expect(row).to_contain_text("activations' variance" if kind == "text" else "pixels' variance")
    names = page.get_by_test_id("measures").locator("tbody th").all_inner_texts()
    assert len(set(names)) == len(names)
    assert not [name for name in names if "_" in name or "." in name]


# --- pages of their own: reports, comparisons, the chapter ---


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page as the comparison's: a table far wider than any window, long words, pictures."""
    page = Document("Sparse and image autoencoders on common ground", "digits, 2 seeds; quick")
    spread = Interval(0.12345, 0.1, 0.15)._asdict()
    for place in range(3):
        page.section(f"Section {place}", "Words. " * 60)
        page.text('{"settings": "' + "x" * 300 + '"}')
        row = {"model": "batch_topk-w64-k8", "tier": "pixels", **{f"a long measure, {i}": spread for i in range(20)}}
        page.table([row] * 3)
        page.table([{"Measure": "FVU", "Value": spread, "Meaning": "share of the variance " * 8}])
        page.figure(draw_lines({"a": Curve([1, 2], [1, 2], "-")}, "x", "y"), "A line.")
    path = tmp_path_factory.mktemp("document") / "page.html"
    page.write(path)
    return path


@WIDTHS
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_its_own_fits_and_looks_like_the_browser(
    opened: Opened, address: str, document: Path, scheme: str, width: int
) -> None:
    page = opened(document.as_uri(), width=width, color_scheme=scheme)
    check_fit(page)
    looks = """e => { const s = getComputedStyle(e); return [s.color, s.fontFamily, s.textDecorationLine]; }"""
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    browser = opened(address, width=width, color_scheme=scheme)
    assert page.evaluate(ground) == browser.evaluate(ground)
    links = page.locator("nav a").first, browser.locator("nav a:not([aria-current])").first
    assert links[0].evaluate(looks) == links[1].evaluate(looks)
    assert page.locator("section").first.evaluate("e => getComputedStyle(e).borderRadius") == "8px"


def test_a_wide_table_scrolls_in_its_box_and_keeps_names_in_sight(opened: Opened, document: Path) -> None:
    page = opened(document.as_uri(), width=800)
    box = page.locator(".wide").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.focus()
    box.evaluate("e => { e.scrollLeft = 10_000; }")
    name, last = box.locator("td").first.bounding_box(), box.locator("tr").nth(1).locator("td").last.bounding_box()
    edge = box.bounding_box()
    assert name is not None
    assert last is not None
    assert edge is not None
    assert abs(name["x"] - edge["x"]) < 2
    assert last["x"] + last["width"] <= edge["x"] + edge["width"] + 1
    page.wait_for_timeout(50)
    assert page.evaluate("scrollX") == 0
