"""`sae image train` and its evaluation: from a command line to figures; resumed runs; refusals before a step."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sae
from sae.base.files import publish_json, read_json
from sae.base.progress import Interrupted
from sae.cli import main as cli
from sae.config import (
    ConfigError,
    ImageDataConfig,
    ImageEvalConfig,
    ImageTrainConfig,
    OptimConfig,
    VisionConfig,
    usual_epochs,
)
from sae.data.images import open_images
from sae.data.images.base import ImageSet
from sae.evaluation.images import evaluate_images
from sae.evaluation.variational import activity, bounds, moments
from sae.models.saved import read_report
from sae.modules.divergences import kl_per_latent
from sae.runs.images import decode_dense, dense_codes, open_image_run, with_labels
from sae.training.images import ImageBatches
from sae.training.plan import make_plan
from sae.training.run import train
from sae.training.space import estimate
from sae.training.trainer import Trainer


def config_of(out: Path, variant: str = "vae", *, epochs: int = 3, **vision: Any) -> ImageTrainConfig:
    settings: dict[str, Any] = {"variant": variant, "width": 10, **vision}
    if "channels" not in vision:
        settings = {"hidden": (24,), **settings}
    return ImageTrainConfig(
        images=ImageDataConfig(data="digits"),
        vision=VisionConfig(**settings),
        optim=OptimConfig(batch=100),
        epochs=epochs,
        out=out,
        log_every=5,
        checkpoint_every=500,
        device="cpu",
    )


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a variational autoencoder on digits."""
    out = tmp_path_factory.mktemp("images") / "vae"
    train(config_of(out, epochs=25))
    return out


# --- from the command line ---


def test_the_command_line_trains_evaluates_and_verifies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    cli.main(
        ["image", "train", "--variant", "topk", "--data", "digits", "--epochs", "20", "--width", "32", "--k", "4",
         "--out", str(out), "--device", "cpu", "--json"]
    )  # fmt: skip
    line = capfd.readouterr().out.splitlines()
    assert len(line) == 1, "one JSON line on stdout and nothing else"
    result = json.loads(line[0])
    assert (result["variant"], result["images"], result["route"]) == ("topk", 1438, "fused")
    cli.main(["eval", str(out), "--json"])
    report = json.loads(capfd.readouterr().out)
    assert report == read_report(out, "eval.json")
    assert report["fvu"]["low"] < report["fvu"]["value"] < report["fvu"]["high"]
    assert report["fvu"]["value"] < report["baselines"]["pca_fvu"]["value"], "four atoms beat four components"
    assert report["l0"]["value"] == pytest.approx(4, abs=0.2)
    assert report["images"] == 359
    cli.main(["verify", str(out), "--json"])
    assert json.loads(capfd.readouterr().out)["verified"]
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["images"] == rows[-1]["step"] * 128
    record = read_json(out / "config.json")
    assert (record["kind"], record["data"]["shape"]) == ("image", [1, 8, 8])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variant", "vea", "--data", "digits"], "--variant 'vea' is unknown; did you mean 'vae'"),
        (["--data", "digit"], "image set 'digit' is unknown; did you mean 'digits'"),
        (["--data", "digits", "--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--data", "digits", "--batch", "5000"], "--batch 5000: digits has only 1438 training images"),
        (["--data", "digits", "--only-label", "11"], "--only-label 11: no label '11' (known: 0, 1"),
        (["--data", "digits", "--variant", "vae", "--output", "linear"], "--likelihood bernoulli: needs --output"),
    ],
)
def test_a_wrong_argument_is_refused_and_leaves_nothing(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["image", "train", *arguments, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_help_of_the_image_commands_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["image", "--help"])
    said = capsys.readouterr().out
    assert "usage: sae image" in said
    for command in ("train", "eval"):
        assert command in said


def test_a_language_run_is_no_image_run(tmp_path: Path) -> None:
    publish_json(tmp_path / "config.json", {"kind": "language", "train": {}, "data": {}})
    with pytest.raises(ConfigError, match="expected a run on images, made by: sae image train"):
        open_image_run(tmp_path)


# --- stopping and going on ---


@pytest.mark.parametrize("variant", ["vae", "denoising"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = config_of(tmp_path / "whole", variant)
    train(whole)
    step = Trainer.step

    def interrupt(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        if self.taken == 17:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = dataclasses.replace(whole, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        with pytest.raises(Interrupted, match="continue with: sae image train --resume --out"):
            train(stopped)
    cli.main(["image", "train", "--resume", "--out", str(stopped.out)])
    assert "Resuming at step 17 of 42." in capsys.readouterr().err
    a, b = (load_file(run.out / "sae.safetensors") for run in (whole, stopped))
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert tensor.equal(b[name]), name
    lines = [(run.out / "metrics.jsonl").read_text().splitlines() for run in (whole, stopped)]
    # the line after the stop tells of fewer steps
    assert lines[0][4:] == lines[1][4:]
    assert lines[0][:3] == lines[1][:3]


def test_a_finished_run_is_not_trained_again(vae: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        train(config_of(vae))
    with pytest.raises(ConfigError, match="is finished; evaluate it with: sae eval"):
        train(dataclasses.replace(config_of(vae, epochs=25), resume=True))


# --- batches ---


def test_every_image_comes_once_an_epoch_in_another_order() -> None:
    images = open_images("digits", limit=60)
    batches = ImageBatches(images, batch=20, epochs=2, seed=0)
    seen = [batch.input for batch in batches.iterate(None)]
    assert len(seen) == batches.steps == 6
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    for epoch in epochs:
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, images.all().tolist()))
    assert not epochs[0].equal(epochs[1])
    later = [b.input for b in batches.iterate({"step": 2, "batch": 20})]
    assert all(a.equal(b) for a, b in zip(later, seen[2:], strict=True))


def test_sets_that_are_not_held_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images("dsprites?size=32", limit=60)
    held = [b.input for b in ImageBatches(images, batch=16, epochs=2, seed=1).iterate(None)]
    monkeypatch.setattr("sae.training.images.MEMORY_BYTES", 0)
    rendered = [b.input for b in ImageBatches(images, batch=16, epochs=2, seed=1).iterate(None)]
    assert all(a.equal(b) for a, b in zip(held, rendered, strict=True))


def test_training_on_some_labels_leaves_the_others_held_out(tmp_path: Path) -> None:
    train(dataclasses.replace(config_of(tmp_path / "run", "ae"), only_label="!1,2"))
    run = open_image_run(tmp_path / "run")
    labels, held = run.images("train").labels, run.images("heldout").labels
    assert labels is not None
    assert held is not None
    assert set(labels.tolist()) == set(range(10)) - {1, 2}
    assert set(held.tolist()) == set(range(10))


# --- evaluation ---


def test_fvu_is_that_of_the_loaded_weights_on_the_held_out_images(vae: Path) -> None:
    report = evaluate_images(vae, ImageEvalConfig(samples=0, resamples=20))
    x = open_images("digits", split="heldout").all()
    model = sae.load(vae)
    x_hat = decode_dense(model, dense_codes(model, x))
    assert torch.allclose(x_hat, model(x).reconstruction, atol=1e-5)
    fvu = ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert report["fvu"]["value"] == pytest.approx(fvu, rel=1e-4)
    psnr = -10 * (x - x_hat).square().mean().log10().item()
    assert report["psnr"]["value"] == pytest.approx(psnr, abs=1e-3)
    assert "importance" not in report["bounds"]


def test_the_bound_is_likelihood_and_divergence_of_the_same_draw(vae: Path) -> None:
    run = open_image_run(vae)
    x = run.images("heldout").render(torch.arange(50))
    found = bounds(run.model, run.vision, x, samples=0, generator=torch.Generator().manual_seed(0))
    mean, log_variance = moments(run.model, x)
    assert torch.allclose(found.kl, kl_per_latent(mean, log_variance).sum(1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    z = mean + (0.5 * log_variance).exp() * noise
    with torch.no_grad():
        logits = run.model.outputs(z @ run.model.dictionary.W + run.model.dictionary.b)
    nll = -(x * torch.nn.functional.logsigmoid(logits) + (1 - x) * torch.nn.functional.logsigmoid(-logits)).sum(1)
    assert torch.allclose(found.nll, nll, rtol=1e-4)
    assert torch.allclose(found.elbo, -(nll + found.kl), rtol=1e-4)


def test_the_importance_weighted_bound_does_not_fall_with_more_draws(vae: Path) -> None:
    run = open_image_run(vae)
    x = run.images("heldout").all()
    means = {}
    for samples in (1, 8, 64):
        found = bounds(run.model, run.vision, x, samples=samples, generator=torch.Generator().manual_seed(1))
        assert found.importance is not None
        means[samples] = found.importance.mean().item()
    assert means[1] < means[8] < means[64]
    elbo = bounds(run.model, run.vision, x, samples=0, generator=torch.Generator().manual_seed(1)).elbo.mean().item()
    assert means[1] == pytest.approx(elbo, abs=0.5)


def test_the_bound_takes_exactly_k_draws_however_they_are_cut(vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_image_run(vae)
    x = run.images("heldout").render(torch.arange(3))

    def bound(samples: int) -> Any:
        return bounds(run.model, run.vision, x, samples=samples, generator=torch.Generator().manual_seed(2)).importance

    whole = bound(10)
    monkeypatch.setattr("sae.evaluation.variational.CHUNK_NUMBERS", 3 * 64 * 4)  # four draws at a time: 4, 4, 2
    assert torch.allclose(bound(10), whole, rtol=0.05)
    decoded: list[int] = []
    outputs = type(run.model).outputs

    def count(self: Any, rows: torch.Tensor) -> torch.Tensor:
        decoded.append(len(rows))
        return outputs(self, rows)

    monkeypatch.setattr(type(run.model), "outputs", count)
    bound(10)
    assert sum(decoded) == 3 + 3 * 10, "one draw for the likelihood, ten for the bound"


def test_latents_that_stand_still_are_not_active() -> None:
    mean = torch.cat([torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(500, 3)], 1)
    found = activity(mean, torch.zeros(500, 5))
    assert found.active == 2
    assert found.kl[2:].abs().max() == 0


def test_a_denoising_run_is_evaluated_at_levels_it_never_saw(tmp_path: Path) -> None:
    train(config_of(tmp_path / "run", "denoising", epochs=40, width=32, hidden=(64,)))
    rows = evaluate_images(tmp_path / "run", ImageEvalConfig(resamples=20))["denoising"]
    assert [row["level"] for row in rows] == pytest.approx([0.075, 0.15, 0.3, 0.45, 0.6])
    assert rows[2]["gain"] > 1
    assert rows[2]["noisy_psnr"] == pytest.approx(-10 * torch.tensor(0.3).square().log10().item(), abs=0.1)


def test_a_codebook_s_perplexity_lies_between_one_and_its_size(tmp_path: Path) -> None:
    train(config_of(tmp_path / "run", "vqvae", epochs=2, channels=(8,), code_dim=4))
    report = evaluate_images(tmp_path / "run", ImageEvalConfig(resamples=20))
    assert 1 < report["codebook"]["perplexity"] <= report["codebook"]["atoms"] == 10
    assert sum(report["codebook"]["shares"]) == pytest.approx(1)
    assert report["l0"]["value"] == 16, "one atom for each of 4 x 4 places"


def test_a_dry_run_tells_what_the_run_then_is_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = ImageTrainConfig(
        images=ImageDataConfig(data="digits"),
        vision=VisionConfig(variant="vae", width=4),
        epochs=2,
        out=out,
        device="cpu",
    )
    planned = estimate(make_plan(config))
    assert not out.exists()
    done = train(config)
    assert [planned[name] for name in ("images", "parameters", "steps", "route")] == [
        done.available,
        done.parameters,
        done.steps,
        done.route,
    ]
    assert planned["dictionary"] == [4, 256]
    assert planned["memory_bytes"]["images"] == 4 * 64 * done.available
    assert planned["seconds"]["training"] > 0


# --- how long, where nothing is said ---


@pytest.mark.parametrize(
    ("data", "limit", "steps"),
    [
        ("digits", None, (5_900, 6_100)),
        ("digits", 500, (3_000, 3_000)),  # no more than 1,000 passes of 3 steps
        ("planted", 4_000, (5_900, 6_100)),
        ("dsprites", 100_000, (5_400, 6_600)),
    ],
)
def test_the_length_is_steps_whatever_the_set(
    data: str, limit: int | None, steps: tuple[int, int], tmp_path: Path
) -> None:
    config = ImageTrainConfig(images=ImageDataConfig(data=data, limit=limit), out=tmp_path / "run", device="cpu")
    plan = make_plan(config)
    planned = estimate(plan)
    assert steps[0] <= planned["steps"] <= steps[1]
    assert planned["epochs"] == plan.config.epochs == usual_epochs(plan.data.images.count, 128)


def test_a_set_too_large_for_the_usual_steps_is_seen_once() -> None:
    assert usual_epochs(3_000_000, 128) == 1


@pytest.mark.parametrize(("images", "batch", "epochs"), [(80, 80, 3_000), (300, 128, 1_500), (500, 128, 1_000)])
def test_a_few_pictures_get_three_thousand_steps(images: int, batch: int, epochs: int) -> None:
    assert usual_epochs(images, batch) == epochs


def test_a_run_of_the_usual_length_tells_it_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sae.config.images.USUAL_STEPS", 44)
    whole = dataclasses.replace(config_of(tmp_path / "whole"), epochs=None)
    train(whole)
    said = capsys.readouterr().err
    assert re.search(r"Training 42 steps of 100 images, 3 passes over 1,438, \w+ route: about 1 s in all", said), said
    assert open_image_run(whole.out).config.epochs == 3
    step = Trainer.step

    def interrupt(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        if self.taken == 17:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = dataclasses.replace(whole, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        with pytest.raises(Interrupted):
            train(stopped)
    monkeypatch.setattr("sae.config.images.USUAL_STEPS", 9_000)  # as another version may have it
    cli.main(["image", "train", "--resume", "--out", str(stopped.out)])
    a, b = (load_file(run.out / "sae.safetensors") for run in (whole, stopped))
    assert all(tensor.equal(b[name]) for name, tensor in a.items())


@pytest.mark.parametrize(("variant", "most"), [("vae", 0.4), ("beta_vae", 0.2), ("capacity_vae", 0.3)])
def test_codes_held_to_a_prior_give_digits_that_can_be_read(variant: str, most: float, tmp_path: Path) -> None:
    """The README's command and its kin, at 180 passes of 545: some eight seconds each, as the length is tested."""
    out = tmp_path / variant
    cli.main(
        ["image", "train", "--variant", variant, "--data", "digits", "--epochs", "180", "--out", str(out),
         "--device", "cpu", "--json"]
    )  # fmt: skip
    report = evaluate_images(out, ImageEvalConfig(samples=0, resamples=10))
    assert report["fvu"]["value"] < most, "the first was .53 after 60 passes, the second 1 at any length: grey smears"


@pytest.mark.parametrize(("only", "kept"), [("3", [3, 3]), ("!3", [7, 9]), ("7,9", [7, 9])])
def test_labels_without_names_are_taken_by_their_numbers(only: str, kept: list[int]) -> None:
    images = ImageSet(
        name="four",
        shape=(1, 1, 1),
        count=4,
        render=lambda positions: torch.zeros(len(positions), 1),
        provenance={},
        labels=torch.tensor([3, 7, 3, 9]),
    )
    labels = with_labels(images, only).labels
    assert labels is not None
    assert sorted(labels.tolist()) == kept
