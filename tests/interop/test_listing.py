"""`sae list` shows what is published, whole, in any width; an unknown model or layer is refused with near ones."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sae.base.tables import render
from sae.cli.main import parse
from sae.config import ConfigError
from sae.interop.published import SETS
from sae.interop.registry import named


def listed(*arguments: str) -> list[dict]:
    return parse(["list", *arguments]).run()["published"]


def test_without_a_layer_there_is_a_line_a_set() -> None:
    rows = listed()
    assert [row["set"] for row in rows] == list(SETS)
    (row,) = (row for row in rows if row["set"] == "gemma-scope-9b-pt-mlp")
    assert row == {
        "set": "gemma-scope-9b-pt-mlp",
        "model": "google/gemma-2-9b",
        "site": "mlp_out.L",
        "layers": "0-41",
        "width": "16k, 131k",
        "autoencoders": 84,
        "format": "gemma_scope",
        "source": "google/gemma-scope-9b-pt-mlp",
        "licence": "cc-by-4.0",
    }


@pytest.mark.parametrize("model", ["gemma-2-2b", "google/gemma-2-2b", "Gemma-2-2B"])
def test_a_model_and_a_layer_list_short_names_that_can_be_fetched(model: str) -> None:
    rows = listed("--model", model, "--layer", "12")
    assert {row["model"] for row in rows} == {"google/gemma-2-2b"}
    (row,) = (row for row in rows if row["name"] == "gemma-scope-2b-pt-res/layer_12/width_16k/canonical")
    assert (row["site"], row["width"]) == ("resid_post.12", "16k")
    assert row["source"] == "google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82"
    for row in rows:
        entry = named(row["name"])
        assert entry is not None
        assert entry.layer == 12


@pytest.mark.parametrize("width", [40, 100, 300])
def test_names_and_sources_are_printed_whole_in_any_width(width: int) -> None:
    result = parse(["list", "--model", "gemma-2-2b", "--layer", "12"]).run()
    out = io.StringIO()
    Console(file=out, width=width).print(render(result))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    for row in result["published"]:
        assert row["name"] in "".join(lines)
        assert row["source"] in "".join(lines)
        assert width == 40 or any(row["name"] in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gemma-2-3b"], "--model gemma-2-3b: no published set is on it; near ones: .*gemma-2-2b"),
        (["--model", "gemma-2-2b", "--layer", "26"], "--layer 26: nothing is published there; layers: 0-25"),
        (["--model", "Goodfire/x"], "no published set is on it"),
    ],
)
def test_what_is_not_listed_is_refused_with_what_is(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed(*arguments)
