"""`sae measure` on a tiny run: the user's labelled texts, activations that are moved in its model, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sae
from finished_runs import finished_run
from sae.base.files import CorruptError
from sae.cli.main import main, parse
from sae.config import ConfigError, MeasureConfig
from sae.evaluation.semantic import attributes, tasks
from sae.evaluation.semantic.bases import Basis, of_autoencoder, raw_channels
from sae.evaluation.semantic.cities import CITIES, AttributeTask
from sae.evaluation.semantic.intervals import Resamples
from sae.evaluation.semantic.prompts import Reader
from sae.evaluation.semantic.results import CAVEATS, SAE, read_semantic, readable, rows_of
from sae.evaluation.semantic.run import measure
from sae.evaluation.semantic.sparse_probing import FULL
from sae.evaluation.semantic.tasks import split
from sae.harvest.language_model import LanguageModel

LETTERS = "aeiouy"
FAST = {"resamples": 100, "control_tokens": 512, "documents": 12, "document_tokens": 24}


@pytest.fixture
def run(tiny_model: Path, corpus: Path, tmp_path: Path) -> Path:
    """A run of 128 latents that a test may write to."""
    return Path(shutil.copytree(finished_run(tiny_model, corpus).folder, tmp_path / "run"))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Texts of three classes, each of its own letters, 14 of each."""
    draw = np.random.default_rng(0)
    rows = [
        {"text": " ".join("".join(draw.choice(list(own), 4)) for _ in range(4)), "label": name}
        for name, own in (("first", "abc"), ("second", "xyz"), ("third", "mno"))
        for _ in range(14)
    ]
    return written(tmp_path / "letters.jsonl", rows)


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_user_s_labels_are_probed_and_removed_beside_every_control_and_kept(run: Path, labels: Path) -> None:
    config = MeasureConfig(measures=("probing", "tpp", "scr"), labels=labels, k=(1, 5), latents=(2,), **FAST)
    report = measure(run, config)
    rows = rows_of(report)
    subjects = {SAE, "random latents", "raw channels", "PCA", "random atoms"}
    assert {r.subject for r in rows if r.measure == "tpp.score"} == subjects
    assert {r.subject for r in rows if r.measure == "probing.auroc" and r.k == 5} == subjects | {FULL}
    assert {r.task for r in rows} == {"letters"}
    for row in rows:
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
        assert (row.difference is None) == (row.subject == SAE)
        assert row.caveat == CAVEATS[row.family]
    # of 12 texts a class five are held out, and letters of their own are easy to tell
    assert {r.n for r in rows} == {15}
    assert next(r for r in rows if r.measure == "probing.accuracy" and r.subject == FULL).value > 0.9
    assert report["left_out"] == {"scr: letters": "it has no second attribute"}
    assert read_semantic(run) == rows
    shown = readable(report)
    assert shown["tpp"] == CAVEATS["tpp"]
    assert set(shown["tpp.score"][0]) >= subjects


def test_what_is_measured_later_stands_beside_what_was_measured_before(run: Path, labels: Path) -> None:
    measure(run, MeasureConfig(measures=("tpp",), labels=labels, latents=(2,), **FAST))
    before = read_semantic(run)
    report = measure(run, MeasureConfig(measures=("absorption", "attributes"), resamples=20, control_tokens=512))
    assert read_semantic(run) == before
    assert set(report["measured"]) == {"tpp", "absorption", "attributes"}
    # a tokenizer of bytes has no word that is one token, and a random model knows no city
    assert "one token" in report["left_out"]["absorption"]
    assert "of 97 cities" in report["left_out"]["attributes"]
    again = measure(run, MeasureConfig(measures=("tpp",), labels=labels, latents=(2,), **FAST))
    assert rows_of(again) == before


def test_a_second_attribute_is_removed_in_both_directions(run: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"text": f"{''.join(draw.choice(list(own), 5))} {''.join(draw.choice(list(more), 20))}", "label": a, "other": b}
        for a, own in (("a", "abc"), ("b", "xyz"))
        for b, more in (("l", "mno"), ("r", "stu"))
        for _ in range(12)
    ]
    labels = written(tmp_path / "two.jsonl", rows)
    report = measure(run, MeasureConfig(measures=("scr",), labels=labels, latents=(2, 20), **FAST))
    assert {r.task for r in rows_of(report)} <= {"two: label kept", "two: other kept"}
    assert rows_of(report)


def test_a_trained_random_dictionary_is_added(run: Path, labels: Path) -> None:
    config = MeasureConfig(measures=("probing",), labels=labels, k=(1,), controls="all", **FAST)
    assert "random dictionary" in {r.subject for r in rows_of(measure(run, config))}


class OwnAnswers(Reader):
    """Attributes whose values are what the model itself says."""

    said: dict[tuple[str, str], int]

    def answers(self, attribute: str, entities: list[str]) -> list[int]:
        return [self.said[attribute, entity] for entity in entities]


@pytest.fixture
def moving(tiny_model: Path, corpus: Path) -> tuple[OwnAnswers, LanguageModel]:
    """Single letters at the end of two prompts: what the model says depends on the prompt and on the letter alone."""
    run = finished_run(tiny_model, corpus)
    lm = run.load_language_model(torch.device("cpu"))
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    templates = {"plain": "{entity}", "prefixed": "q{entity}"}
    reader = OwnAnswers(run, lm, AttributeTask("letters", {letter: {} for letter in letters}, templates))
    reader.said = {(name, letter): 0 for name in templates for letter in letters}
    for name, prompt in reader.ask(letters).items():
        reader.said |= {(name, letter): int(said) for letter, said in zip(letters, prompt.said, strict=True)}
    known = {letter: {name: str(reader.said[name, letter]) for name in templates} for letter in letters}
    reader.task = reader.task._replace(entities=known)
    return reader, lm


def test_moving_everything_causes_all_and_isolates_nothing_and_moving_nothing_the_reverse(moving) -> None:
    reader, _ = moving
    experiment, counts = attributes.prepare(reader, pairs=12, seed=0)
    assert counts["known"] == counts["entities"] == 52
    width = reader.run.model.dim_out
    nothing = Basis("nothing", lambda inputs, targets: targets.numpy(), np.zeros((width, width), dtype=np.float32))
    mean = experiment.prompts["plain"].targets.mean(0)
    channels = raw_channels(mean)._replace(name="all channels")
    sae_basis = of_autoencoder(reader.run.model)
    rows = attributes.attribute_rows(
        reader,
        experiment,
        [sae_basis, nothing, channels],
        [width],
        Resamples.of(counts["pairs"], count=20, seed=0),
        0,
    )
    values = {(r.measure, r.task, r.subject): r.value for r in rows}
    for task in ("plain", "prefixed"):
        for subject in ("all channels", attributes.WHOLE):
            assert values["attributes.cause", task, subject] == 1
            # the source's answer may be the base's in the other prompt only where the two agree, which pairs rule out
            assert values["attributes.isolation", task, subject] == 0
        assert values["attributes.cause", task, "nothing"] == 0
        assert values["attributes.isolation", task, "nothing"] == 1
        assert 0 <= values["attributes.score", task, SAE] <= 1


def test_splits_keep_every_class_on_both_sides() -> None:
    cells = np.array(["a"] * 10 + ["b"] * 3 + ["c"] * 2)
    training = split(cells, np.random.default_rng(0))
    assert [int(training[cells == name].sum()) for name in "abc"] == [6, 2, 1]


def test_built_in_tasks_are_even_and_from_held_out_documents() -> None:
    built = tasks.built_in(15)
    assert {name: len(task.classes) for name, task in built.items()} == {"topic": 5, "language": 3, tasks.PAIRED: 2}
    paired = built[tasks.PAIRED]
    assert paired.other is not None
    cells, sizes = np.unique(np.char.add(paired.labels, paired.other), return_counts=True)
    assert len(cells) == 4
    assert set(sizes.tolist()) == {15}
    assert all(len(set(task.texts)) == len(task.texts) for task in built.values())


def test_every_city_has_every_attribute_and_every_template_names_it() -> None:
    assert len(CITIES.entities) == 97
    assert {tuple(values) for values in CITIES.entities.values()} == {tuple(CITIES.templates)}
    assert all(template.count("{entity}") == 1 for template in CITIES.templates.values())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "x"}], "line 1"),
        ([{"text": "", "label": "a"}], "line 1"),
        ([{"text": f"{i}", "label": "a"} for i in range(12)], "two classes"),
        ([{"text": f"{i}", "label": "ab"[i % 2]} for i in range(12)], "has 6"),
        ([{"text": "x", "label": "a", "other": "b"}, {"text": "y", "label": "a"}], "all rows or in none"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_before_the_model_is_loaded(
    run: Path, tmp_path: Path, rows: list[dict[str, str]], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        measure(run, MeasureConfig(measures=("probing",), labels=written(tmp_path / "bad.jsonl", rows)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--measures", "probing,ravel"], "ravel"),
        (["--measures", "absorption", "--k", "3"], "applies to --measures probing"),
        (["--measures", "attributes", "--words", "2000"], "applies to --measures absorption"),
        (["--labels", "/nowhere.jsonl"], "no such file"),
    ],
)
def test_wrong_arguments_are_refused(run: Path, arguments: list[str], says: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["measure", str(run), *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_measures_are_given_with_commas_and_kept_in_one_order() -> None:
    command = parse(["measure", "runs/x", "--measures", "scr,probing"])
    assert command.config.measures == ("probing", "scr")


def test_a_damaged_record_is_refused_where_it_is_read_and_made_anew_where_it_is_measured(run: Path) -> None:
    measure(run, MeasureConfig(measures=("absorption",), control_tokens=512))
    record = run / "semantic.json"
    record.write_text(record.read_text().replace("absorption", "resorption"))
    with pytest.raises(CorruptError):
        read_semantic(run)
    assert set(measure(run, MeasureConfig(measures=("absorption",), control_tokens=512))["measured"]) == {"absorption"}
    assert read_semantic(run) == []


def test_runs_without_a_language_model_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    from sae.base.files import publish_json

    publish_json(folder / "config.json", {"format": 3, "kind": "image"})
    with pytest.raises(ConfigError, match="measures of meaning"):
        sae.measure(folder)
