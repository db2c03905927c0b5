"""A typed prompt: its tokens, and the latents that fire at each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import save_tiny_model
from finished_runs import finished_run
from sae.data.documents import Document
from sae.features.steer.prompt import PromptError, examine
from sae.harvest.language_model import LanguageModel
from sae.harvest.stream import Harvest
from sae.runs.text import Run


@pytest.fixture(scope="module")
def finished(tiny_model: Path, corpus: Path) -> Run:
    return finished_run(tiny_model, corpus)


@pytest.fixture(scope="module")
def lm(finished: Run) -> LanguageModel:
    return finished.load_language_model(torch.device("cpu"))


def test_latents_are_those_of_the_harvest(finished: Run, lm: LanguageModel) -> None:
    text = "the river ran past a mill where grain was ground"
    found = examine(finished, lm, text)
    assert found["kinds"][0] == "bos"
    assert set(found["kinds"][1:]) <= {"ordinary", "sink"}
    assert "".join(found["tokens"][1:]) == text

    class OneText:
        def iterate(self, start: int = 0):
            yield from [Document(0, text)][start:]

    harvest = Harvest(
        lm, finished.sites, OneText(), finished.settings(contexts=1), finished.record["harvest"]["norm_limits"]
    )  # pyright: ignore
    (step,) = harvest.batches()
    assert step.rows.token.tolist() == found["token_ids"]
    dense = finished.model.encode(finished.inputs_of(step.rows)).to_dense()
    for row, latents in zip(dense, found["latents"], strict=True):
        expected = row.topk(int((row > 0).sum()))
        torch.testing.assert_close(torch.tensor([e["value"] for e in latents]), expected.values, rtol=1e-4, atol=1e-5)
        assert {e["latent"] for e in latents} == set(expected.indices.tolist())


def test_a_prompt_of_no_token_or_too_many_is_refused(finished: Run, lm: LanguageModel) -> None:
    with pytest.raises(PromptError, match="holds no token"):
        examine(finished, lm, "")
    with pytest.raises(PromptError, match="reads contexts of 64"):
        examine(finished, lm, "the river " * 40)


def test_an_encoder_reads_prompts_too(tmp_path: Path, corpus: Path) -> None:
    """What it cannot do is write (see test_steer)."""
    model = save_tiny_model("bert", tmp_path / "model")
    run = finished_run(model, corpus)
    encoder = run.load_language_model(torch.device("cpu"))
    assert any(examine(run, encoder, "the river ran")["latents"])
