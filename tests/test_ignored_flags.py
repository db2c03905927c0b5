"""No command takes a flag that it would ignore: it is refused by name, before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sae.base.files import publish_json, read_json
from sae.cli.bench import READ_BY_BENCHES, Bench
from sae.cli.main import main

IGNORED: dict[str, tuple[str, list[str]]] = {
    "bench kernels --worlds easy16 --seeds 9": ("sae bench kernels does not read it", ["--worlds easy16", "--seeds 9"]),
    "bench recovery --width 64 --rounds 1": ("sae bench recovery does not read it", ["--width 64", "--rounds 1"]),
    "bench curve --width 64": ("sae bench curve does not read it", ["--width 64"]),
    "export RUN --to neuronpedia --out X --latents 3": ("applies to --to static; --to neuronpedia", ["--latents 3"]),
    "steer RUN --latent 3 --prompt a --mode ablate --scale 2 --absolute": (
        "applies to --mode add and set; ablate removes the whole latent", ["--scale 2.0", "--absolute True"],
    ),
    "steer RUN --latent 3 --prompt a --seed 5": ("--temperature 0 draws nothing", ["--seed 5"]),
    "steer RUN --latent 3 --prompt a --where 3,4 --steer-bos": ("--where 3,4 lists the tokens", ["--steer-bos True"]),
    "explain RUN --examples 4 --score fuzzing": (
        "applies to --explainer local, endpoint, not to rules", ["--examples 4"],
    ),
    "explain RUN --judged 2 --scorer rules --device cpu --score-tokens 9": (
        "applies to --score", ["--judged 2", "--scorer rules", "--device cpu", "--score-tokens 9"],
    ),
    "explain RUN --explainer local --explainer-model m --key-variable K --rate 3 --estimate": (
        "applies to an endpoint", ["--key-variable K", "--rate 3.0", "--estimate True"],
    ),
    "features RUN --store S --dataset D --split heldout": (
        "--store S is read instead of text", ["--dataset D", "--split heldout"],
    ),
    "steer RUN --latent 3 --prompt a --mode ablate --scale 1": ("applies to --mode add and set", ["--scale 1.0"]),
    "bench kernels --seeds 3": ("sae bench kernels does not read it", ["--seeds 3"]),
    "sweep --model M --dataset D --out X --resume": ("a sweep always resumes what is there", ["--resume True"]),
    "choose-l0 --model M --dataset D --layer 3 --k 4,8,16 --out X --resume": (
        "a sweep always resumes what is there", ["--resume True"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", IGNORED)
def test_what_a_command_would_ignore_is_refused_by_name(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    why, flags = IGNORED[line]
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert why in said
    for flag in flags:
        assert f"{flag}: " in said
    assert not any(tmp_path.iterdir())


def test_every_bench_says_what_it_reads() -> None:
    names = {field for read in READ_BY_BENCHES.values() for field in read}
    assert names == set(Bench.__dataclass_fields__) - {"what", "json"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "ae"
    main(
        f"image train --data digits --variant ae --hidden 8 --width 4 --epochs 1 --limit 200 --out {out} --json".split()
    )
    return out


@pytest.mark.parametrize(
    ("line", "flags", "says"),
    [
        ("eval RUN --dataset X --tokens 5", ["--dataset X", "--tokens 5"], "is a run on images; see sae image eval"),
        ("image eval RUN --samples 5", ["--samples 5"], "--variant ae draws nothing; it is of variational models"),
        ("features RUN --dataset X", ["--dataset X"], "is collected over its own images"),
    ],
)
def test_a_run_on_images_refuses_what_is_of_text(
    line: str, flags: list[str], says: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(line.replace("RUN", str(images)).split())
    said = capsys.readouterr().err
    assert says in said
    assert all(flag in said for flag in flags)


def test_a_run_that_was_begun_with_ignored_settings_is_resumed_and_evaluated(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    old = tmp_path / "old"
    shutil.copytree(images, old)
    record = read_json(old / "config.json")
    record["train"]["vision"] |= {"groups": 7, "gamma": 3.0}
    finished = dict(record)
    publish_json(old / "config.json", finished)
    main(["eval", str(old), "--resamples", "20", "--json"])
    assert json.loads(capsys.readouterr().out)["fvu"]
    # as if it had been stopped: its weights are not there yet
    (old / "sae.safetensors").unlink()
    publish_json(old / "config.json", {**record, "autoencoder": None})
    main(["image", "train", "--resume", "--out", str(old)])
    assert (old / "sae.safetensors").is_file()


COMMANDS = {
    "eval RUN": "", "features RUN": "", "explain RUN": "naming latents from text", "image eval RUN": "a run on images",
    "steer RUN --latent 1 --prompt a": "steering", "export RUN --to neuronpedia --out X": "an export for Neuronpedia",
    "image report RUN": "a run on images",
}  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("kind", ["rows", "future"])
def test_every_command_says_what_kind_of_run_it_got(
    line: str,
    kind: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(images, run)
    record = read_json(run / "config.json")
    publish_json(run / "config.json", {**record, "kind": kind})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(line.replace("RUN", str(run)).split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert COMMANDS[line] in said
    what = {"rows": "a run on rows of numbers, made by sae image compare (its", "future": "the unknown kind 'future'"}
    assert f"{run}: " in said
    assert what[kind] in said
    main(["verify", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["verified"]


def test_a_flag_that_is_typed_with_its_default_is_refused_as_well(
    train_arguments: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(a) for a in (*train_arguments, "--out", tmp_path / "run", "--dry-run", "--groups", 5, "--penalty=l1")]
    with pytest.raises(SystemExit):
        main(given)
    said = capsys.readouterr().err
    assert "--groups 5: applies to --variant matryoshka, not to topk" in said
    assert "--penalty l1: applies to --variant relu, not to topk" in said
    main(given[:-3])
