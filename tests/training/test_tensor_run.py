"""`sae train --data FILE`: activations of any model, from a file to figures; resumed runs; refusals before a step."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

import forked
import sae
from sae.base.files import read_json
from sae.base.progress import Interrupted
from sae.cli import main as cli
from sae.cli.image_commands import ImageTrain
from sae.config import ConfigError, EvalConfig, OptimConfig, SAEConfig, TensorDataConfig, TensorTrainConfig
from sae.data.rows import DataError
from sae.data.tensors import open_tensors
from sae.models.saved import read_report
from sae.runs import open_run
from sae.training.plan import make_plan
from sae.training.run import train
from sae.training.space import estimate
from sae.training.trainer import Trainer

ROWS, WIDTH = 3000, 24


def planted() -> Tensor:
    """Sums of a few of 64 directions, so that a sparse dictionary beats principal components."""
    draw = torch.Generator().manual_seed(0)
    codes = (torch.rand(ROWS, 64, generator=draw) < 0.04) * torch.rand(ROWS, 64, generator=draw)
    return codes @ torch.randn(64, WIDTH, generator=draw) + 0.5


def write(path: Path, x: Tensor, name: str = "acts") -> Path:
    if path.suffix == ".safetensors":
        save_file({name: x.contiguous()}, path)
    elif path.suffix == ".npy":
        np.save(path, x.numpy())
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.flatten().numpy()), x.shape[1])
        parquet.write_table(pa.table({name: column, "id": range(len(x))}), path, row_group_size=700)
    return path


def config_of(data: Path, out: Path, *, batch: int | None = 64, epochs: int = 2, **more: Any) -> TensorTrainConfig:
    rows = {name: more.pop(name) for name in ("tensor", "column", "heldout") if name in more}
    return TensorTrainConfig(
        rows=TensorDataConfig(data=str(data), **rows),
        sae=SAEConfig(variant=more.pop("variant", "topk"), width=96, k=3),
        optim=OptimConfig(batch=batch),
        epochs=epochs,
        out=out,
        checkpoint_every=500,
        log_every=5,
        device="cpu",
        **more,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tensors") / "x.safetensors", planted())


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A finished run."""
    train(config_of(data, data.parent / "run", epochs=6))
    return data.parent / "run"


# --- reading ---


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".parquet"])
def test_every_format_gives_the_same_rows_in_any_order(suffix: str, tmp_path: Path) -> None:
    x = planted()
    rows = open_tensors(write(tmp_path / f"x{suffix}", x))
    assert (rows.count, rows.width, rows.dtype) == (ROWS, WIDTH, torch.float32)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:900]
    assert rows.read(order).equal(x[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_kept_and_float64_is_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    x = planted().to(dtype)
    rows = open_tensors(write(tmp_path / "x.safetensors", x))
    expected = torch.float32 if dtype == torch.float64 else dtype
    assert rows.read(torch.arange(5)).equal(x[:5].to(expected))


def test_the_files_of_a_folder_are_read_one_after_another(tmp_path: Path) -> None:
    x = planted()
    for number, part in enumerate(x.split(1100)):
        write(tmp_path / f"part-{number}.npy", part)
    rows = open_tensors(tmp_path)
    assert rows.read(torch.arange(ROWS)).equal(x)
    write(tmp_path / "part-3.npy", x[:, :5])
    with pytest.raises(DataError, match=r"part-3\.npy: an array of width 5.*holds an array of width 24"):
        open_tensors(tmp_path)
    write(tmp_path / "other.parquet", x)
    with pytest.raises(ConfigError, match=r"holds \.npy, \.parquet; expected one kind"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("count", [ROWS, 300_001, 7])
def test_training_and_held_out_rows_part_all_rows(count: int, tmp_path: Path) -> None:
    rows = open_tensors(write(tmp_path / "x.npy", torch.randn(count, 1)))
    parts = [rows.part(name, heldout=0.2, seed=3) for name in ("train", "heldout")]
    numbers = [part.numbers(range(part.rows)) for part in parts]
    assert torch.cat(numbers).sort().values.equal(torch.arange(count))
    assert parts[1].rows == pytest.approx(0.2 * count, abs=256)
    other = rows.part("heldout", heldout=0.2, seed=4)
    assert count == 7 or not other.numbers(range(other.rows)).equal(numbers[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".parquet"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_row(value: float, suffix: str, tmp_path: Path) -> None:
    x = planted()
    x[1234, 5] = value
    rows = open_tensors(write(tmp_path / f"x{suffix}", x))
    with pytest.raises(DataError, match="row 1234 holds a value that is not finite"):
        rows.read(torch.arange(ROWS).flip(0))


def test_lists_of_several_lengths_and_nulls_are_refused_with_their_row(tmp_path: Path) -> None:
    for odd, says in (([1.0], "row 2 holds 1 numbers; expected 3"), (None, "row 2 is null; expected 3")):
        table = pa.table({"x": pa.array([[1.0, 2.0, 3.0]] * 2 + [odd] + [[1.0, 2.0, 3.0]] * 40)})
        parquet.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(DataError, match=says):
            open_tensors(tmp_path / "x.parquet").read(torch.arange(20))


# --- from the command line ---


def test_the_command_line_trains_evaluates_and_verifies(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--variant", "topk", "--width", "96", "--k", "3", "--batch", "64", "--epochs", "6", "--device", "cpu"]
    cli.main(["train", "--data", str(data), *flags, "--out", str(out), "--json"])
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 1, "one JSON line on stdout and nothing else"
    result = json.loads(said.out)
    assert (result["rows"], result["training_rows"], result["route"]) == (2700, 6 * 2688, "fused")
    assert "x.safetensors[acts], 3,000 rows of width 24, float32; 300 of them held out" in said.err
    cli.main(["eval", str(out), "--json"])
    report = json.loads(capfd.readouterr().out)
    assert report == read_report(out, "eval.json")
    assert report["rows"] == 300
    assert report["fvu"]["low"] < report["fvu"]["value"] < report["fvu"]["high"]
    assert report["fvu"]["value"] < report["baselines"]["pca_fvu"]["value"]
    assert 1 < report["l0"]["value"] <= 3
    cli.main(["verify", str(out), "--json"])
    assert json.loads(capfd.readouterr().out)["verified"]
    record = read_json(out / "config.json")
    assert (record["kind"], record["data"]["rows"], record["data"]["name"]) == ("tensors", ROWS, "acts")


def test_fvu_is_that_of_the_loaded_weights_on_the_held_out_rows(run: Path) -> None:
    report = sae.evaluate(run, EvalConfig(resamples=20, device="cpu"))
    part = open_run(run, "tensors").rows("heldout")
    x = part.read(range(part.rows))
    with torch.no_grad():
        x_hat = sae.load(run)(x).reconstruction
    fvu = ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert report["fvu"]["value"] == pytest.approx(fvu, rel=1e-4)


def test_a_dry_run_tells_what_the_run_then_is_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path / "run")
    planned = estimate(make_plan(config))
    assert not config.out.exists()
    done = train(config)
    for name, value in (("rows", done.available), ("parameters", done.parameters), ("steps", done.steps)):
        assert planned[name] == value
    assert planned["input"] == [64, WIDTH]
    assert planned["seconds"]["training"] > 0


def test_sets_of_images_are_trained_on_as_by_sae_image_train(tmp_path: Path) -> None:
    command = cli.parse(["train", "--data", "digits", "--variant", "vae", "--out", str(tmp_path / "run")])
    assert isinstance(command, ImageTrain)
    assert command == cli.parse(["image", "train", "--data", "digits", "--variant", "vae", "--out", f"{tmp_path}/run"])


REFUSED: dict[str, str] = {
    "--data X --model demo": "--model: it is of runs on text (--model and --dataset), and --data",
    "--data X --hidden 8": "--hidden: it is of runs on images",
    "--data digits --tensor x": "--tensor: it is of runs on a file of activations",
    "--model demo --dataset demo --column x": "--column: it is of runs on a file of activations",
    "--data X --variant crosscoder": "--variant crosscoder: reads several places",
    "--data X --variant temporal": "--variant temporal: reads pairs of neighbouring tokens",
    "--data X --variant topk --groups 7": "--groups 7",
    "--data X --tensor other": "holds acts (F32 [3000, 24])",
    "--data X --column acts": "--column acts: expected with .parquet files",
    "--data X --batch 2701": "--batch 2701: x.safetensors[acts] has only 2700 training rows",
    "--data missing.npy": "missing.npy: no such file",
    "--data X --heldout 0.0001": "3000 rows are too few to hold a share of 0.0001 out",
    "--data X.pt": "is unknown",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_argument_is_refused_and_leaves_nothing(
    line: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(data) if part == "X" else part for part in line.split()]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *given, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert REFUSED[line] in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_several_tensors_are_listed_and_one_is_named(tmp_path: Path) -> None:
    save_file({"a": planted(), "b": planted(), "ids": torch.arange(9)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"--tensor: .* several that could be meant: a \(F32 .*; b .*; ids .I64"):
        open_tensors(tmp_path / "x.safetensors")
    assert open_tensors(tmp_path / "x.safetensors", tensor="b").files[0].name == "b"


def test_a_bad_row_met_in_training_leaves_a_run_that_is_named(tmp_path: Path) -> None:
    x = planted()
    x[777] = float("nan")
    with pytest.raises(DataError, match="row 777"):
        train(config_of(write(tmp_path / "x.npy", x), tmp_path / "run"))
    assert not (tmp_path / "run" / "sae.safetensors").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("eval RUN --dataset demo", "--dataset demo: RUN is a run on a file of activations"),
        ("features RUN", "a run on a file of activations, made by sae train --data (sae eval"),
        ("steer RUN --latent 1 --prompt a", "steering needs a run on a language model's activations"),
        ("explain RUN", "naming latents from text needs a run on a language model's activations"),
        ("image report RUN", "expected a run on images"),
        ("browse RUN", "the page needs a run on text or images"),
    ],
)
def test_what_needs_text_or_images_is_refused_with_the_kind_of_run(
    line: str, says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.replace("RUN", str(run)).split())
    assert stopped.value.code == 2
    assert says.replace("RUN", str(run)) in capsys.readouterr().err


# --- stopping and resuming ---


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "sae.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(tensor.equal(b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("buffer_mb", [512, 1])
def test_an_interrupted_run_resumes_to_the_same_bits(
    buffer_mb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "x.parquet", planted().repeat(1, 12))  # wide enough for several buffers of 1 MiB
    train(config_of(data, tmp_path / "whole", buffer_mb=buffer_mb))
    step = Trainer.step

    def interrupt(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        if self.taken == 50:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupt)
        with pytest.raises(Interrupted, match="continue with: sae train --resume --out"):
            train(config_of(data, tmp_path / "stopped", buffer_mb=buffer_mb))
    cli.main(["train", "--resume", "--out", str(tmp_path / "stopped")])
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_killed_run_resumes_to_the_same_bits_unless_its_file_has_changed(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "x.safetensors"
    own.write_bytes(data.read_bytes())
    train(config_of(own, tmp_path / "whole", epochs=12))
    config = ["--width", "96", "--k", "3", "--batch", "64", "--epochs", "12", "--checkpoint-every", "500"]
    arguments = ["train", "--data", str(own), *config, "--log-every", "5", "--device", "cpu"]
    out = tmp_path / "killed"
    process = forked.start([sys.executable, "-m", "sae", *arguments, "--out", out])
    while not any((out / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (out / "sae.safetensors").exists()
    x = planted()
    x[5, 5] += 1
    write(own, x)
    with pytest.raises(SystemExit):
        cli.main(["train", "--resume", "--out", str(out)])
    write(own, planted())
    cli.main(["train", "--resume", "--out", str(out)])
    assert same_weights(tmp_path / "whole", out)
