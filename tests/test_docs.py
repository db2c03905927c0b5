"""What the documents point to is there: files, tests, experiments, variants, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sae.book.chapter.all  # noqa: F401  makes the experiments known
from sae.book.chapter.base import EXPERIMENTS
from sae.models.vision import NAMES
from test_layout import FLOORS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
CHAPTER = (ROOT / "docs/images.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| \[.+?\]\((.+?)\) \| \[(\w+)\]\((.+?)\) \| (.+) \|$", CHAPTER, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_chapter_s_table_has_every_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 29))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_a_test_and_experiments_that_exist(row: tuple[str, ...]) -> None:
    number, _, code, test, file, figure = row
    assert (ROOT / "docs" / code).is_file()
    assert f"def {test}(" in (ROOT / "docs" / file).read_text()
    named = re.findall(r"`(\w+)`", figure)
    assert named
    for name in named:
        assert int(number) in EXPERIMENTS[name].rows


def test_every_image_variant_is_described() -> None:
    described = set(re.findall(r"`(\w+)`", CHAPTER))
    assert set(NAMES) <= described


def test_the_table_of_floors_is_the_rule_of_imports() -> None:
    rows = re.findall(r"^\| \d \| (.+?) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in reversed(rows)] == FLOORS
