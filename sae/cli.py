"""The command `sae`. Heavy packages are imported inside the commands, so that --help is instant.

Exit status: 0 done, 1 the run failed, 2 a wrong argument or damaged input, 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast

import tyro

from sae.config import ConfigError, Device, EvalConfig, TrainConfig, from_json

Json = Annotated[bool, tyro.conf.arg(help="Print one JSON line on stdout, and nothing else there.")]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on the demo model and text, evaluate, and print what came out."""

    out: Path = Path("runs/demo")
    """Run folder; where one exists, a number is added to the name."""
    tokens: int = 420_000
    """Tokens to harvest."""
    epochs: int = 4
    """Passes over them."""
    seed: int = 0
    """Seed of every random draw."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.demo import run_demo

        return run_demo(self.out, tokens=self.tokens, epochs=self.epochs, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train an autoencoder on a model's activations."""

    config: TrainConfig
    dry_run: bool = False
    """Print sites, shapes, steps, memory, disk and time; train nothing, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        if self.dry_run:
            from sae.training.plan import estimate, make_plan

            return estimate(make_plan(self.config))
        from sae.training.run import train

        return summary(train(self.config))


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate a saved autoencoder on held-out documents."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a hub repository that holds one."""
    config: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.evaluation.run import evaluate

        return evaluate(self.run_folder, self.config)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a saved autoencoder's hash, shapes and self-test."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a hub repository that holds one."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.models.saved import TOLERANCE, verify

        distance = verify(self.run_folder)
        return {"run": self.run_folder, "verified": True, "tolerance": TOLERANCE, **distance._asdict()}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the sparse ops, or a whole training step, against the floor measured in the same run."""

    what: Annotated[tyro.conf.Positional[Literal["kernels", "step", "curve"]], tyro.conf.arg(metavar="WHAT")]
    """kernels (op by op), step (a whole training step), or curve (the step over the number of latents)."""
    tokens: int = 2048
    """Tokens a batch."""
    d: int = 576
    """Width of the activations."""
    width: int = 9216
    """Latents; the curve goes from 4k to 131k."""
    k: int = 32
    """Latents active a token."""
    rounds: int = 9
    """Interleaved rounds, of which medians are taken."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.device import pick_device
        from sae_kernels.bench.kernels import measure_kernels
        from sae_kernels.bench.step import measure_curve, measure_step

        shape: dict[str, Any] = {"tokens": self.tokens, "d": self.d, "k": self.k, "rounds": self.rounds}
        shape["device"] = pick_device(self.device).type
        if self.what == "curve":
            return measure_curve(**shape)
        return (measure_kernels if self.what == "kernels" else measure_step)(width=self.width, **shape)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show versions, device, kernel backends, cache and space; say what is missing and how to mend it."""

    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.doctor import examine

        return examine()


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "train": Train,
    "eval": Eval,
    "verify": Verify,
    "bench": Bench,
    "doctor": Doctor,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `sae`."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        command = parse(given)
        result = command.run()
        show(result, as_json=command.json)
    except BaseException as error:
        status = _status_of(error)
        if status is None:
            raise
        sys.exit(status)
    if result.get("status", 0):
        sys.exit(result["status"])


def parse(arguments: list[str]) -> Any:
    """The command dataclass that `arguments` ask for; tyro prints help and refuses what is no flag or no number.

    Raises:
        ConfigError: a setting is out of range.
    """
    union: list[Any] = []
    for name, cls in COMMANDS.items():
        default = _resumed(arguments) if cls is Train else None
        settings: dict[str, Any] = {"name": name, "prefix_name": False}
        if default is not None:
            settings["default"] = default
        union.append(Annotated[cls, tyro.conf.subcommand(**settings)])
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            return tyro.cli(
                cast(Any, Union[tuple(union)]),  # noqa: UP007 - built at run time
                args=arguments,
                prog="sae",
                description="Train sparse autoencoders on language-model activations, prove how good they are, look "
                "inside.",
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stopped:
        # tyro wraps what a dataclass refuses, and names its own inner parts where ours already names the flag
        cause: BaseException | None = stopped
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(refusal.getvalue())
        raise


def summary(value: Any) -> dict[str, Any]:
    """A NamedTuple result as JSON values."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in value._asdict().items()}


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the table for people (on stderr when the JSON line goes to stdout)."""
    from rich.console import Console

    from sae.tables import render

    Console(stderr=as_json, highlight=False).print(render(result))
    if as_json:
        print(json.dumps(result, allow_nan=False), flush=True)


def _resumed(arguments: list[str]) -> Train | None:
    """With --resume, the settings that the run in --out was started with are the defaults of all other flags."""
    if arguments[:1] != ["train"] or "--resume" not in arguments:
        return None
    out = next((a.split("=", 1)[1] for a in arguments if a.startswith("--out=")), None)
    if out is None and "--out" in arguments[:-1]:
        out = arguments[arguments.index("--out") + 1]
    if out is None or not (Path(out) / "config.json").is_file():
        return None
    from sae.files import read_json

    record = read_json(Path(out) / "config.json")
    settings = record.get("train") if isinstance(record, dict) else None
    config = from_json(TrainConfig, settings, f"{out}/config.json: train")
    return Train(config=dataclasses.replace(config, out=Path(out)))


def _status_of(error: BaseException) -> int | None:
    """Print a failure that is the user's to mend as one message; None for a fault of ours: it keeps its traceback."""
    from sae.progress import Interrupted

    if isinstance(error, Interrupted):
        return _say(f"{error}", error.exit_status)
    if isinstance(error, KeyboardInterrupt):
        return _say("stopped", 130)
    if isinstance(error, BrokenPipeError):
        # the reader of the output went away (`sae doctor | head`); what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, OSError):
        return _say(*_describe_os_error(error)) if error.errno in _OS_ERRORS else None
    # refusals are exceptions defined in sae; a fault is any other and keeps its traceback
    if type(error).__module__.startswith("sae."):
        return _say(f"error: {error}", 1 if isinstance(error, ArithmeticError) else 2)
    return None


_WHOLE = "what was saved before is whole: make room, then go on (a training run with --resume)"
_OS_ERRORS: dict[int, Callable[[OSError], str]] = {
    errno.ENOSPC: lambda e: f"no space left on the disk for {e.filename or 'the run folder'}; {_WHOLE}",
    errno.EDQUOT: lambda e: f"the disk quota is used up (writing {e.filename or 'the run folder'}); {_WHOLE}",
    errno.EFBIG: lambda e: f"{e.filename or 'the run folder'}: over the limit on a file's size (ulimit -f); {_WHOLE}",
    errno.EACCES: lambda e: f"{e.filename}: permission denied",
    errno.EROFS: lambda e: f"{e.filename}: the file system is read-only",
    errno.EIO: lambda e: f"{e.filename}: the disk reports an input/output error; what was saved before is whole",
}


def _describe_os_error(error: OSError) -> tuple[str, int]:
    return f"error: {_OS_ERRORS[error.errno or 0](error)}", 1


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
