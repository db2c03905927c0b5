"""The activation stream: every row is the activation of the token it names, whatever the packing, sinks and start."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from conftest import save_tiny_model
from sae.config import HarvestConfig
from sae.data.documents import DataError, open_documents
from sae.data.packing import Cursor
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel, load_language_model, locate_model
from sae.harvest.rows import ActivationError, Rows
from sae.harvest.sites import Site, resolve_sites
from sae.harvest.stream import BOS, ORDINARY, SINK, SPECIAL, Harvest
from sae.selftest.world import corpus_texts

CONTEXT = 48
FAMILIES = {"llama": "positions", "bert": None, "opt": None, "bloom": "pad", "mamba": "pad", "gemma2": "positions"}


class Case(NamedTuple):
    lm: LanguageModel
    sites: list[Site]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Family -> its tiny model and two sites of it."""
    found = {}
    for family in FAMILIES:
        folder = save_tiny_model(family, tmp_path_factory.mktemp(family))
        source = locate_model(str(folder), trust_remote_code=False)
        lm = load_language_model(source, device=torch.device("cpu"), precision="auto")
        found[family] = Case(lm, resolve_sites(lm.model, ["resid_post.0", "resid_pre.2"]))
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 documents, some much longer than a context, some of a word."""
    long = corpus_texts(24, seed=5)
    lines = [text if i % 3 else text.split()[0] for i, text in enumerate(long)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def harvest(case: Case, texts: Path, **settings: object) -> Harvest:
    settings = {"context": CONTEXT, "contexts": 4, **settings}
    config = HarvestConfig(model="m", dataset=str(texts), **settings)  # type: ignore[arg-type]
    documents = open_documents(texts, split="all", heldout=config.heldout)
    return Harvest(case.lm, case.sites, documents, config)


def joined(parts: list[Rows]) -> Rows:
    activations = {name: torch.cat([rows.activations[name] for rows in parts]) for name in parts[0].activations}
    return Rows(activations, *(torch.cat(column) for column in zip(*(rows[1:] for rows in parts), strict=True)))


def all_rows(stream: Harvest) -> Rows:
    return joined([harvested.rows for harvested in stream.batches()])


def segments(rows: Rows) -> Iterator[tuple[int, Tensor, slice]]:
    """(document, token ids, place in the rows) of each segment: it begins where the position is 0."""
    begins = [*(rows.position == 0).nonzero().flatten().tolist(), len(rows.position)]
    for begin, end in zip(begins[:-1], begins[1:], strict=True):
        where = slice(begin, end)
        assert rows.position[where].tolist() == list(range(end - begin))
        (document,) = set(rows.document[where].tolist())
        yield document, rows.token[where], where


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_the_activation_of_its_document_run_alone(
    family: str, cases: dict[str, Case], texts: Path
) -> None:
    case = cases[family]
    stream = harvest(case, texts)
    assert stream.isolation == (FAMILIES[family] or stream.isolation)
    rows = all_rows(stream)
    for document, tokens, where in segments(rows):
        alone = harvest_forward(case.lm.model, {"input_ids": tokens.long().unsqueeze(0)}, case.sites)
        for site in case.sites:
            expected, got = alone[site.name][0], rows.activations[site.name][where]
            assert got.shape == (len(tokens), site.width)
            assert (got - expected).norm() < 1e-4 * expected.norm(), (document, site.name)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_rows_name_every_token_of_every_document_once_and_in_order(
    family: str, cases: dict[str, Case], texts: Path
) -> None:
    case = cases[family]
    rows = all_rows(harvest(case, texts))
    found: dict[int, list[int]] = defaultdict(list)
    for document, tokens, _ in segments(rows):
        assert tokens[0] == case.lm.tokenizer.bos_token_id
        assert len(tokens) <= CONTEXT
        found[document] += tokens[1:].tolist()
    for index, line in enumerate(texts.open()):
        assert found[index] == case.lm.tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
    assert len(found) == 24
    assert rows.document.tolist() == sorted(rows.document.tolist())


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_padding_gives_no_rows_and_each_kind_is_counted(family: str, cases: dict[str, Case], texts: Path) -> None:
    case = cases[family]
    stream = harvest(case, texts)
    seen = slots = 0
    for harvested in stream.batches():
        real = int((harvested.contexts.document >= 0).sum())
        slots += harvested.contexts.tokens.numel()
        assert len(harvested.rows.token) == real
        seen += real
    assert slots > seen, "there was padding to leave out"
    assert sum(stream.counts.values()) == seen
    rows = all_rows(harvest(case, texts))
    assert stream.counts["bos"] == sum(1 for _ in segments(rows)) == int((rows.kind == BOS).sum())
    assert stream.counts["ordinary"] == int((rows.kind == ORDINARY).sum()) == seen - stream.counts["bos"]


def test_special_tokens_in_the_text_are_left_out_unless_kept(cases: dict[str, Case], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "a river</s>ran past<pad>a mill</s>"}) + "\n")
    stream = harvest(cases["llama"], path)
    rows = all_rows(stream)
    tokenizer = cases["llama"].lm.tokenizer
    special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert {i for i, kind in enumerate(rows.kind.tolist()) if kind == SPECIAL} == {
        i for i, token in enumerate(rows.token.tolist()) if token in special
    }
    assert stream.counts["special"] == 3
    trained = stream.trained_on(rows)
    assert set(trained.kind.tolist()) == {ORDINARY}
    assert len(trained.token) == stream.counts["ordinary"]
    kept = harvest(cases["llama"], path, keep_special=True)
    assert kept.trained_on(all_rows(kept)).token.tolist() == rows.token.tolist()


@contextmanager
def enlarged(case: Case, token: int) -> Iterator[None]:
    """A token's embedding, and so its residual, a hundred times larger."""
    weights = case.lm.model.get_input_embeddings().weight
    before = weights[token].clone()
    with torch.no_grad():
        weights[token] *= 100
    yield
    with torch.no_grad():
        weights[token] = before


@pytest.fixture
def planted(cases: dict[str, Case]) -> Iterator[tuple[Case, int]]:
    """The tiny Llama, and a token of its that is a sink wherever it stands."""
    case = cases["llama"]
    token = case.lm.tokenizer("a mill", add_special_tokens=False)["input_ids"][-1]
    with enlarged(case, token):
        yield case, token


def test_tokens_of_a_huge_norm_are_sinks_and_leave_the_stream(planted: tuple[Case, int], texts: Path) -> None:
    case, token = planted
    stream = harvest(case, texts)
    rows = all_rows(stream)
    assert stream.counts["sink"] == int((rows.token == token).sum()) > 0
    assert set(rows.token[rows.kind == SINK].tolist()) == {token}
    trained = stream.trained_on(rows)
    assert token not in trained.token.tolist()
    assert stream.norm_limits is not None
    for name, limit in stream.norm_limits.items():
        assert trained.activations[name].norm(dim=1).max() <= limit
        assert limit == pytest.approx(10 * stream.first_pass.norm_percentiles[name][2], rel=0.05)


def test_bos_of_a_huge_norm_is_still_bos(cases: dict[str, Case], texts: Path) -> None:
    case = cases["llama"]
    with enlarged(case, case.lm.tokenizer.bos_token_id):
        stream = harvest(case, texts, keep_special=True)
        rows = all_rows(stream)
    assert stream.counts["sink"] == 0
    assert stream.counts["bos"] == sum(1 for _ in segments(rows))
    assert len(stream.trained_on(rows).token) == len(rows.token), "asked to be kept, it is"


def test_sinks_are_kept_by_max_norm_0_and_not_by_keep_special(planted: tuple[Case, int], texts: Path) -> None:
    case, token = planted
    special = harvest(case, texts, keep_special=True)
    assert token not in special.trained_on(all_rows(special)).token.tolist()
    everything = harvest(case, texts, max_norm=0)
    rows = all_rows(everything)
    assert everything.counts["sink"] == 0
    assert token in everything.trained_on(rows).token.tolist()
    assert everything.norm_limits == {}


def test_a_stream_started_later_gives_the_very_rows_of_the_unbroken_one(planted: tuple[Case, int], texts: Path) -> None:
    case, _ = planted
    whole = harvest(case, texts)
    passes = list(whole.batches())
    assert len(passes) > 4
    assert passes[0].begin == Cursor(0, 0)
    for first in (1, len(passes) // 2, len(passes) - 1):
        late = harvest(case, texts)
        rest = list(late.batches(passes[first].begin))
        assert late.norm_limits == whole.norm_limits, "limits do not depend on the start"
        assert len(rest) == len(passes) - first
        for ours, theirs in zip(rest, passes[first:], strict=True):
            assert ours.begin == theirs.begin
            for left, right in zip(ours.rows[1:], theirs.rows[1:], strict=True):
                assert left.equal(right)
            for name, activations in theirs.rows.activations.items():
                assert ours.rows.activations[name].equal(activations)


def test_a_tokenizer_without_special_tokens_gives_only_ordinary_rows(
    cases: dict[str, Case], texts: Path, tmp_path: Path
) -> None:
    from sae.selftest.world import byte_tokenizer

    plain = byte_tokenizer(300, bos=False, eos=False, pad=False)
    lm = cases["llama"].lm
    traits = dataclasses.replace(lm.traits, special=frozenset())
    lm = lm._replace(tokenizer=plain, traits=traits, beginning=())
    stream = harvest(Case(lm, cases["llama"].sites), texts, max_norm=0)
    rows = all_rows(stream)
    assert stream.counts["ordinary"] == len(rows.token) == sum(stream.counts.values())
    text = json.loads(texts.open().readline())["text"]
    assert rows.token[rows.document == 0].tolist() == plain(text)["input_ids"]


def test_percentiles_are_those_of_the_first_forward_pass(cases: dict[str, Case], texts: Path) -> None:
    stream = harvest(cases["llama"], texts)
    first = next(iter(harvest(cases["llama"], texts, max_norm=0).batches())).rows
    for name, values in stream.first_pass.norm_percentiles.items():
        norms = first.activations[name][first.kind == ORDINARY].norm(dim=1)
        assert values[0] <= values[1] <= values[2] <= values[3] <= values[4] <= values[5]
        assert values[5] == pytest.approx(norms.max().item())
        assert (norms <= values[2] + 1e-4).float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", ["llama", "bloom", "bert", "mamba"])
def test_a_late_document_whose_activations_are_not_finite_is_named(
    family: str, value: float, precision: str, cases: dict[str, Case], tmp_path: Path
) -> None:
    lines = [*corpus_texts(20, seed=5), "Zebras Quietly graze in the far north.", *corpus_texts(5, seed=6)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    lm = cases[family].lm
    # how the model was loaded is what the advice goes by
    case = cases[family]._replace(lm=lm._replace(provenance={**lm.provenance, "precision": precision}))
    token = lm.tokenizer.convert_tokens_to_ids("Q")
    weight = lm.model.get_input_embeddings().weight
    before = weight[token].clone()
    with torch.no_grad():
        weight[token, 3] = value
    try:
        stream = harvest(case, path)
        _ = stream.first_pass
        with pytest.raises(ActivationError) as refused:
            list(stream.batches())
    finally:
        with torch.no_grad():
            weight[token] = before
    said = str(refused.value)
    assert said.startswith(f"site resid_post.0: the model's activations are not finite in {precision} in document 20 ")
    assert "Zebras" in said
    advice = {"float32": "no precision helps", "bfloat16": "--precision float32", "float16": "--precision bfloat16"}
    assert advice[precision] in said
    assert ("--precision float32" in said) == (precision == "bfloat16")


def test_documents_without_an_ordinary_token_are_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "</s></s>"}) + "\n")
    with pytest.raises(DataError, match="no token to train on"):
        next(harvest(cases["llama"], path).batches())


def test_select_keeps_columns_together(cases: dict[str, Case], texts: Path) -> None:
    rows = next(harvest(cases["llama"], texts).batches()).rows
    chosen = torch.tensor([5, 2, 9])
    picked = rows.select(chosen)
    for column, whole in zip(picked[1:], rows[1:], strict=True):
        assert column.equal(whole[chosen])
    for name, activations in picked.activations.items():
        assert activations.equal(rows.activations[name][chosen])


@contextmanager
def memory_for(model: torch.nn.Module, contexts: int) -> Iterator[None]:
    """A model that runs out of memory, as on a device, with more contexts than these in a forward pass."""

    def check(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if len(kwargs["input_ids"]) > contexts:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_too_little_memory_halves_the_forward_pass_and_changes_no_row(
    family: str, cases: dict[str, Case], texts: Path
) -> None:
    whole = all_rows(harvest(cases[family], texts, contexts=7))
    lines: list[str] = []
    with memory_for(cases[family].lm.model, 3):
        stream = harvest(cases[family], texts, contexts=7)
        stream.forward.tell = lines.append
        parts = all_rows(stream)
    assert lines == ["Out of memory with 7 contexts in a forward pass: from now on 3."]
    for name, activations in whole.activations.items():
        torch.testing.assert_close(parts.activations[name], activations, rtol=1e-5, atol=1e-5)
    for column, other in zip(whole[1:], parts[1:], strict=True):
        assert torch.equal(column, other)


def test_memory_that_runs_short_in_the_middle_of_a_stream_neither_loses_nor_repeats_a_token(
    cases: dict[str, Case], texts: Path
) -> None:
    model, calls = cases["llama"].lm.model, itertools.count()

    def fail_twice(module: torch.nn.Module, args: tuple) -> None:
        # the third pass, and then, of its parts, one behind a part that fitted
        if next(calls) in (2, 4):
            raise torch.OutOfMemoryError("out of memory")

    whole = all_rows(harvest(cases["llama"], texts, contexts=7))
    stream = harvest(cases["llama"], texts, contexts=7)
    lines: list[str] = []
    stream.forward.tell = lines.append
    _ = stream.first_pass
    calls = itertools.count()
    hook = model.register_forward_pre_hook(fail_twice)
    try:
        parts = all_rows(stream)
    finally:
        hook.remove()
    halved = "Out of memory with {} contexts in a forward pass: from now on {}."
    assert lines == [halved.format(7, 3), halved.format(3, 1)]
    torch.testing.assert_close(parts.activations, whole.activations, rtol=1e-5, atol=1e-5)
    for column, other in zip(whole[1:], parts[1:], strict=True):
        assert torch.equal(column, other)


def test_one_context_that_does_not_fit_is_refused_with_what_helps(cases: dict[str, Case], texts: Path) -> None:
    batches = harvest(cases["llama"], texts).batches()
    next(batches)
    with (
        memory_for(cases["llama"].lm.model, 0),
        pytest.raises(ActivationError, match=f"one context of {CONTEXT} tokens; lower --context"),
    ):
        next(batches)
