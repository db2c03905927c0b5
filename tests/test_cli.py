"""The command line: what it prints where, and that every bad input is refused early, clearly and without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.cli import main as cli
from sae.harvest.stream import Harvest
from sae.selftest.world import byte_tokenizer, corpus_texts
from sae.training.trainer import Trainer


class Outcome(NamedTuple):
    """What one command did."""

    status: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """Assert that it ended with status 2 and one message on one line that holds every part."""
        assert self.status == 2, (self.status, self.err)
        assert self.out == ""
        messages = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, self.err
        assert self.err.endswith(messages[0] + "\n"), "the message comes last"
        for part in parts:
            assert part in messages[0]


Run = Callable[..., Outcome]


@pytest.fixture
def sae(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return Outcome(status, *capfd.readouterr())

    return run


class TrainWith(NamedTuple):
    """`sae train` on the tiny model, some arguments changed."""

    sae: Run
    base: dict[str, object]
    out: Path

    def __call__(self, *more: object, **changed: object) -> Outcome:
        """Flags by name, `_` for `-`; None leaves one out."""
        flags = {**self.base, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
        pairs = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
        return self.sae("train", *pairs, *more)


@pytest.fixture
def train(sae: Run, tiny_model: Path, corpus: Path, tmp_path: Path) -> TrainWith:
    base: dict[str, object] = {"--model": tiny_model, "--dataset": corpus, "--layer": 1, "--width": 128, "--k": 8}
    base |= {"--tokens": 1024, "--batch": 256, "--context": 64, "--contexts": 8, "--buffer-mb": 1}
    return TrainWith(sae, base | {"--out": tmp_path / "run"}, tmp_path / "run")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes reading weights fail the test."""

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded before the input was refused")

    monkeypatch.setattr("sae.training.text.load_language_model", unwanted)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses every connection, as it is without a network."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


# --- help, flags, output ---


def test_help_imports_no_torch() -> None:
    code = """
import sys
from sae.cli.main import COMMANDS, main
for arguments in [["--help"], ["image", "train", "--help"], *([name, "--help"] for name in COMMANDS)]:
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == 0, arguments
heavy = {"torch", "transformers", "datasets", "numpy", "numba", "wandb"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--width", "--l9", "--checkpoint-every", "--downstream-tokens"):
        assert (flag in done.stdout) == (flag != "--l9")


def test_help_names_the_variants_of_each_flag_and_shows_one_variant_s_flags_alone(sae: Run) -> None:
    def help_of(*arguments: str) -> str:
        return " ".join(sae(*arguments, "--help").out.replace("│", " ").split())

    every = help_of("train")
    assert "(default: 5; for matryoshka)" in every
    assert "(default: 0.3; for relu, p_anneal, gated, jumprelu)" in every
    jumprelu = help_of("train", "--variant", "jumprelu")
    assert "--bandwidth" in jumprelu
    assert "--sparsity-warmup" in jumprelu
    assert not any(flag in jumprelu for flag in ("--groups", "--penalty ", "--k-start", "; for "))
    images = help_of("image", "train")
    assert "(default: 64; for vqvae, vqvae2)" in images
    assert "--contrast" not in images
    assert "--free-bits" not in help_of("image", "train", "--variant=ae")


@pytest.mark.parametrize(
    ("wrong", "right"), [("--widht", "--width"), ("--lyaer", "--layer"), ("--checkpoints-every", "--checkpoint-every")]
)
def test_an_unknown_flag_names_the_nearest(wrong: str, right: str, train: TrainWith) -> None:
    done = train(wrong, 3)
    assert (done.status, done.out) == (2, "")
    assert f"Unrecognized options: {wrong}" in done.err
    assert f"{right} " in done.err.partition("Perhaps you meant")[2]
    assert "Traceback" not in done.err
    assert not train.out.exists()


def test_an_unknown_command_names_those_that_exist(sae: Run) -> None:
    done = sae("tarin")
    assert done.status == 2
    assert all(name in done.err for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"width": "wide"}, ("--width", "'wide'")),
        ({"device": "tpu"}, ("'tpu'", "--device", "auto", "cpu", "cuda")),
        ({"wandb": "maybe"}, ("'maybe'", "off", "offline", "online")),
        ({"out": None}, ("--out",)),
        ({"model": None}, ("--model",)),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_a_value_of_the_wrong_type_names_flag_and_choices(
    changed: dict[str, object], parts: tuple[str, ...], train: TrainWith
) -> None:
    done = train(**changed)
    assert (done.status, done.out) == (2, "")
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err
    assert not train.out.exists()


def test_json_is_one_line_and_alone_on_stdout(train: TrainWith, sae: Run) -> None:
    trained = train("--json")
    assert trained.status == 0, trained.err
    assert trained.out.count("\n") == 1
    values = json.loads(trained.out)
    assert values["steps"] == 4
    assert values["training_tokens"] == 1024
    assert 0 < values["last"]["fvu"] < 1
    verified = sae("verify", train.out, "--json")
    assert verified.status == 0, verified.err
    assert verified.out.count("\n") == 1
    assert json.loads(verified.out)["verified"] is True
    examined = sae("doctor", "--json")
    assert examined.out.count("\n") == 1
    assert json.loads(examined.out)["versions"]["torch"]


def test_without_json_a_table_goes_to_stdout(train: TrainWith) -> None:
    done = train()
    assert done.status == 0, done.err
    assert "training_tokens" in done.out
    assert "FVU" in done.err


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_a_reader_that_goes_away_is_no_fault(arguments: list[str], tmp_path: Path) -> None:
    patched = "commands.Doctor.run = lambda self: dict(x=['long'] * 20_000)"
    code = f"from sae.cli import main as cli, commands; {patched}; cli.main({arguments})"
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        process.wait(timeout=60)
    assert "Error" not in (tmp_path / "errors").read_text()


# --- dry run ---

_watched: list[str] | None = None
_hooked = False


def _watch(event: str, arguments: tuple) -> None:
    if _watched is None:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        # pytest's own capture opens unnamed files, by the name of their folder
        if not os.path.isdir(arguments[0]):
            _watched.append(str(arguments[0]))
    elif event in ("os.mkdir", "os.rename", "shutil.copyfile"):
        _watched.append(f"{event} {arguments[0]}")


@pytest.fixture
def writes() -> Iterator[list[str]]:
    """Every file that this process opens for writing, and every folder it makes, during the test."""
    global _watched, _hooked
    if not _hooked:
        sys.addaudithook(_watch)  # stays for ever, so it is idle outside this fixture
        _hooked = True
    _watched = found = []
    yield found
    _watched = None


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_states_the_cost_and_writes_nothing(train: TrainWith, tmp_path: Path, writes: list[str]) -> None:
    done = train("--dry-run", "--json", store=tmp_path / "store", epochs=3)
    assert done.status == 0, done.err
    values = json.loads(done.out)
    assert values["site"] == "resid_post.1"
    assert values["module"] == "model.layers.1"
    assert values["input"] == [256, 32]
    assert values["dictionary"] == [128, 32]
    assert values["steps"] == 12
    assert values["training_tokens"] == 3072
    assert values["memory_bytes"]["weights_gradients_moments"] == 4 * 4 * (2 * 128 * 32 + 128 + 32)
    assert values["disk_bytes"]["store"] >= 1024 * 32 * 2
    assert values["disk_bytes"]["run"] > 2 * 128 * 32 * 4
    assert values["seconds"].keys() == {"harvest", "training"}
    assert [path for path in writes if not path.startswith(("/dev/", "/proc/")) and "__pycache__" not in path] == []
    assert not train.out.exists()
    assert not (tmp_path / "store").exists()


def test_a_dry_run_tells_the_true_number_of_steps_and_bytes(train: TrainWith, tmp_path: Path) -> None:
    planned = json.loads(train("--dry-run", "--json", store=tmp_path / "store").out)
    done = train("--json", store=tmp_path / "store")
    assert json.loads(done.out)["steps"] == planned["steps"]
    stored = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.safetensors"))
    assert stored == pytest.approx(planned["disk_bytes"]["store"], rel=0.05)


# --- bad input, refused before weights are read ---


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _folder(folder: Path, name: str, **files: str) -> Path:
    path = folder / name
    path.mkdir()
    for file, text in files.items():
        (path / file.replace("_json", ".json")).write_text(text)
    return path


BAD: dict[str, tuple[Callable[[Path], dict[str, object]], tuple[str, ...]]] = {
    "model: no such path": (lambda t: {"model": t / "none"}, ("--model", "none: no such file or folder")),
    "model: a text file": (
        lambda t: {"model": _write(t, "m.txt", "x")},
        ("--model", "m.txt", "expected a folder, a .gguf file or a hub id", ".txt file"),
    ),
    "model: a folder of other things": (
        lambda t: {"model": _folder(t, "m", notes="x")},
        ("--model", "has no config.json", "it holds notes"),
    ),
    "model: no such gguf": (lambda t: {"model": "none.gguf"}, ("--model none.gguf", "no such file")),
    "model: not a gguf": (lambda t: {"model": _write(t, "m.gguf", "GGUF")}, ("m.gguf", "config cannot be read")),
    "model: unknown architecture": (
        lambda t: {"model": _folder(t, "m", config_json='{"model_type": "nope"}')},
        ("--model", "config cannot be read", "nope"),
    ),
    "model: config is not JSON": (
        lambda t: {"model": _folder(t, "m", config_json="{")},
        ("--model", "config cannot be read", "not a valid JSON"),
    ),
    "model: config of wrong types": (
        lambda t: {"model": _folder(t, "m", config_json='{"model_type": "llama", "hidden_size": "x"}')},
        ("--model", "hidden_size"),
    ),
    "model: encoder-decoder": (
        lambda t: {"model": _folder(t, "m", config_json='{"model_type": "t5"}')},
        ("--model", "T5", "expected a decoder"),
    ),
    "layer: too high": (lambda t: {"layer": 9}, ("'resid_post.9'", "layers 0..2", "nearest: resid_post.2")),
    "layer: negative": (lambda t: {"layer": -1}, ("--layer -1", "counted from 0")),
    "layer: missing": (lambda t: {"layer": None}, ("'resid_post' needs a layer", "layers 0..2")),
    "layer: contradicts the site": (lambda t: {"site": "mlp_out.2"}, ("layer=1", "mlp_out.2")),
    "site: unknown": (lambda t: {"site": "resid_pots"}, ("'resid_pots'", "resid_pre, resid_post", "nearest")),
    "site: unknown path": (
        lambda t: {"site": "model.layer.1", "layer": None},
        ("'model.layer.1'", "nearest", "model.layers.1"),
    ),
    "site: several": (lambda t: {"site": "resid_*.1", "layer": None}, ("--site resid_*.1", "names 3 places")),
    "site: no vector a token": (
        lambda t: {"site": "model.rotary_emb", "layer": None},
        ("model.rotary_emb", "rows are not the tokens"),
    ),
    "site: never reached": (lambda t: {"site": "model.layers", "layer": None}, ("never reached model.layers",)),
    "data: no such file": (lambda t: {"dataset": t / "none.jsonl"}, ("none.jsonl: no such file or folder",)),
    "data: a near name": (
        lambda t: {"dataset": _write(t, "texts.jsonl", '{"text": "a"}').with_name("text.jsonl")},
        ("text.jsonl: no such file", "there is texts.jsonl"),
    ),
    "data: unknown ending": (lambda t: {"dataset": _write(t, "d.xlsx", "a,b")}, ("d.xlsx", ".jsonl", ".parquet")),
    "data: empty": (lambda t: {"dataset": _write(t, "d.jsonl", "")}, ("d.jsonl: is empty",)),
    "data: not text": (
        lambda t: {"dataset": _write(t, "d.jsonl", '{"text": 3}\n{"text": null}\n{"text": ""}\n')},
        ("no usable text in column 'text'", "1 not text (int)", "1 null", "1 empty"),
    ),
    "data: not JSON": (lambda t: {"dataset": _write(t, "d.jsonl", "text\n")}, ("d.jsonl, line 1: not JSON",)),
    "data: unknown demo language": (lambda t: {"dataset": "demo:xx"}, ("demo:xx", "en, fr, es")),
    "field: unknown": (lambda t: {"text_field": "body"}, ("text_field", "no column 'body'", "it has text (text)")),
    "variant: unknown": (lambda t: {"variant": "topkk"}, ("--variant 'topkk'", "did you mean 'topk'", "known: ")),
    "width: zero": (lambda t: {"width": 0}, ("--width 0", "at least 1")),
    "width: beyond memory": (lambda t: {"width": 10**12}, ("--width 1000000000000", "MiB are free")),
    "k: zero": (lambda t: {"k": 0}, ("--k 0", "at least 1")),
    "k: over width": (lambda t: {"k": 129}, ("--k 129", "--width 128")),
    "tokens: zero": (lambda t: {"tokens": 0}, ("--tokens 0",)),
    "tokens: less than a batch": (lambda t: {"tokens": 255}, ("--tokens 255", "--batch 256")),
    "context: longer than the model reads": (lambda t: {"context": 65}, ("--context 65", "at most 64")),
    "buffer: less than a batch": (
        lambda t: {"batch": 100_000, "tokens": 100_000},
        ("--buffer-mb 1", "batch of 100000", "at least 7"),
    ),
    "lr: nan": (lambda t: {"lr": "nan"}, ("--lr nan", "more than 0")),
    "lr: infinite": (lambda t: {"lr": "inf"}, ("--lr inf", "finite")),
    "clip: infinite": (lambda t: {"clip": "inf"}, ("--clip inf", "finite")),
    "max norm: nan": (lambda t: {"max_norm": "nan"}, ("--max-norm nan",)),
    "heldout: nan": (lambda t: {"heldout": "nan"}, ("--heldout nan", "between 0 and 1")),
    "seed: negative": (lambda t: {"seed": -1}, ("--seed -1",)),
    "out: below a file": (lambda t: {"out": _write(t, "f", "") / "run"}, ("--out", "is a file; expected a folder")),
    "out: a file": (lambda t: {"out": _write(t, "f", "")}, ("--out", "exists already", "it holds no run")),
    "store: a file": (lambda t: {"store": _write(t, "f", "")}, ("--store", "a file; expected a folder")),
    "store: a folder of other things": (
        lambda t: {"store": _folder(t, "s", notes="x")},
        ("--store", "not empty and is no activation store"),
    ),
    "store: of another harvest": (
        lambda t: {"store": _folder(t, "s", identity_json='{"format": 1, "sites": {"resid_post.0": 32}}')},
        ("--store", "sites = {'resid_post.0': 32}", "wants {'resid_post.1': 32}"),
    ),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_weights_are_read(case: str, train: TrainWith, tmp_path: Path) -> None:
    make, parts = BAD[case]
    changed = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    train(**changed).refused(*parts)
    assert sorted(tmp_path.rglob("*")) == before, "a refused run leaves nothing behind"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(train: TrainWith) -> None:
    train(device="cuda").refused("--device cuda", "no GPU", "cpu or auto")
    assert not train.out.exists()


@pytest.mark.usefixtures("no_weights", "no_hub")
@pytest.mark.parametrize("name", ["nobody/nothing", "gpt3"])
def test_a_model_out_of_reach_is_refused_within_seconds(name: str, train: TrainWith) -> None:
    begun = time.monotonic()
    train(model=name).refused(f"--model {name}", "hub cannot be reached", "without a network use `demo`")
    assert time.monotonic() - begun < 10
    assert not train.out.exists()


@pytest.mark.usefixtures("no_weights", "no_hub")
def test_a_data_set_out_of_reach_is_refused_within_seconds(train: TrainWith) -> None:
    begun = time.monotonic()
    train(dataset="nobody/nothing").refused("nobody/nothing", "hub cannot be reached", "Without a network use `demo`")
    assert time.monotonic() - begun < 10
    assert not train.out.exists()


@pytest.mark.usefixtures("no_weights")
def test_an_existing_run_folder_stays_as_it_is(train: TrainWith) -> None:
    train.out.mkdir()
    note = _write(train.out, "note", "precious")
    train().refused("--out", "exists already", "delete it: it holds no run (no config.json)")
    assert note.read_text() == "precious"
    assert sorted(train.out.iterdir()) == [note]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written to: for root, whom permissions do not bind, a read-only file system."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    mounted = False
    if os.access(folder, os.W_OK):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], check=False).returncode == 0
        if not mounted:
            pytest.skip("root without the right to mount can write everywhere")
    yield folder
    if mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("no_weights")
def test_a_read_only_parent_folder_is_refused(train: TrainWith, read_only: Path) -> None:
    train(out=read_only / "run").refused("--out", f"{read_only}: cannot be written to")


@pytest.mark.usefixtures("no_weights")
def test_resuming_nothing_is_refused(train: TrainWith) -> None:
    train("--resume").refused("--resume", "no run to continue", "no config.json")
    assert not train.out.exists()


def test_a_run_that_was_killed_before_its_first_file_starts_again(train: TrainWith) -> None:
    train.out.mkdir()
    for name in ("run.lock", "run.pid", ".partial-config.json-1"):
        _write(train.out, name, "")
    train("--resume").refused("no run to continue", "start it again without --resume")
    assert train("--dry-run").status == 0


def test_a_run_that_is_none_is_refused_by_eval_and_verify(sae: Run, tmp_path: Path) -> None:
    for command in ("eval", "verify"):
        sae(command, tmp_path / "none").refused("none: no such run folder")
        sae(command, tmp_path).refused("not a run folder, it has no config.json", "it holds nothing")
        sae(command, _write(tmp_path, f"file-{command}", "")).refused("a file; expected a run folder")
        (tmp_path / f"file-{command}").unlink()


# --- bad input that only weights or data can show ---


def _without_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def _cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def _changed_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(model / "model.safetensors").items()}
        save_file(change(tensors), model / "model.safetensors", metadata={"format": "pt"})

    return apply


def _scaled(name: str, factor: float) -> Callable[[Path], None]:
    return _changed_weights(lambda tensors: {**tensors, name: tensors[name] * factor})


DAMAGED: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no tokenizer": (_without_tokenizer, ("--model", "its tokenizer cannot be loaded")),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ("--model", "its weights cannot be loaded")),
    "weights cut short": (_cut_short, ("--model", "its weights cannot be loaded", "incomplete")),
    "one tensor missing": (
        _changed_weights(lambda t: {n: v for n, v in t.items() if n != "model.layers.2.mlp.up_proj.weight"}),
        ("its weights lack 1 tensors of LlamaForCausalLM, such as model.layers.2.mlp.up_proj.weight",),
    ),
    "weights of another model": (
        _changed_weights(lambda t: {f"other.{n}": v for n, v in t.items()}),
        ("its weights lack", "model.embed_tokens.weight"),
    ),
    "a tensor of another shape": (
        _changed_weights(lambda t: {**t, "model.norm.weight": torch.ones(16)}),
        ("model.norm.weight is [16] in its weights and [32] by its config",),
    ),
    "not a number in the weights": (
        _scaled("model.layers.0.mlp.up_proj.weight", float("nan")),
        ("resid_post.1", "not finite in float32"),
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_named_and_leaves_no_run_folder(
    case: str, train: TrainWith, tiny_model: Path, tmp_path: Path
) -> None:
    damage, parts = DAMAGED[case]
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    train(model=model).refused(*parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_activations_over_float16_are_refused_where_it_is_asked_for(
    train: TrainWith, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    _scaled("model.embed_tokens.weight", 1e6)(model)
    train(model=model, store_precision="float16").refused(
        "resid_post.1", "in document 0 (", "does not fit torch.float16", "--store-precision bfloat16"
    )
    assert train(model=model).status == 0


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_data_set_of_less_than_a_batch_leaves_no_run_folder(epochs: int, train: TrainWith, tmp_path: Path) -> None:
    tiny = _write(tmp_path, "tiny.jsonl", '{"text": "a few words of the kind that tests are made of"}\n')
    train(dataset=tiny, epochs=epochs, heldout=0.001, buffer_mb=None).refused("tokens", "batch", "256")
    assert sorted(tmp_path.iterdir()) == [tiny]


def test_a_refused_run_leaves_a_folder_that_was_there(train: TrainWith, tmp_path: Path) -> None:
    train.out.mkdir()
    tiny = _write(tmp_path, "tiny.jsonl", '{"text": "a few words of the kind that tests are made of"}\n')
    train(dataset=tiny, heldout=0.001).refused("batch")
    assert list(train.out.iterdir()) == []


def test_a_tokenizer_without_special_tokens_works(train: TrainWith, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    _without_tokenizer(model)
    byte_tokenizer(300, bos=False, eos=False, pad=False).save_pretrained(model)
    done = train("--json", model=model)
    assert done.status == 0, done.err
    assert json.loads(done.out)["harvested"]["bos"] == 0
    assert json.loads(done.out)["harvested"]["ordinary"] >= 1024


def test_a_site_whose_width_only_a_run_tells_can_be_trained(train: TrainWith, sae: Run) -> None:
    done = train("--json", site="model.layers.1.mlp.act_fn", layer=None)
    assert done.status == 0, done.err
    assert json.loads((train.out / "config.json").read_text())["sites"]["inputs"][0]["width"] == 48
    assert sae("verify", train.out).status == 0


# --- going on with a run ---


@pytest.fixture
def half_run(train: TrainWith, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped by SIGTERM at step 2 of 4, on a copy of the corpus that the test may change."""
    shutil.copy(corpus, tmp_path / "texts.jsonl")
    step = Trainer.step

    def stopping(self: Trainer, *batch: torch.Tensor) -> None:
        step(self, *batch)
        if self.taken == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        done = train(dataset=tmp_path / "texts.jsonl")
    assert done.status == 143, done.err
    assert f"continue with: sae train --resume --out {train.out}" in done.err
    assert [path.name for path in (train.out / "checkpoints").iterdir()] == ["000000002"]
    return train.out


def test_a_stopped_run_goes_on_with_out_alone(half_run: Path, sae: Run) -> None:
    done = sae("train", "--resume", "--out", half_run, "--json")
    assert done.status == 0, done.err
    assert "Resuming at step 2 of 4" in done.err
    assert json.loads(done.out)["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--k", 9), ("--resume", "k was 8", "now it is 9")),
        (("--store", "elsewhere"), ("--resume", "--store was None", "now it is elsewhere")),
        (("--seed", 1), ("seed was 0", "now it is 1")),
    ],
    ids=["k", "store", "seed"],
)
def test_a_run_keeps_its_settings(
    arguments: tuple[object, ...], parts: tuple[str, ...], half_run: Path, no_weights: None, sae: Run
) -> None:
    sae("train", "--resume", "--out", half_run, *arguments).refused(*parts)


def test_a_run_keeps_its_data(half_run: Path, no_weights: None, sae: Run, tmp_path: Path) -> None:
    with (tmp_path / "texts.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": corpus_texts(1, seed=9)[0]}) + "\n")
    sae("train", "--resume", "--out", half_run).refused("--resume", "texts.jsonl has changed", "files was")


@pytest.mark.parametrize("text", ["[]", "{", '{"train": 3}', '{"train": {"tokens": "x"}}'])
def test_a_damaged_config_is_named(text: str, half_run: Path, sae: Run) -> None:
    (half_run / "config.json").write_text(text)
    for arguments in (("train", "--resume", "--out", half_run), ("verify", half_run)):
        done = sae(*arguments)
        assert done.status == 2
        assert "Traceback" not in done.err
        assert str(half_run) in done.err


def test_half_a_line_of_metrics_does_not_stop_a_resume(half_run: Path, sae: Run) -> None:
    with (half_run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 2, "parts": {"squared_error": 1.5}')  # cut by a full disk, and yet it ends like a line
    done = sae("train", "--resume", "--out", half_run)
    assert done.status == 0, done.err
    steps = [json.loads(line)["step"] for line in (half_run / "metrics.jsonl").open()]
    assert steps == [4]


def test_a_signal_is_honoured_while_the_buffer_fills(
    train: TrainWith, sae: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    forward = Harvest._forward

    def interrupted(self: Harvest, *contexts: object) -> object:
        nonlocal passes
        passes += 1
        if passes == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *contexts)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Harvest, "_forward", interrupted)
        done = train(tokens=10_240)
    assert done.status == 130, done.err
    assert passes == 2, "20 passes fill the buffer"
    assert f"continue with: sae train --resume --out {train.out}" in done.err
    assert sae("train", "--resume", "--out", train.out).status == 0


def test_two_runs_do_not_write_to_one_store(train: TrainWith, tmp_path: Path) -> None:
    from sae.base.locks import locked

    (tmp_path / "store").mkdir()
    with locked(tmp_path / "store"):
        train(store=tmp_path / "store").refused("store: another process (pid", "is harvesting into")
    assert not train.out.exists()
    assert train(store=tmp_path / "store").status == 0
