"""The page of one image run: what each variant shows, that it stands alone, that its numbers are eval.json's."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from conftest import run_sae
from sae.base.colours import diverging
from sae.base.files import publish_json, read_json
from sae.base.tables import number
from sae.book.pictures.grids import draw_rows, tiled
from sae.book.pictures.latents import (
    arithmetic,
    codebook_images,
    contributions,
    linear,
    normal_quantiles,
    plane,
    sample_quantiles,
    spherical,
    traversals,
    typical,
)
from sae.book.report.codes import traversal_values, traversed
from sae.book.report.image import image_report
from sae.book.report.material import Material
from sae.book.report.reconstructions import anomaly_scores, usual_labels
from sae.config import ConfigError, ImageDataConfig, ImageTrainConfig, OptimConfig, VisionConfig
from sae.evaluation.bootstrap import Interval
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun, dense_codes, open_image_run
from sae.training.run import train

DIGITS = ImageDataConfig(data="digits", limit=512)
RUNS: dict[str, tuple[ImageDataConfig, VisionConfig, str | None]] = {
    "ae": (DIGITS, VisionConfig(variant="ae", width=8, hidden=(32,)), None),
    "linear": (DIGITS, VisionConfig(variant="linear", width=8), None),
    "denoising": (DIGITS, VisionConfig(variant="denoising", width=16, hidden=(32,)), None),
    "kl_sparse": (DIGITS, VisionConfig(variant="kl_sparse", width=16, hidden=(32,)), None),
    "vae2": (DIGITS, VisionConfig(variant="vae", width=2, hidden=(32,)), None),
    "vae": (DIGITS, VisionConfig(variant="vae", width=10, hidden=(32,)), "0,1,2,3,4"),
    "topk": (DIGITS, VisionConfig(variant="topk", width=96, k=4), None),
    "vqvae": (DIGITS, VisionConfig(variant="vqvae", width=16, code_dim=8), None),
    "beta_vae": (
        ImageDataConfig(data="dsprites?size=16", limit=512, heldout=0.0005),
        VisionConfig(variant="beta_vae", width=8, beta=1.0, hidden=(64,)),
        None,
    ),
    "planted": (
        ImageDataConfig(data="planted?size=8&atoms=24&count=1200", limit=900),
        VisionConfig(variant="topk", width=32, k=5),
        None,
    ),
}
EVERY = {"Numbers", "Training", "Reconstructions", "Spectra"}
CODES = {"Traversals", "Where images lie", "Interpolation", "Atoms"}
SECTIONS = {
    "ae": EVERY | CODES | {"Arithmetic on codes", "Samples"},
    "linear": EVERY | CODES | {"Arithmetic on codes", "Samples"},
    "denoising": EVERY | CODES | {"Arithmetic on codes", "Samples", "Denoising"},
    "kl_sparse": EVERY | CODES | {"Arithmetic on codes", "Rates"},
    "vae2": EVERY | CODES | {"Arithmetic on codes", "Samples", "Active latents", "The plane of codes"},
    "vae": EVERY | CODES | {"Arithmetic on codes", "Samples", "Active latents", "Anomalies"},
    "topk": EVERY | CODES | {"Arithmetic on codes", "Firing rates"},
    "vqvae": EVERY | {"Codebook"},
    "beta_vae": EVERY | CODES | {"Arithmetic on codes", "Samples", "Active latents", "What latents tell about factors"},
    "planted": EVERY | CODES | {"Firing rates", "Planted atoms"},
}


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ImageRun]:
    """A tiny finished run by its name in `RUNS`, trained when first asked for."""
    folder = tmp_path_factory.mktemp("image_runs")

    def get(name: str) -> ImageRun:
        out = folder / name
        if not out.exists():
            images, vision, only = RUNS[name]
            optim = OptimConfig(batch=64, lr=3e-3)
            train(
                ImageTrainConfig(
                    images=images, vision=vision, optim=optim, epochs=4, only_label=only, out=out, device="cpu"
                )
            )
        return open_image_run(out)

    return get


@pytest.fixture(scope="session")
def reported(image_run: Callable[[str], ImageRun]) -> Callable[[str], tuple[dict[str, Any], str]]:
    """A run's report by name: what the function returned, and the page."""
    done: dict[str, tuple[dict[str, Any], str]] = {}

    def get(name: str) -> tuple[dict[str, Any], str]:
        if name not in done:
            result = image_report(image_run(name).folder)
            done[name] = result, Path(result["report"]).read_text(encoding="utf-8")
        return done[name]

    return get


class Parsed(HTMLParser):
    """What a page consists of; fails on a tag that is closed out of order."""

    EMPTY = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [value or "" for name, value in attrs if name in ("href", "action", "data")]
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset")]
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


@pytest.mark.parametrize("name", RUNS)
def test_every_variant_shows_the_sections_that_make_sense_for_it(reported: Any, name: str) -> None:
    result, page = reported(name)
    assert set(result["sections"]) == SECTIONS[name]
    headings = [html.escape(section) for section in result["sections"]]
    assert [page.index(f">{heading}</h2>") for heading in headings] == sorted(
        page.index(f">{heading}</h2>") for heading in headings
    )


@pytest.mark.parametrize("name", ["vae2", "vqvae"])
def test_the_page_stands_alone(reported: Any, name: str) -> None:
    _, page = reported(name)
    parsed = Parsed(page)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert set(parsed.links) == {f"#{i}" for i in parsed.ids}, "every link leads to a heading on the page"
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(parsed.sources) >= 6
    for source in parsed.sources:
        kind, _, data = source.partition(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "data:image/png":
            assert content.startswith(b"\x89PNG")
            continue
        assert kind == "data:image/svg+xml"
        for element in ElementTree.fromstring(content).iter():
            for attribute, value in element.attrib.items():
                if attribute.endswith("href"):
                    assert value.startswith(("#", "data:")), "a drawing refers to nothing outside itself"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("vae2", ["fvu", "psnr", "bounds.elbo", "bounds.kl", "bounds.importance", "latents.active", "parameters"]),
        ("topk", ["fvu", "l0", "dead", "baselines.pca_fvu", "images"]),
        ("vqvae", ["fvu", "codebook.perplexity"]),
    ],
)
def test_numbers_on_the_page_are_those_of_eval_json(reported: Any, image_run: Any, name: str, keys: list[str]) -> None:
    _, page = reported(name)
    numbers = read_json(image_run(name).folder / "eval.json")
    cells = Parsed(page).cells
    for key in keys:
        value: Any = numbers
        for part in key.split("."):
            value = value[part]
        if isinstance(value, dict):
            assert f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]" in cells
        else:
            assert number(value) in cells


def test_numbers_that_are_there_are_taken_and_not_measured_again(image_run: Any, tmp_path: Path) -> None:
    folder = image_run("linear").folder
    image_report(folder, tmp_path / "first.html")
    numbers = read_json(folder / "eval.json")
    publish_json(folder / "eval.json", {**numbers, "fvu": {"value": 0.123, "low": 0.1, "high": 0.2}})
    image_report(folder, tmp_path / "second.html")
    publish_json(folder / "eval.json", numbers)
    assert ">[0.1, 0.2]<" in (tmp_path / "second.html").read_text()
    assert ">[0.1, 0.2]<" not in (tmp_path / "first.html").read_text()


def test_the_command_writes_the_page_where_it_is_told(image_run: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    out.parent.mkdir()
    done = run_sae("image", "report", image_run("linear").folder, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["report"] == str(out)
    assert out.read_text().startswith("<!doctype html>")
    assert set(result["sections"]) == SECTIONS["linear"]


def test_a_folder_that_is_no_image_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: not a run folder, it has no config.json"):
        image_report(tmp_path)
    with pytest.raises(ConfigError, match="no such run folder"):
        image_report(tmp_path / "missing")


def test_tiles_hold_the_images_pixel_for_pixel_with_white_between() -> None:
    images = torch.rand(5, 2 * 3)
    canvas = tiled(images, (1, 2, 3), 3, gap=2)
    assert canvas.shape == (2 + 2 + 2, 3 * 3 + 2 * 2, 3)
    for i, image in enumerate(images):
        top, left = (i // 3) * 4, (i % 3) * 5
        part = canvas[top : top + 2, left : left + 3]
        assert np.array_equal(part, np.repeat(image.view(2, 3, 1).numpy(), 3, axis=2))
    assert (canvas[2:4] == 1).all()
    assert (canvas[:, 3:5] == 1).all()
    assert (canvas[4:, 10:] == 1).all(), "the place of the sixth image is empty"


def test_tiles_keep_the_order_of_colours() -> None:
    red = torch.cat([torch.ones(4), torch.zeros(8)]).unsqueeze(0)
    assert np.array_equal(tiled(red, (3, 2, 2), 1)[0, 0], [1.0, 0.0, 0.0])


def test_signed_images_are_white_at_zero_and_two_colours_on_its_sides() -> None:
    colours = diverging(torch.tensor([[-2.0, 0.0, 1.0, 2.0]]), (1, 2, 2)).view(3, 4)
    minus, zero, half, plus = colours.T
    assert (zero > 0.95).all()
    assert minus[0] > minus[2], "below zero is orange"
    assert plus[2] > plus[0], "above zero is purple"
    assert half.sum() > plus.sum(), "less is paler"


def test_rows_of_grey_and_of_coloured_images_stand_in_one_picture() -> None:
    grey = torch.rand(3, 16)
    figure = draw_rows({"grey": grey, "signed": diverging(grey - 0.5, (1, 4, 4))}, (1, 4, 4), headings=["a", "b", "c"])
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["grey", "signed"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    shown = np.asarray(axis.get_images()[0].get_array())
    assert np.allclose(shown[:4, :4, 0], grey[0].view(4, 4))


def test_logarithmic_axes_are_labelled_with_plain_numbers() -> None:
    figure = draw_lines({"FVU": Curve([0, 1, 2], [0.9, 0.4, 0.12])}, "step", "FVU", log_y=True)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels(which="both") if label.get_text()]
    assert {"0.2", "0.5"} <= set(labels)
    assert not any("^" in label for label in labels)


def test_intervals_are_drawn_as_bands_from_low_to_high() -> None:
    curve = Curve([1, 2], [Interval(3.0, 2.0, 5.0), {"value": 4.0, "low": 3.5, "high": 4.5}])
    axis = draw_lines({"a": curve}, "k", "FVU").axes[0]
    corners = {tuple(point) for point in axis.collections[0].get_paths()[0].vertices.tolist()}
    assert {(1.0, 2.0), (1.0, 5.0), (2.0, 3.5), (2.0, 4.5)} <= corners
    assert axis.lines[0].get_ydata().tolist() == [3.0, 4.0]


def test_traversals_come_in_the_order_of_their_kl_and_change_one_latent(image_run: Any) -> None:
    material = Material(image_run("vae"))
    latents = traversed(material)
    kl = material.activity.kl
    assert kl[latents].tolist() == sorted(kl.tolist(), reverse=True)
    values, headings, _ = traversal_values(material, latents)
    assert headings == ["-3", "-2.25", "-1.5", "-0.75", "0", "0.75", "1.5", "2.25", "3"]
    code = material.codes[typical(material.codes)]
    images = traversals(material.model, code, latents, values)
    for row, latent in enumerate(latents):
        changed = code.clone()
        changed[latent] = values[row, 2]
        assert torch.allclose(images[row, 2], material.decoded(changed.unsqueeze(0))[0], atol=1e-6)


def test_traversals_of_codes_without_a_prior_follow_variance_and_quantiles(image_run: Any) -> None:
    material = Material(image_run("ae"))
    latents = traversed(material)
    variance = material.codes.var(0)
    assert variance[latents].tolist() == sorted(variance.tolist(), reverse=True)
    values, _, _ = traversal_values(material, latents)
    share = (material.codes[:, latents[0]] <= values[0, 4]).float().mean()
    assert share == pytest.approx(0.5, abs=0.01)


def test_the_plane_grows_to_the_right_with_the_first_latent_and_down_with_the_second(image_run: Any) -> None:
    model = image_run("vae2").model
    across, down = normal_quantiles(4), sample_quantiles(torch.arange(3.0), 3)
    images = plane(model, across, down).view(3, 4, -1)
    code = torch.tensor([[across[3], down[1]]])
    material = Material(image_run("vae2"))
    assert torch.allclose(images[1, 3], material.decoded(code)[0], atol=1e-6)
    assert torch.allclose(across, -across.flip(0)), "equal shares of a symmetric prior"


def test_interpolation_ends_at_both_codes_and_the_arc_keeps_the_length() -> None:
    a, b = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    alphas = (0.0, 0.25, 0.5, 1.0)
    for path in (linear(a, b, alphas), spherical(a, b, alphas)):
        assert torch.allclose(path[0], a, atol=1e-6)
        assert torch.allclose(path[-1], b, atol=1e-6)
    assert torch.allclose(spherical(a, b, alphas).norm(dim=1), torch.full((4,), 3.0), atol=1e-5)
    assert linear(a, b, alphas)[2].norm() < 2.2
    assert torch.allclose(spherical(a, 2 * a, alphas), linear(a, 2 * a, alphas)), "an arc of no angle is straight"
    assert torch.isfinite(spherical(a, torch.zeros(3), alphas)).all()


def test_arithmetic_moves_a_code_by_the_difference_of_means() -> None:
    codes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [7.0, 3.0]])
    kinds = torch.tensor([0, 0, 1, 1])
    moved = arithmetic(codes, kinds, codes[1], minus=0, plus=1)
    assert moved.tolist() == [7.0, 2.0]
    with pytest.raises(ValueError, match="kind 4"):
        arithmetic(codes, kinds, codes[0], minus=0, plus=4)


def test_atoms_without_a_head_are_dictionary_rows_and_behind_one_what_it_makes_of_them(image_run: Any) -> None:
    plain = image_run("topk").model
    strengths = torch.linspace(0.5, 2, plain.width)
    expected = strengths.unsqueeze(1) * plain.dictionary.W
    assert torch.allclose(contributions(plain, strengths), expected, atol=1e-5)
    deep = image_run("ae").model
    code = torch.zeros(2, deep.width)
    code[1, 3] = 1.5
    one = torch.full((deep.width,), 1.5)
    shown = deep.show(code @ deep.dictionary.W + deep.dictionary.b).detach()
    assert torch.allclose(contributions(deep, one)[3], shown[1] - shown[0], atol=1e-6)


def test_a_codebooks_atom_is_shown_in_all_places(image_run: Any) -> None:
    model = image_run("vqvae").model
    images = codebook_images(model)
    assert images.shape == (16, 64)
    with pytest.raises(ValueError, match="codebook_images"):
        contributions(model, torch.ones(16))
    everywhere = model.show(model.dictionary.W[5].expand(model.positions, -1)).detach()
    assert torch.allclose(images[5], everywhere[0], atol=1e-6)


def test_anomalies_are_scored_by_the_bound_and_held_against_the_trained_labels(image_run: Any) -> None:
    material = Material(image_run("vae"))
    assert usual_labels(material.heldout, "0,1,2,3,4") == [0, 1, 2, 3, 4]
    assert usual_labels(material.heldout, "!1") == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    score, name = anomaly_scores(material)
    assert "nats" in name
    labels = torch.from_numpy(material.labels)
    assert score[labels > 4].mean() > score[labels <= 4].mean()


def test_codes_are_means_and_not_draws(image_run: Any) -> None:
    run = image_run("vae")
    material = Material(run)
    assert torch.equal(material.codes, dense_codes(run.model, material.x))
    assert torch.equal(material.codes, Material(run).codes)
