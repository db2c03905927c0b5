"""What is told from weights: logits are the definition's, neighbours are the nearest, and both are kept."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from finished_runs import finished_run
from sae.base.files import CorruptError
from sae.config import CollectConfig
from sae.features.collect.collect import collect
from sae.features.store import lens as lens_module
from sae.features.store.lens import FILE, Lens, UndefinedError, unembedding_of
from sae.features.store.store import FeatureStore
from sae.harvest.blocks import find_blocks
from sae.runs.text import Run
from tiny_models import FAMILIES


@pytest.fixture
def run(tiny_model: Path, corpus: Path, tmp_path: Path) -> Run:
    finished = finished_run(tiny_model, corpus)
    shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("features*"))
    return finished._replace(folder=tmp_path / "run")


def sha(run: Run) -> str:
    return run.record["autoencoder"]["sha256"]


def test_logits_are_the_atom_times_gain_times_unembedding(run: Run) -> None:
    lm = run.load_language_model(torch.device("cpu"))
    atoms = torch.nn.functional.normalize(run.model.dictionary.W.detach(), dim=1)
    wanted = (atoms * lm.model.model.norm.weight) @ lm.model.lm_head.weight.T
    lens = Lens(run.folder, sha(run))
    for latent in (0, 31, 127):
        top, bottom = lens.logits(latent)
        values, tokens = wanted[latent].sort(descending=True)
        assert [token for token, _ in top] == tokens[:20].tolist()
        assert [token for token, _ in bottom] == tokens.flip(0)[:20].tolist()
        np.testing.assert_allclose([v for _, v in top], values[:20], rtol=1e-4, atol=1e-6)


# RMS norms, RMS norms with a gain of 1 + w, and layer norms with bias
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "qwen2"])
def test_the_lens_is_the_derivative_of_the_head_behind_the_norm(family: str) -> None:
    model = FAMILIES[family]()
    blocks = find_blocks(model)
    unembedding = unembedding_of(model, blocks.width)
    norm, head = model.get_submodule(blocks.final_norm), model.get_submodule(blocks.head)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(blocks.width, generator=draw)
    atom = torch.randn(blocks.width, generator=draw)
    atom -= atom.mean()
    x -= x.mean()
    # across the direction of x the norm's size does not change, and there the lens is exact, but for that size
    atom -= (atom @ x) / (x @ x) * x
    with torch.no_grad():
        _, change = torch.func.jvp(lambda v: head(norm(v[None]))[0], (x,), (atom,))
    torch.testing.assert_close(unembedding @ atom / x.square().mean().sqrt(), change, rtol=1e-3, atol=1e-4)
    if family in ("gpt2", "gpt_neox"):
        torch.testing.assert_close(unembedding.sum(1), torch.zeros(len(unembedding)), rtol=0, atol=1e-4)


def test_models_without_a_head_of_that_width_have_no_logits() -> None:
    with pytest.raises(UndefinedError, match="no output head"):
        unembedding_of(FAMILIES["dinov2"](), 32)
    with pytest.raises(UndefinedError, match="an atom has 48"):
        unembedding_of(FAMILIES["llama"](), 48)


def test_a_run_without_logits_says_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(run.folder, CollectConfig(tokens=500))
    (run.folder / FILE).unlink()
    store = FeatureStore(run.folder)
    # atoms of two sites side by side, as a crosscoder has them
    monkeypatch.setattr(store.lens, "_atoms", torch.eye(128, 64))
    monkeypatch.setattr(lens_module, "unembedding_of", lambda model, width: unembedding_of(model, 64))
    with pytest.raises(UndefinedError, match="an atom has 64"):
        store.logits(3)


def test_neighbours_are_the_nearest_by_cosine(run: Run) -> None:
    atoms = torch.nn.functional.normalize(run.model.dictionary.W.detach(), dim=1)
    cosines = atoms @ atoms.T
    lens = Lens(run.folder, sha(run))
    for latent in (3, 99):
        row = cosines[latent].clone()
        row[latent] = -2
        values, others = row.topk(10)
        found = lens.neighbours(latent)
        assert [other for other, _ in found] == others.tolist()
        np.testing.assert_allclose([cosine for _, cosine in found], values, rtol=1e-4)
    cosines.fill_diagonal_(-2)
    np.testing.assert_allclose(lens.nearest_cosines(), cosines.amax(1), rtol=1e-4)


def test_what_was_computed_is_kept_and_needs_no_model_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Lens(run.folder, sha(run))
    first.prepare_logits(run.load_language_model(torch.device("cpu")))
    wanted = first.logits(5), first.neighbours(5)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(lens_module, "open_run", refuse)
    monkeypatch.setattr(lens_module, "load", refuse)
    again = Lens(run.folder, sha(run))
    assert (again.logits(5), again.neighbours(5)) == wanted
    ids = again.all_logits()
    assert ids is not None
    assert ids.shape == (128, 40)


def test_results_of_other_weights_are_not_shown(run: Run) -> None:
    Lens(run.folder, sha(run)).neighbours(5)
    other = Lens(run.folder, "another")
    assert other.all_logits() is None
    assert len(other.neighbours(5)) == 10
    assert Lens(run.folder, sha(run))._cached("neighbours", 5) is None


def test_a_damaged_result_is_noticed(run: Run) -> None:
    Lens(run.folder, sha(run)).neighbours(5)
    connection = sqlite3.connect(run.folder / FILE)
    connection.execute("UPDATE neighbours SET data = CAST(data || x'00' AS BLOB)")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptError, match="neighbours 5 is damaged; it can be deleted"):
        Lens(run.folder, sha(run)).neighbours(5)
