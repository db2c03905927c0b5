"""What can be measured of the page's looks: contrast, sizes, room, colours that follow the reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Opened, most_frequent

# every text that is seen: its size, and the contrast of its colour on the first background behind it (WCAG 2.2)
TEXTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = [];
  const walk = document.createTreeWalker(document.getElementById("app"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    const box = element.getBoundingClientRect();
    if (!text || !box.width || !element.checkVisibility() || element.closest("dialog, [aria-hidden=true]")) continue;
    const style = getComputedStyle(element);
    let behind = element;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const ground = rgba(behind ? getComputedStyle(behind).backgroundColor : "white");
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    found.push({ text: text.slice(0, 40), size: parseFloat(style.fontSize), contrast: (a + 0.05) / (b + 0.05) });
  }
  return found;
}"""


def check_texts(page: Page) -> None:
    page.wait_for_function(f"({TEXTS})().length > 20")
    texts = page.evaluate(TEXTS)
    faint = [t for t in texts if t["contrast"] < 4.5]
    small = [t for t in texts if t["size"] < 12]
    assert not faint, faint[:10]
    assert not small, small[:10]
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), "the page scrolls sideways"


@pytest.mark.parametrize("width", [1280, 800])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable(opened: Opened, address: str, run: Path, scheme: str, width: int) -> None:
    latent = most_frequent(run)
    page = opened(address + f"#/latents/{latent}", width=width, color_scheme=scheme)
    expect(page.get_by_test_id("coactive").get_by_test_id("latent-link").first).to_be_visible()
    check_texts(page)
    for state in (
        "#/latents?view=table",
        f"#/compare?pins=0:{latent},1:{latent}",
        f"#/steer?push={latent}:add:-2",
        "#/prompt",
        "#/search?q=river",
        "#/run",
    ):
        page.evaluate("state => { location.hash = state; }", state)
        page.wait_for_timeout(400)
        if state != "#/prompt":
            check_texts(page)


def test_the_peak_is_told_apart_without_colour(opened: Opened, address: str, run: Path) -> None:
    page = opened(address + f"#/latents/{most_frequent(run)}")
    peak = page.get_by_test_id("peak-token").first
    expect(peak).to_have_css("font-weight", "700")
    assert "px" in peak.evaluate("e => getComputedStyle(e).boxShadow")


def test_the_colours_can_be_chosen_and_are_kept(opened: Opened, address: str) -> None:
    page = opened(address, color_scheme="light")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    for _ in range(2):  # auto, light, dark
        page.get_by_test_id("theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    page.get_by_test_id("latent").wait_for()
    assert page.evaluate(ground) == dark


def test_motion_is_left_out_where_it_is_not_wanted(opened: Opened, address: str) -> None:
    page = opened(address, reduced_motion="reduce")
    page.get_by_test_id("latent").wait_for()
    moving = """[...document.querySelectorAll("*")].filter((e) => {
        const style = getComputedStyle(e);
        return parseFloat(style.transitionDuration) > 0 || style.animationName !== "none"; }).length"""
    assert page.evaluate(moving) == 0


def test_text_from_right_to_left_runs_so(opened: Opened, address: str) -> None:
    page = opened(address)
    strip = page.get_by_test_id("strip").first
    expect(strip).to_have_attribute("dir", "auto")
    direction = page.evaluate(
        """() => { const strip = document.querySelector('[data-testid="strip"]').cloneNode();
        strip.textContent = "שלום"; document.body.append(strip);
        const found = strip.matches(":dir(rtl)"); strip.remove(); return found; }"""
    )
    assert direction


def test_numbers_stand_in_columns(opened: Opened, address: str) -> None:
    page = opened(address + "#/latents?view=table")
    cells = page.get_by_test_id("row").first.locator(".num")
    expect(cells.first).to_be_visible()
    for cell in cells.all():
        expect(cell).to_have_css("text-align", "right")
        assert "tabular-nums" in cell.evaluate("e => getComputedStyle(e).fontVariantNumeric")


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("number(0.0123456)", "0.0123"),
        ("number(12345.6)", "12,300"),
        ("number(999.9)", "1,000"),
        ("number(-0.00001234)", "−1.23e−5"),
        ("number(null)", "–"),
        ("number(0)", "0"),
        ("signed(2)", "+2.00"),
        ("signed(-2)", "−2.00"),
        ("oneIn(1 / 4300)", "1 in 4,300"),
        ("oneIn(0)", "never"),
        ("oneIn(0.75)", "75.0%"),
        ("percent(0.99999)", "99.999%"),
        ("count(1234567)", "1,234,567"),
    ],
)
def test_numbers_have_three_significant_digits(formats: Page, call: str, shown: str) -> None:
    assert formats.evaluate(f'async () => {{ const f = await import("/static/format.js"); return f.{call}; }}') == shown


@pytest.fixture(scope="module")
def formats(chromium, address: str):
    page = chromium.new_page()
    page.goto(address)
    yield page
    page.close()
