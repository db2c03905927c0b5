"""`sae features` of runs on images: what a store holds is what all images' dense codes say, computed the plain way."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.brute import Corpus, expected
from sae.base.files import publish_json, read_json
from sae.base.progress import Interrupted
from sae.cli.main import parse
from sae.config import (
    CollectConfig,
    ConfigError,
    ExplainConfig,
    ImageDataConfig,
    ImageTrainConfig,
    OptimConfig,
    SteerConfig,
    VisionConfig,
)
from sae.data.images import ImageSet
from sae.features.collect.collect import collect
from sae.features.explain.explain import explain
from sae.features.steer.steer import steer_run
from sae.features.store.lens import UndefinedError
from sae.features.store.search import search
from sae.features.store.store import FeatureStore, read_info
from sae.features.store.writer import STORE
from sae.runs.images import ImageRun, dense_codes, open_image_run
from sae.training.run import train as train_run

LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"width": 24, "k": 4},
    "kl_sparse": {"width": 10, "hidden": (16,)},
    "vqvae": {"width": 16, "channels": (8,), "code_dim": 4},
    "vqvae2": {"width": 12, "channels": (8,), "code_dim": 4},
}


def train(out: Path, variant: str, data: str = "digits", **vision: Any) -> Path:
    """A finished run of two epochs on small images."""
    config = ImageTrainConfig(
        images=ImageDataConfig(data=data),
        vision=VisionConfig(variant=variant, **vision),
        optim=OptimConfig(batch=100),
        epochs=2,
        out=out,
        device="cpu",
    )
    train_run(config)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs by variant, without features."""
    folder = tmp_path_factory.mktemp("images")
    return {variant: train(folder / variant, variant, **settings) for variant, settings in VARIANTS.items()}


@pytest.fixture(scope="module")
def collected(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies with the features of all training images."""
    folder = tmp_path_factory.mktemp("collected")
    for variant, run in runs.items():
        shutil.copytree(run, folder / variant)
        collect(folder / variant, CollectConfig(device="cpu"))
    return {variant: folder / variant for variant in runs}


def corpus_of(run: Path) -> Corpus:
    """Every row of every training image's code, with the place that it must be known by."""
    opened = open_image_run(run)
    images, positions, width = opened.images("train"), opened.model.positions, opened.model.width
    codes = dense_codes(opened.model, images.all()).view(images.count * positions, width)
    assert images.labels is not None
    document = np.arange(images.count).repeat(positions)
    place = np.tile(np.arange(positions), images.count)
    return Corpus(images.labels.numpy().repeat(positions), document, place, np.zeros_like(place), codes.numpy())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_store_holds_what_all_dense_codes_say(variant: str, collected: dict[str, Path]) -> None:
    store, corpus = FeatureStore(collected[variant]), corpus_of(collected[variant])
    fires = corpus.codes > 0
    assert store.info["tokens"] == len(corpus.codes)
    np.testing.assert_array_equal(store.scalars["count"], fires.sum(0))
    # images in other batches give codes that differ in their last bits
    np.testing.assert_allclose(store.scalars["max"], corpus.codes.max(0), rtol=1e-5)
    np.testing.assert_allclose(
        store.scalars["mean"], np.where(fires, corpus.codes, 0).sum(0) / fires.sum(0).clip(1), rtol=1e-5
    )
    assert fires.any(0).sum() > 4
    for latent in fires.any(0).nonzero()[0][::3].tolist():
        wanted, record = expected(corpus, latent, 0), store.record(latent)
        assert sum(record["histogram"]["counts"]) == wanted.count
        for band in ("top", "uniform", "weighted"):
            found = [e for e in record["examples"] if e["band"] == band]
            values, documents, places = map(np.array, zip(*wanted.events[band], strict=True))
            np.testing.assert_allclose([e["value"] for e in found], values, rtol=1e-5)
            if band == "uniform":  # in random order, which rounding cannot change
                assert [(e["document"], e["position"]) for e in found] == list(
                    zip(documents.tolist(), places.tolist(), strict=True)
                )
            for example in found:
                row = example["document"] * store.info["positions"] + example["position"]
                assert corpus.codes[row, latent] == pytest.approx(example["value"], rel=1e-5)
                label = str(corpus.token[row])
                assert example["tokens"][example["peak"]] == label


@pytest.mark.parametrize("variant", ["topk", "kl_sparse"])
def test_bands_are_quantiles_of_all_firings(variant: str, collected: dict[str, Path]) -> None:
    """Exact for a latent that fires no oftener than the samples have slots; near for the others."""
    store, corpus = FeatureStore(collected[variant]), corpus_of(collected[variant])
    checked = 0
    for latent in range(store.width):
        values = np.sort(corpus.codes[corpus.codes[:, latent] > 0, latent])
        record = store.record(latent)
        bands = record["bands"]
        if not len(values):
            assert not bands
            continue
        assert bands[0]["high"] == pytest.approx(values[-1], rel=1e-5)
        assert sum(band["share"] for band in bands) == pytest.approx(1)
        for band in bands:
            examples = [record["examples"][i] for i in band["examples"]]
            assert all(band["low"] < e["value"] <= band["high"] for e in examples)
        if len(values) <= 32 and len(bands) == len(LEVELS) - 1:
            cuts = [values[min(int(np.ceil(level * len(values))) - 1, len(values) - 1)] for level in LEVELS[1:]]
            np.testing.assert_allclose([band["high"] for band in bands], cuts[::-1], rtol=1e-5)
            checked += 1
        elif len(values) > 300:
            share = np.mean([(values <= band["high"]).mean() for band in bands if band["share"] == 0.25])
            assert share == pytest.approx(0.5, abs=0.2)
            checked += 1
    assert checked


def test_the_store_tells_of_images_labels_and_places(collected: dict[str, Path]) -> None:
    store = FeatureStore(collected["vqvae2"])
    wanted = {"kind": "image", "model": "vqvae2", "dataset": "digits", "shape": [1, 8, 8], "positions": 20}
    assert {name: store.info[name] for name in wanted} == wanted
    assert (store.info["grids"], store.info["finished"], store.info["progress"]) == ([[2, 2], [4, 4]], True, 1.0)
    assert store.info["left_out"] == {"bos": 0, "special": 0, "sink": 0}
    topk = FeatureStore(collected["topk"])
    assert (topk.info["grids"], topk.info["positions"]) == ([], 1)
    labels = open_image_run(collected["topk"]).images("train").labels
    assert labels is not None
    alive = topk.scalars["count"] > 0
    assert set(topk.scalars["top_token"][alive]) <= set("0123456789")
    example = topk.record(int(topk.scalars["count"].argmax()))["examples"][0]
    assert topk.document(example["document"])["tokens"] == [str(int(labels[example["document"]]))]
    assert search(topk, "7")[0].where == "example"


def test_atoms_have_neighbours_and_no_logits(collected: dict[str, Path]) -> None:
    store = FeatureStore(collected["topk"])
    atoms = open_image_run(collected["topk"]).model.dictionary.W.detach().numpy()
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(len(unit))
    np.testing.assert_allclose(store.scalars["nearest_cos"], cosines.max(1), atol=1e-5)
    assert store.neighbours(3)[0]["latent"] == int(cosines[3].argmax())
    np.testing.assert_allclose(store.scalars["atom_norm"], np.linalg.norm(atoms, axis=1), rtol=1e-5)
    with pytest.raises(UndefinedError, match="no language model"):
        store.logits(3)


def content(folder: Path) -> str:
    """Everything in a store, but for when it was written and how often."""
    info = {name: v for name, v in read_info(folder / STORE).items() if name not in ("collected_at", "revision")}
    connection = sqlite3.connect(folder / STORE)
    tables = [
        connection.execute(f"SELECT * FROM {table} ORDER BY id").fetchall()
        for table in ("records", "documents", "events", "texts")
    ]
    connection.close()
    return repr((info, tables, FeatureStore(folder).scalars.tolist()))


@pytest.mark.parametrize("variant", ["topk", "vqvae"])
def test_a_resumed_pass_ends_with_the_unbroken_ones_bits(
    variant: str, runs: dict[str, Path], collected: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[variant], folder)
    positions = FeatureStore(collected[variant]).info["positions"]
    for tokens in (300 * positions, 700 * positions, 262_144):
        collect(folder, CollectConfig(tokens=tokens, resume=tokens > 300 * positions, device="cpu"))
    assert content(folder) == content(collected[variant])
    # all images are used: nothing is left to do
    revision = read_info(folder / STORE)["revision"]
    collect(folder, CollectConfig(resume=True, device="cpu"))
    assert read_info(folder / STORE)["revision"] == revision


def test_a_signal_keeps_what_was_collected_and_tells_how_to_go_on(
    runs: dict[str, Path], collected: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["topk"], folder)
    images = ImageRun.images

    def interrupting(self: ImageRun, split: Any, *, limit: int | None = None) -> ImageSet:
        found = images(self, split, limit=limit)

        def render(positions: torch.Tensor) -> torch.Tensor:
            if positions[0] == 512:
                os.kill(os.getpid(), signal.SIGINT)
            return found.render(positions)

        return dataclasses.replace(found, render=render)

    with monkeypatch.context() as patched:
        patched.setattr(ImageRun, "images", interrupting)
        with pytest.raises(Interrupted, match=f"sae features {folder} --resume"):
            collect(folder, CollectConfig(device="cpu"))
    info = read_info(folder / STORE)
    assert not info["finished"]
    assert 0 < info["progress"] < 1
    collect(folder, CollectConfig(resume=True, device="cpu"))
    assert content(folder) == content(collected["topk"])


def test_held_out_images_are_another_collection(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["topk"], folder)
    report = parse(["features", str(folder), "--split", "heldout", "--device", "cpu"]).run()
    assert (report["tokens"], report["latents"]) == (359, 24)
    with pytest.raises(ConfigError, match="split = 'heldout', now it is 'train'"):
        collect(folder, CollectConfig(resume=True))
    # as if the file of images had changed
    record = read_json(folder / "config.json")
    record["train"]["images"]["split_seed"] = 1
    publish_json(folder / "config.json", record)
    with pytest.raises(ConfigError, match="collected with images = "):
        collect(folder, CollectConfig(resume=True, split="heldout"))


def test_images_without_labels_are_called_images(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "relu", "planted?atoms=12&size=8&count=200", width=16)
    report = collect(run, CollectConfig(device="cpu"))
    store = FeatureStore(run)
    assert report["tokens"] == open_image_run(run).images("train").count
    assert not store.info["labels"]
    assert set(store.scalars["top_token"][store.scalars["count"] > 0]) == {"image"}


@pytest.mark.parametrize("variant", ["ae", "linear", "vae", "denoising"])
def test_codes_that_can_be_negative_are_refused(variant: str, tmp_path: Path) -> None:
    hidden = {} if variant == "linear" else {"hidden": (8,)}
    run = train(tmp_path / "run", variant, width=4, **hidden)
    with pytest.raises(ConfigError, match=f"--variant {variant}: has a code that can be negative.*topk"):
        collect(run, CollectConfig(device="cpu"))
    assert not (run / STORE).exists()


def test_what_needs_text_is_refused(collected: dict[str, Path], tmp_path: Path) -> None:
    run = collected["topk"]
    refused: dict[str, dict[str, Any]] = {"--dataset mnist5k": {"dataset": "mnist5k"}, "--store": {"store": tmp_path}}
    for flag, setting in refused.items():
        with pytest.raises(ConfigError, match=f"{flag}.*collected over its own images"):
            collect(run, CollectConfig(**setting))
    with pytest.raises(ConfigError, match=r"a run on images, made by .*; naming latents from text needs"):
        explain(run, ExplainConfig())
    with pytest.raises(ConfigError, match=r"a run on images, .*; steering needs"):
        steer_run(run, SteerConfig(prompt="the", latent=(3,)))
