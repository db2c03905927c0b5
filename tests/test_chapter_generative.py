"""The chapter's generative experiments in quick mode, the rules of their verdicts, and the family tree's commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sae.book.chapter import family_tree
from sae.book.chapter.base import EXPERIMENTS, Setting
from sae.book.chapter.generative import generative_families, vqvae2_samples
from sae.book.chapter.generative_verdicts import Numbers, verdicts
from sae.cli.image_commands import ImageChapter, ImageTrain
from sae.cli.main import parse
from sae.evaluation.bootstrap import plain
from sae.models.vision import recipe_of

PAGE = Path(__file__).parent.parent / "docs/family-tree.md"
COMMANDS = [line for line in PAGE.read_text().splitlines() if line.startswith("sae ")]


def numbers(frechet: list[float], **values: float) -> Numbers:
    given = {
        "sharpness": 1.0,
        "recall": 0.5,
        "per_second": 1000.0,
        "failed": 0,
        "encodes": False,
        **values,
    }
    return Numbers(frechet=frechet, **given)  # type: ignore[arg-type]


def agreed(vae: Numbers, gan: Numbers, diffusion: Numbers) -> set[str]:
    rows = verdicts({"VAE": vae, "GAN": gan, "diffusion": diffusion})
    assert len(rows) == 6
    return {row["property"] for row in rows if row["agrees"] == "yes"}


def test_a_world_as_the_chapter_has_it_agrees_and_its_opposite_does_not() -> None:
    """Rules were set before anything was measured; each can be met and missed."""
    chapters = agreed(
        numbers([60, 61], encodes=True, recall=0.6, sharpness=0.3),
        numbers([30, 50], recall=0.2, failed=1),
        numbers([10, 11], per_second=50, recall=0.7),
    )
    assert chapters == {"quality", "sharp samples", "training", "encoder", "speed", "mode coverage"}
    opposite = agreed(
        numbers([10, 90], recall=0.2, failed=1),
        numbers([30, 31], recall=0.7, encodes=True),
        numbers([60, 61], recall=0.7, per_second=900),
    )
    assert opposite == set()


def test_without_failed_seeds_the_widest_spread_tells_who_is_hard_to_train() -> None:
    even = numbers([10, 11])
    assert "training" in agreed(even, numbers([10, 20]), even)
    assert "training" not in agreed(numbers([10, 30]), numbers([10, 20]), even)
    assert "training" not in agreed(numbers([10]), numbers([10]), numbers([10]))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(out=tmp_path_factory.mktemp("chapter"), data="mnist5k", seeds=(0,), quick=True)


def test_every_family_is_measured_and_shown(setting: Setting) -> None:
    found = generative_families(setting)
    names = {"VAE", "GAN", "diffusion", "latent diffusion", "VAE-GAN", "VQ-VAE + prior"}
    assert set(found.numbers["families"]) == names
    calls = {name: seeds[0]["evaluations"] for name, seeds in found.numbers["families"].items()}
    assert calls == {"VAE": 1, "GAN": 1, "VAE-GAN": 1, "diffusion": 10, "latent diffusion": 11, "VQ-VAE + prior": 17}
    assert all(seeds[0]["per_second"] > 0 and seeds[0]["sharpness"] > 0 for seeds in found.numbers["families"].values())
    references = found.numbers["references"]
    assert references["training images"]["Fréchet"] < 0.1 * references["one constant sample"]["Fréchet"]
    assert references["training images"]["classes"] == "10/10"
    assert len(found.pictures) == 4
    assert {row["model"] for row in found.tables[1]} == names | set(references)
    json.dumps(plain(found.numbers), allow_nan=False)


def test_codes_of_two_levels_are_sampled(setting: Setting) -> None:
    found = vqvae2_samples(setting)
    assert found.numbers["positions"] == 20
    assert found.numbers["nats"]["independent"] <= found.numbers["nats"]["uniform"]
    assert found.numbers["frechet"]["reconstructed"] > 0
    json.dumps(plain(found.numbers), allow_nan=False)


def test_the_page_of_the_family_tree_is_the_tree() -> None:
    assert PAGE.read_text() == family_tree.markdown()
    assert len(COMMANDS) == sum(len(node.commands) for node in family_tree.TREE)
    headings = {node.anchor for node in family_tree.TREE}
    assert set(re.findall(r"\(#([^)]+)\)", PAGE.read_text())) == headings


def test_the_tree_has_the_chapters_nodes_and_every_parent_is_older() -> None:
    years = [node.year for node in family_tree.TREE]
    assert years == [2006, 2008, 2013, 2014, 2017, 2017, 2020, 2022, 2024]
    known: dict[str, int] = {}
    for node in family_tree.TREE:
        assert all(known[parent] <= node.year for parent in node.parents)
        known[node.name] = node.year


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_of_the_tree_parses_and_fits_together(line: str) -> None:
    """It parses, its settings go together, and its experiments exist."""
    program, *arguments = shlex.split(line)
    assert program == "sae"
    command = parse(arguments)
    if isinstance(command, ImageTrain):
        recipe_of(command.config.vision, (1, 8, 8), 1438)
    if isinstance(command, ImageChapter):
        assert command.only in EXPERIMENTS


def test_the_tree_is_an_experiment_too(setting: Setting) -> None:
    found = family_tree.family_tree(setting)
    assert found.numbers == {"nodes": 9, "commands": len(COMMANDS)}
    assert len(found.pictures) == 1
