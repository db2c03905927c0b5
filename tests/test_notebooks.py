"""The notebooks of docs/notebooks run from top to bottom, at small size, and hold no outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from finished_runs import collected_run, finished_run
from sae.interop.export import export
from sae.interop.registry import named

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def small(name: str, model: Path, corpus: Path, folder: Path) -> dict[str, Any]:
    """Parameters of a notebook for the tiny model."""
    text = {"MODEL": str(model), "DATASET": str(corpus), "CONTEXT": 64}
    if name == "train_and_browse":
        return {**text, "LAYER": 1, "WIDTH": 128, "K": 8, "TOKENS": 12_288, "EVALUATED": 2_048, "COLLECTED": 8_192}
    if name == "published_sae":
        export(finished_run(model, corpus).folder, "saelens", folder / "theirs")
        return {**text, "SOURCE": str(folder / "theirs"), "EVALUATED": 1_024, "COLLECTED": 4_096}
    if name == "steer":
        shutil.copytree(collected_run(model, corpus).folder, folder / "runs/demo")
        return {"PROMPT": "the river ran past a mill", "TOKENS": 4, "STRENGTHS": (1.0,)}
    return {**text, "LAYER": 1, "WIDTH": 128, "K": 8, "TOKENS": 12_288, "EPOCHS": 2}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    changes = small(notebook.stem, tiny_model, corpus, tmp_path)
    scope: dict[str, Any] = {}
    for cell in cells_of(notebook):
        exec(compile("".join(cell["source"]), f"{notebook.name}: {cell['id']}", "exec"), scope)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(changes) <= set(scope), "a parameter that the notebook does not have"
            scope |= changes


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text())
    assert content["nbformat"] == 4
    for cell in cells_of(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells_of(notebook)) == 1


def test_the_published_autoencoder_is_one_of_the_list() -> None:
    (parameters,) = [c for c in cells_of(ROOT / "docs/notebooks/published_sae.ipynb") if c["metadata"].get("tags")]
    scope: dict[str, Any] = {}
    exec("".join(parameters["source"]), scope)
    assert named(scope["SOURCE"]) is not None


def test_the_readme_links_every_notebook() -> None:
    assert len(NOTEBOOKS) == 4
    for notebook in NOTEBOOKS:
        assert f"docs/notebooks/{notebook.name}" in (ROOT / "README.md").read_text()
