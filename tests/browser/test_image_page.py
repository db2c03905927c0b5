"""The page of runs on images in a real browser: images and atoms are seen; nothing of language models is offered."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from browser.conftest import Opened, train
from browser.test_looks import check_texts
from sae.base.files import check_folder, publish_json, read_json
from sae.browser.app import STATIC, create_app
from sae.browser.export import export_static
from sae.browser.pictures import Pictures
from sae.config import VisionConfig
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.runs.images import open_image_run

TOKEN = "a-token-of-the-test"
LANGUAGE_ONLY = ("tab-prompt", "tab-steer", "steer-this", "logits", "context-short", "strip")


@pytest.fixture(scope="module")
def client(image_run: Path, codebook_run: Path) -> Iterator[TestClient]:
    app = create_app([image_run, codebook_run], token=TOKEN, device="cpu")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.get("/", params={"token": TOKEN})
        yield client


def most_frequent(folder: Path) -> int:
    return int(FeatureStore(folder).scalars["count"].argmax())


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def check_seen(page: Page, part: str, shape: tuple[int, int]) -> list[dict[str, float]]:
    """Every image of a part is loaded, has its own size, and is shown larger by a whole factor."""
    images = page.get_by_test_id(part).locator("img")
    expect(images.first).to_be_visible()
    for image in images.all():
        image.scroll_into_view_if_needed()
    page.wait_for_function(
        "part => [...document.querySelectorAll(`[data-testid='${part}'] img`)].every((i) => i.complete)", arg=part
    )
    sizes = images.evaluate_all(
        """all => all.map((i) => ({ width: i.naturalWidth, height: i.naturalHeight, shown: i.clientWidth,
                                     pixelated: getComputedStyle(i).imageRendering === "pixelated" }))"""
    )
    assert sizes
    for size in sizes:
        assert (size["height"], size["width"]) == shape
        assert size["shown"] >= 8 * size["width"]
        assert size["shown"] % size["width"] == 0
        assert size["pixelated"]
    return sizes


# --- what the server draws ---


def test_an_image_is_the_one_that_was_collected(client: TestClient, image_run: Path) -> None:
    images = open_image_run(image_run).images("train").all().view(-1, 8, 8)
    for document in (0, 17, len(images) - 1):
        answer = client.get(f"/api/runs/0/images/{document}.png")
        assert answer.headers["content-type"] == "image/png"
        assert "max-age" in answer.headers["cache-control"]
        assert "private" in answer.headers["cache-control"]
        np.testing.assert_array_equal(pixels_of(answer.content), (images[document] * 255).round().byte().numpy())
    # every other answer still stays out of caches
    assert client.get("/api/runs/0/report").headers["cache-control"] == "no-store"


def test_an_atom_is_purple_where_it_adds_and_orange_where_it_takes_away(client: TestClient, image_run: Path) -> None:
    latent = most_frequent(image_run)
    atom = open_image_run(image_run).model.dictionary.W[latent].detach().view(8, 8).numpy()
    shown = pixels_of(client.get(f"/api/runs/0/atoms/{latent}.png").content).astype(int)
    assert shown.shape == (8, 8, 3)
    strong = np.abs(atom) > 0.4 * np.abs(atom).max()
    red_over_blue = (shown[..., 0] - shown[..., 2])[strong]
    assert (np.sign(-red_over_blue) == np.sign(atom[strong])).all()
    # the larger, the darker
    darkness = 765 - shown.sum(-1)
    assert np.corrcoef(darkness.ravel(), np.abs(atom).ravel())[0, 1] > 0.9


def test_an_atom_of_a_codebook_is_a_decoded_image(client: TestClient, codebook_run: Path) -> None:
    run = open_image_run(codebook_run)
    latent = most_frequent(codebook_run)
    decoded = run.model.show(run.model.dictionary.W[latent].detach().repeat(run.model.positions, 1))
    wanted = (decoded.detach().clamp(0, 1) * 255).round().byte().view(8, 8).numpy()
    shown = pixels_of(client.get(f"/api/runs/1/atoms/{latent}.png").content)
    assert np.abs(shown.astype(int) - wanted).max() <= 1


def test_the_bias_is_no_part_of_a_decoded_atom(tmp_path: Path) -> None:
    run = train(tmp_path / "run", VisionConfig(variant="kl_sparse", width=10, hidden=(16,)), epochs=2)
    store, model = FeatureStore(run), open_image_run(run).model
    pictures = Pictures(run, store.info)
    strength = float(store.scalars["max"][3])
    b, w = model.dictionary.b.detach(), model.dictionary.W[3].detach()
    change = (model.show((b + strength * w)[None]) - model.show(b[None])).detach().view(8, 8).numpy()
    shown = pixels_of(pictures.atom(3, strength)).astype(int)
    strong = np.abs(change) > 0.4 * np.abs(change).max()
    assert (np.sign(shown[..., 2] - shown[..., 0])[strong] == np.sign(change[strong])).all()
    # nothing adds nothing
    assert (pixels_of(pictures.atom(3, 0.0)) > 240).all()


@pytest.mark.parametrize("number", ["-1", "1438", "9" * 30, "x", "1e3", "%00", "..%2f..%2fconfig", "0x10"])
def test_what_is_not_there_is_refused_in_words(client: TestClient, number: str) -> None:
    for what in ("images", "atoms"):
        answer = client.get(f"/api/runs/0/{what}/{number}.png")
        assert answer.status_code in (404, 422), (what, number)
        assert answer.json()["error"]
    told = client.get("/api/runs/0/images/1438.png").json()["error"]
    assert told == "image 1438: the run has 0 to 1,437"
    assert client.get("/api/runs/0/atoms/24.png").json()["error"] == "latent 24: the run has 0 to 23"
    assert client.get("/api/runs/7/images/0.png").status_code == 404


def test_a_run_on_text_has_no_images(run: Path) -> None:
    with TestClient(create_app([run], token=TOKEN, device="cpu"), base_url="http://127.0.0.1") as client:
        client.get("/", params={"token": TOKEN})
        for what in ("images", "atoms"):
            answer = client.get(f"/api/runs/0/{what}/0.png")
            assert answer.status_code == 404
            assert "of text" in answer.json()["error"]


def test_prompts_and_steering_are_refused(client: TestClient) -> None:
    headers = {"Origin": "http://127.0.0.1", "Content-Type": "application/json"}
    steered = {"prompt": "the", "interventions": [{"latent": 3}]}
    for path, body in (("prompt", {"text": "the"}), ("steer", steered)):
        answer = client.post(f"/api/runs/0/{path}", json=body, headers=headers)
        assert answer.status_code == 400
        assert "a run on images" in answer.json()["error"]
    assert "no language model" in client.get("/api/runs/0/latents/3/logits").json()["error"]


def test_other_images_than_were_collected_are_not_shown(tmp_path: Path) -> None:
    run = train(tmp_path / "run", VisionConfig(variant="relu", width=8), epochs=2)
    record = read_json(run / "config.json")
    record["train"]["images"]["split_seed"] = 3
    publish_json(run / "config.json", record)
    with pytest.raises(FeatureError, match="its images have changed since the features were collected"):
        Pictures(run, FeatureStore(run).info)


# --- what is seen ---


def test_a_latent_shows_its_atom_and_its_images(opened: Opened, image_address: str, image_run: Path) -> None:
    store, latent = FeatureStore(image_run), most_frequent(image_run)
    page = opened(image_address + f"#/latents/{latent}")
    check_seen(page, "atom", (8, 8))
    check_seen(page, "band-top", (8, 8))
    strongest = page.get_by_test_id("band-top").get_by_test_id("example")
    assert strongest.count() == 20
    record = store.record(latent)
    assert float(strongest.first.get_attribute("data-value") or 0) == record["max"]
    label = record["examples"][0]["tokens"][0]
    expect(strongest.first).to_contain_text(label)
    expect(strongest.first.locator("img")).to_have_attribute(
        "alt", f"image {record['examples'][0]['document']}, label {label}"
    )
    expect(page.get_by_test_id("place")).to_have_count(0)
    expect(page.get_by_test_id("zero-mass")).to_contain_text("of 1,438 images")
    expect(page.get_by_test_id("neighbours").get_by_test_id("latent-link")).to_have_count(10)
    expect(page.get_by_test_id("neighbours").get_by_test_id("thumb").first).to_be_visible()
    check_seen(page, "band-2", (8, 8))
    # keys move over images as they do over texts
    page.keyboard.press("n")
    assert page.evaluate("document.activeElement.dataset.testid") == "example"


def test_nothing_of_language_models_is_offered(opened: Opened, image_address: str, image_run: Path) -> None:
    page = opened(image_address + f"#/latents/{most_frequent(image_run)}")
    page.get_by_test_id("atom").wait_for()
    for name in LANGUAGE_ONLY:
        expect(page.get_by_test_id(name)).to_have_count(0)
    assert "token" not in page.locator("#app").inner_text().lower()
    for state in ("prompt", "steer"):
        page.evaluate("state => { location.hash = `#/${state}`; }", state)
        page.get_by_test_id("latent").wait_for()
    page.keyboard.press("?")
    expect(page.get_by_test_id("help")).to_contain_text("An atom's picture")
    assert "token" not in page.get_by_test_id("help").inner_text().lower()


def test_the_table_shows_labels_and_atoms(opened: Opened, image_address: str, image_run: Path) -> None:
    store, latent = FeatureStore(image_run), most_frequent(image_run)
    page = opened(image_address + "#/latents?sort=-density")
    row = page.get_by_test_id("row").first
    expect(row).to_have_attribute("data-latent", str(latent))
    expect(row).to_contain_text(store.scalars["top_token"][latent])
    expect(row.get_by_test_id("thumb")).to_be_visible()
    expect(page.get_by_test_id("sort-name")).to_contain_text("Name or image label")
    page.get_by_test_id("filter-text").fill("7")
    sevens = int((store.scalars["top_token"] == "7").sum())
    expect(page.get_by_test_id("live-count")).to_have_text(f"{sevens} of 24 latents")


def test_a_frame_marks_the_place_of_a_codebooks_choice(opened: Opened, image_address: str, codebook_run: Path) -> None:
    latent = most_frequent(codebook_run)
    page = opened(image_address + f"#/latents/{latent}?run=1")
    check_seen(page, "band-top", (8, 8))
    examples = {(e["document"], e["position"]) for e in FeatureStore(codebook_run).record(latent)["examples"]}
    shots = page.get_by_test_id("band-top").get_by_test_id("example")
    for shot in shots.all()[:6]:
        picture, place = shot.locator("img").bounding_box(), shot.get_by_test_id("place").bounding_box()
        assert picture is not None
        assert place is not None
        column = round((place["x"] - picture["x"]) / place["width"])
        row = round((place["y"] - picture["y"]) / place["height"])
        assert place["width"] == pytest.approx(picture["width"] / 4, abs=1)
        document = int((shot.locator("img").get_attribute("alt") or "").split()[1].rstrip(","))
        assert (document, 4 * row + column) in examples
    expect(page.get_by_test_id("zero-mass")).to_contain_text("places of images")


def test_runs_are_compared_and_reported(opened: Opened, image_address: str, image_run: Path) -> None:
    latent = most_frequent(image_run)
    page = opened(image_address + f"#/compare?pins=0:{latent},1:0")
    expect(page.get_by_test_id("pinned")).to_have_count(2)
    expect(page.get_by_test_id("atom")).to_have_count(2)
    page.get_by_test_id("tab-run").click()
    row = page.get_by_test_id("evaluation").locator('tr[data-name="fvu"]')
    expect(row).to_contain_text("[")
    expect(page.get_by_test_id("collection")).to_contain_text("1,438 images of digits, at pixels of topk")
    expect(page.get_by_test_id("curve").first.locator("canvas")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_beside_images_is_readable(opened: Opened, image_address: str, image_run: Path, scheme: str) -> None:
    page = opened(image_address + f"#/latents/{most_frequent(image_run)}", color_scheme=scheme)
    check_seen(page, "atom", (8, 8))
    check_texts(page)
    page.evaluate("location.hash = '#/latents?view=table'")
    page.wait_for_timeout(300)
    check_texts(page)


def test_the_static_page_brings_its_images(opened: Opened, image_address: str, image_run: Path, tmp_path: Path) -> None:
    latent = most_frequent(image_run)
    out = tmp_path / "page"
    export_static(image_run, out, latents=[latent, *[i for i in range(3) if i != latent]])
    check_folder(out)
    page = opened(f"file://{out}/index.html#/latents/{latent}")
    check_seen(page, "atom", (8, 8))
    check_seen(page, "band-top", (8, 8))
    live = opened(image_address + f"#/latents/{latent}")
    check_seen(live, "band-top", (8, 8))
    for part in ("latent-name", "fact-density", "zero-mass", "band-top", "neighbours", "coactive"):
        assert page.get_by_test_id(part).inner_text() == live.get_by_test_id(part).inner_text(), part
    for name in LANGUAGE_ONLY:
        expect(page.get_by_test_id(name)).to_have_count(0)
    files = {int(path.stem) for path in (out / "data/images").iterdir()}
    wanted = [e["document"] for i in {latent, 0, 1, 2} for e in FeatureStore(image_run).record(i)["examples"]]
    assert files == set(wanted)


def test_the_page_stays_light() -> None:
    files = [p for p in STATIC.rglob("*") if p.suffix in (".html", ".js", ".css")]
    assert sum(p.stat().st_size for p in files) < 230_000
