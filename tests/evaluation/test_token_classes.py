"""Delta CE by position and class: the classes make up the whole, each is that of the shortest code for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from evaluated import DRAWS, autoencoder
from finished_runs import finished_run
from sae.config import EvalConfig
from sae.data.packing import BEGINNING
from sae.evaluation import downstream
from sae.evaluation.bootstrap import GroupSums
from sae.evaluation.run import evaluate
from sae.evaluation.token_classes import CLASSES, PARTITIONS, TokenClasses, added_by_class
from sae.harvest.stream import KINDS, Harvest


class Words:
    """A tokenizer whose ids are places in a list of texts."""

    all_special_ids = (0,)
    texts = ("<s>", " the", "ing", " 12", ".", "\n", "\ufffd", "Don", "'t", " क", "ि")

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(self.texts[i] for i in ids)


def classes_of(membership: torch.Tensor, partition: str) -> list[str]:
    """The class of each row in one partition."""
    places = [i for i, (name, _) in enumerate(CLASSES) if name == partition]
    assert (membership[:, places].sum(1) == 1).all(), "every token has one class"
    return [CLASSES[places[i]][1] for i in membership[:, places].argmax(1).tolist()]


def sort(read: list[int], following: list[int], counted: list[int] | None = None, position: list[int] | None = None):
    sorter = TokenClasses(Words())
    sorter.count(torch.tensor(counted or [], dtype=torch.int64))
    kind = torch.zeros(len(read), dtype=torch.int8)
    return sorter(torch.tensor(read), kind, torch.tensor(position or [3] * len(read)), torch.tensor(following))


def test_tokens_are_told_apart_by_their_text_and_the_token_before() -> None:
    pairs = {
        (2, 1): "first of a word",  # "ing the"
        (1, 2): "inside a word",  # " theing"
        (4, 2): "first of a word",  # ".ing"
        (5, 7): "first of a word",
        (0, 7): "first of a word",  # behind BOS
        (7, 8): "inside a word",  # "Don't"
        (1, 3): "number",
        (1, 4): "punctuation",
        (4, 5): "whitespace",
        (1, 6): "part of a character",
        (4, 0): "special",
        (9, 10): "inside a word",  # a vowel sign
    }
    read, following = zip(*pairs, strict=True)
    assert classes_of(sort(list(read), list(following)), "word") == list(pairs.values())


def test_positions_are_counted_in_doublings() -> None:
    position = [0, 1, 2, 3, 4, 7, 8, 255, 256]
    membership = sort([1] * 9, [2] * 9, position=position)
    expected = ["1", "2", "3 to 4", "3 to 4", "5 to 8", "5 to 8", "9 to 16", "129 to 256", "257 to 512"]
    assert classes_of(membership, "position") == expected


def test_frequencies_are_ranks_among_the_counted_tokens() -> None:
    counted = [token for token in range(11) for _ in range(20 - token) if token != 5]
    membership = sort([1] * 4, [1, 10, 5, 9], counted)
    names = classes_of(membership, "frequency")
    assert names == ["10 most frequent", "10 most frequent", "not among the training tokens", "10 most frequent"]
    many = torch.arange(2000).flip(0)
    sorter = TokenClasses(Words())
    for part in many.split(77):
        sorter.count(part)
    sorter.count(torch.arange(15).repeat(3))
    following = torch.tensor([0, 10, 99, 100, 999, 1000, 2500])
    ranks = sorter._frequency(following).tolist()
    assert ranks == [0, 1, 1, 2, 2, 3, 4]


def test_without_training_tokens_there_is_no_frequency() -> None:
    places = [i for i, (name, _) in enumerate(CLASSES) if name == "frequency"]
    assert sort([1], [2])[:, places].sum() == 0


def random_sums() -> tuple[GroupSums, torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    n = 400
    membership = torch.zeros(n, len(CLASSES))
    first = 0
    for partition in PARTITIONS.values():
        width = len(partition.classes)
        membership[torch.arange(n), first + torch.randint(min(width, 4), (n,), generator=draw)] = 1
        first += width
    losses = {name: torch.rand(n, generator=draw).double() for name in ("clean", "spliced", "PCA")}
    sums = GroupSums()
    weighted = {f"class.{name}": membership * rows[:, None] for name, rows in losses.items()}
    sums.add(torch.arange(n) // 20, weighted | {"class.count": membership})
    return sums, membership, losses


def test_every_class_is_the_mean_over_its_tokens_and_they_make_up_the_whole() -> None:
    sums, membership, losses = random_sums()
    report = added_by_class(sums, {"PCA": "PCA"}, counted=7, **DRAWS)
    for name in PARTITIONS:
        for row in report[name]:
            tokens = membership[:, CLASSES.index((name, row["class"]))].bool()
            assert row["tokens"] == int(tokens.sum())
            assert row["ce_clean"].value == pytest.approx(losses["clean"][tokens].mean().item())
            for value, of in ((row["delta_ce"], "spliced"), (row["controls"]["PCA"], "PCA")):
                assert value.value == pytest.approx((losses[of] - losses["clean"])[tokens].mean().item())
                assert value.low < value.value < value.high
        whole = sum(row["tokens"] * row["delta_ce"].value for row in report[name]) / 400
        assert whole == pytest.approx((losses["spliced"] - losses["clean"]).mean().item())
    assert report["counted"] == 7


def by_class(harvest: Harvest, model) -> tuple[GroupSums, dict]:
    sort = TokenClasses(harvest.lm.tokenizer)
    dim = harvest.sites[0].width or 0
    splices = {"it": downstream.Splice(model, harvest.sites, harvest.sites, torch.zeros(dim))}
    measuring = downstream.Downstream(harvest, [tuple(harvest.sites)], sort)
    for contexts in downstream.enough(harvest.contexts(BEGINNING), 600):
        sort.count(contexts.tokens[contexts.document >= 0])
        measuring.add(measuring.batch(contexts), splices)
    sums = measuring.sums["it"]
    return sums, added_by_class(sums, {}, counted=sort.counted, **DRAWS)


def test_the_identity_adds_nothing_in_any_class(harvest: Harvest) -> None:
    dim = harvest.sites[0].width or 0
    _, report = by_class(harvest, autoencoder(dim, torch.eye(dim), torch.zeros(dim)))
    rows = [row for name in PARTITIONS for row in report[name]]
    assert len(rows) > 10
    assert all(row["delta_ce"].value == pytest.approx(0, abs=1e-5) for row in rows)


def test_a_token_that_follows_nothing_replaced_costs_nothing(harvest: Harvest) -> None:
    """BOS is not replaced, so what is predicted from it alone is predicted as well as before; the rest is not."""
    dim = harvest.sites[0].width or 0
    sums, report = by_class(harvest, autoencoder(dim, torch.zeros(3, dim), torch.full((dim,), 9.0)))
    position, kind = ({row["class"]: row["delta_ce"].value for row in report[name]} for name in ("position", "kind"))
    assert position["1"] == pytest.approx(0, abs=1e-5)
    assert kind[KINDS[1]] == pytest.approx(0, abs=1e-5)
    assert abs(kind["ordinary"]) > 1e-4
    whole = downstream.metrics(sums, **DRAWS)["delta_ce"].value
    tokens = sums.sums["count"].sum().item()
    for name in PARTITIONS:
        mean = sum(row["tokens"] * row["delta_ce"].value for row in report[name]) / tokens
        assert mean == pytest.approx(whole, abs=1e-6), name


def test_an_evaluation_holds_every_class_with_its_controls(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder)
    settings = {"tokens": 900, "downstream_tokens": 600, "resamples": 20}
    report = evaluate(folder, EvalConfig(pca_tokens=1_000, **settings))
    by = report["added_by_class"]
    assert by["counted"] >= 1_000
    for name in PARTITIONS:
        assert sum(row["tokens"] for row in by[name]) == report["downstream"]["tokens"], name
        mean = sum(row["tokens"] * row["delta_ce"]["value"] for row in by[name]) / report["downstream"]["tokens"]
        assert mean == pytest.approx(report["downstream"]["delta_ce"]["value"], abs=1e-6)
        assert all(list(row["controls"]) == [c["control"] for c in report["controls"]] for row in by[name])
    without = evaluate(folder, EvalConfig(pca_tokens=0, controls="none", **settings))["added_by_class"]
    assert "frequency" not in without
    assert without["word"][0]["controls"] == {}
