"""What begins a segment: what the tokenizer does, what the user says, or what the model predicts text best after."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import save_tiny_model
from finished_runs import finished_run
from sae.base.files import publish_json, read_json
from sae.config import ConfigError, HarvestConfig, OptimConfig, SAEConfig, TrainConfig
from sae.data.documents import open_documents
from sae.data.packing import BEGINNING, named_ids, pack
from sae.features.steer.prompt import prompt_ids
from sae.harvest.beginning import cross_entropies, recorded, settle
from sae.harvest.language_model import LanguageModel, load_language_model, locate_model
from sae.runs.text import open_run
from sae.selftest.world import byte_tokenizer
from sae.training.run import train


def load(folder: Path) -> LanguageModel:
    source = locate_model(str(folder), trust_remote_code=False)
    return load_language_model(source, device=torch.device("cpu"), precision="auto")


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> LanguageModel:
    return load(tiny_model)


@pytest.fixture(scope="module")
def documents(corpus: Path) -> Any:
    return open_documents(corpus, split="train", heldout=0.1)


def asked(bos: str) -> HarvestConfig:
    return HarvestConfig(model="m", dataset="d", bos=bos)


def test_none_and_a_token_are_taken_as_they_are(lm: LanguageModel, documents: Any) -> None:
    assert settle(lm, asked("none"), documents).ids == ()
    assert settle(lm, asked("</s>"), documents).ids == (lm.tokenizer.eos_token_id,)


def test_a_token_that_the_tokenizer_lacks_is_refused_with_near_ones(lm: LanguageModel, documents: Any) -> None:
    with pytest.raises(ConfigError, match=r"--bos <S>: the tokenizer has no such token; .*<s>"):
        settle(lm, asked("<S>"), documents)


def test_auto_follows_the_tokenizer(tiny_model: Path, lm: LanguageModel, documents: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(300, adds_bos=True)
    assert settle(lm._replace(tokenizer=tokenizer), asked("auto"), documents).ids == (tokenizer.bos_token_id,)
    encoder = load(save_tiny_model("bert", tmp_path))
    assert settle(encoder, asked("auto"), documents).ids == named_ids(encoder.tokenizer)


def test_auto_measures_where_the_tokenizer_adds_nothing(lm: LanguageModel, documents: Any) -> None:
    """A random model is told apart by making one beginning ruin the text after it, and another help it."""
    beginning, end = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
    model: Any = lm.model
    table = model.get_input_embeddings().weight
    before = table.clone()
    try:
        losses = {ids: sum(cross_entropies(lm, documents, ids)) for ids in ((beginning,), (), (end,))}
        chosen = settle(lm, asked("auto"), documents)
        assert chosen.ids == (beginning,) or losses[chosen.ids] == min(losses.values())
        # the same token twice: nothing to choose between, so the tokenizer's own stays
        table.data[end] = table.data[beginning]
        tied = settle(lm, asked("auto"), documents)
        assert tied.ids in ((beginning,), ())
        assert "</s>" in tied.why
    finally:
        table.data.copy_(before)


@pytest.mark.parametrize("special", [{"bos": False}, {"bos": False, "eos": False, "pad": False}], ids=["end", "none"])
def test_auto_where_the_tokenizer_names_no_beginning(
    special: dict[str, bool], lm: LanguageModel, documents: Any
) -> None:
    plain = byte_tokenizer(300, **special)
    end = () if plain.eos_token_id is None else (plain.eos_token_id,)
    lm = lm._replace(tokenizer=plain)
    losses = {ids: sum(cross_entropies(lm, documents, ids)) for ids in ((), end)}
    chosen = settle(lm, asked("auto"), documents)
    assert chosen.ids == () or (chosen.ids == end and losses[end] < losses[()])
    assert "nothing" in chosen.why


def test_a_text_that_begins_with_bos_has_it_once(lm: LanguageModel) -> None:
    class Two:
        def iterate(self, start: int = 0) -> Any:
            from sae.data.documents import Document

            yield from [Document(0, "<s>the river"), Document(1, "the river")][start:]

    contexts = next(pack(Two(), lm.tokenizer, context=40, batch=1, beginning=(0,)))
    first, second = (contexts.tokens[contexts.document == i].tolist() for i in (0, 1))
    assert first == second
    assert first.count(0) == 1
    assert prompt_ids(lm, "<s>the river").tolist() == prompt_ids(lm, "the river").tolist() == first


def test_several_tokens_can_begin_a_segment(lm: LanguageModel, documents: Any) -> None:
    contexts = next(pack(documents, lm.tokenizer, context=40, batch=2, beginning=(1, 0)))
    starts = (contexts.position == 0).nonzero()
    assert len(starts) >= 2
    for row, column in starts.tolist():
        if column < 39 and contexts.document[row, column] >= 0:
            assert contexts.tokens[row, column : column + 2].tolist() == [1, 0]


def config(model: Path, corpus: Path, out: Path, **more: Any) -> TrainConfig:
    harvest = HarvestConfig(model=str(model), dataset=str(corpus), layer=1, context=32, contexts=8, **more)
    return TrainConfig(
        harvest=harvest, sae=SAEConfig(width=64, k=4), optim=OptimConfig(batch=128), out=out, tokens=1024, device="cpu"
    )


def test_a_run_records_its_beginning_and_replays_it(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    train(config(tiny_model, corpus, tmp_path / "run", bos="</s>"))
    record = read_json(tmp_path / "run" / "config.json")
    assert record["harvest"]["beginning"] == {"ids": [1], "tokens": ["</s>"]}
    assert record["train"]["harvest"]["bos"] == "</s>"
    run = open_run(tmp_path / "run")
    lm = run.load_language_model(torch.device("cpu"))
    assert prompt_ids(lm, "the river")[0] == 1
    contexts = next(run.harvest(lm, split="heldout").contexts(BEGINNING))
    assert (contexts.tokens[:, 0] == 1).all()


def test_a_run_without_the_record_keeps_the_old_rule(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder)
    record = read_json(folder / "config.json")
    record["harvest"].pop("beginning", None)
    record["train"]["harvest"].pop("bos", None)
    publish_json(folder / "config.json", record)
    lm = open_run(folder).load_language_model(torch.device("cpu"))
    assert lm.beginning == named_ids(lm.tokenizer)
    assert recorded(None, lm.tokenizer) == (lm.tokenizer.bos_token_id,)


def test_a_store_keeps_its_beginning(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    first = dataclasses.replace(config(tiny_model, corpus, tmp_path / "a", bos="none"), store=tmp_path / "store")
    train(first)
    second = dataclasses.replace(config(tiny_model, corpus, tmp_path / "b"), store=tmp_path / "store")
    train(second)
    assert read_json(tmp_path / "b" / "config.json")["harvest"]["beginning"]["ids"] == []
    third = dataclasses.replace(config(tiny_model, corpus, tmp_path / "c", bos="<s>"), store=tmp_path / "store")
    with pytest.raises(ConfigError, match="beginning"):
        train(third)
