"""The command `sae`. Heavy packages are imported inside the commands, so that --help is instant.

Exit status: 0 done, 1 the run failed, 2 a wrong argument or damaged input, 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Union, cast

import tyro

from sae.base.launcher import rank_number, refuse_ranks
from sae.cli.choose_l0 import ChooseL0
from sae.cli.commands import COMMANDS
from sae.cli.harvest import with_layers
from sae.cli.image_commands import IMAGE_COMMANDS
from sae.cli.settings_help import with_variants
from sae.cli.sources import on_runs
from sae.cli.steering import SteerMeasure
from sae.cli.train_forms import TRAIN_CONFIGS, resumed, train_command, value_of
from sae.cli.training import Sweep
from sae.config import (
    TYPED,
    ConfigError,
    TrainConfig,
    refuse_ignored,
)

ON_RANKS = ("harvest", "train", "eval", "features")
"""Commands that share their work out over the processes of a launcher (torchrun); others run in one process."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `sae`."""
    given = sys.argv[1:] if arguments is None else arguments
    typed = TYPED.set(frozenset(a[2:].partition("=")[0].replace("-", "_") for a in given if a.startswith("--")))
    try:
        command = PARSED_APART.get(given[0] if given else "", parse)(given)
        if given[0] not in ON_RANKS:
            refuse_ranks(f"sae {given[0]}")
        result = on_runs(command).run()
        if rank_number() == 0:
            show(result, as_json=command.json, table=getattr(command, "table", None))
            if not command.json:
                show_python(command)
    except BaseException as error:
        status = _status_of(error)
        if status is None:
            raise
        sys.exit(status)
    finally:
        TYPED.reset(typed)
    if result.get("status", 0):
        sys.exit(result["status"])


def parse(arguments: list[str]) -> Any:
    """The command dataclass for `arguments`; tyro prints help and refuses what is no flag or no number.

    Raises:
        ConfigError: a setting is out of range.
    """
    if arguments[:1] == ["image"]:
        return _parse(arguments[1:], IMAGE_COMMANDS, "sae image", "Train image autoencoders, show them, compare them.")
    says = "Train sparse autoencoders on language-model activations, prove how good they are, look inside."
    commands = COMMANDS
    if arguments[:1] == ["harvest"]:
        arguments = with_layers(arguments)
    if arguments[:1] == ["train"]:
        commands = {**COMMANDS, "train": train_command(arguments)}
    if arguments[:1] == ["steer"] and "--measure" in arguments:
        commands = {**COMMANDS, "steer": SteerMeasure}
    return _parse(arguments, commands, "sae", says)


def _parse(arguments: list[str], commands: dict[str, type], prog: str, description: str) -> Any:
    union: list[Any] = []
    for name, cls in commands.items():
        default = resumed(arguments, cls) if cls in TRAIN_CONFIGS else None
        settings: dict[str, Any] = {"name": name, "prefix_name": False}
        if default is not None:
            settings["default"] = default
        elif arguments[:1] == [name] and {"-h", "--help"} & set(arguments):
            cls = with_variants(cls, arguments)
        union.append(Annotated[cls, tyro.conf.subcommand(**settings)])
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            return tyro.cli(
                cast(Any, Union[tuple(union)]),  # noqa: UP007 - built at run time
                args=arguments,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stopped:
        # tyro wraps an error of a dataclass and names its own inner parts; our message already names the flag
        cause: BaseException | None = stopped
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(refusal.getvalue())
        raise


GRID = ("variant", "k", "width", "layer", "lr", "seed")
"""Flags of `sae sweep` that take several values."""


def parse_sweep(arguments: list[str]) -> Sweep:
    """`sae sweep`'s arguments as one set of `sae train`'s for every combination of the grid's values.

    Raises:
        ConfigError: two members would have one name, or --resume was given.
    """
    grid: dict[str, list[str]] = {}
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in GRID:
            grid[name] = (value if equals else next(waiting, "")).split(",")
        else:
            rest.append(argument)
    members: list[TrainConfig] = []
    sweep: Sweep | None = None
    for values in itertools.product(*grid.values()):
        flags: list[str] = []
        later: list[str] = []  # settings behind a variant's name win
        parts: list[str] = []
        for name, value in zip(grid, values, strict=True):
            first, *settings = value.split(":") if name == "variant" else [value]
            flags += [f"--{name}", first]
            later += [f"--{setting}" for setting in settings]
            if name == "variant":
                parts.append(
                    "-".join([first, *(s.partition("=")[2] for s in settings if s.startswith(("recipe=", "penalty=")))])
                )
            elif len(grid[name]) > 1:
                parts.append(f"{name}{value}")
        sweep = parse([*rest, *flags, *later])
        assert isinstance(sweep, Sweep)
        out = sweep.config.out / "-".join(parts or [sweep.config.sae.variant])
        members.append(dataclasses.replace(sweep.config, out=out))
    names = [member.out.name for member in members]
    if len(set(names)) < len(names):
        raise ConfigError(f"sweep: two members have one name ({', '.join(names)}); name every value once")
    assert sweep is not None
    refuse_ignored(sweep.config, {"resume": "a sweep always resumes what is there"})
    return dataclasses.replace(sweep, members=tuple(members))


def parse_choose_l0(arguments: list[str]) -> ChooseL0:
    """`sae choose-l0`'s arguments: of runs, or, where several --k are given, of a sweep that makes them.

    Raises:
        ConfigError: fewer than three different k, or a setting is out of range.
    """
    ks = value_of(arguments, "--k")
    if ks is None:
        return parse(arguments)
    given = arguments[1:]
    sweep = parse_sweep(["sweep", *given, *([] if value_of(given, "--seed") else ["--seed", "0,1"])])
    if len({member.sae.k for member in sweep.members}) < 3:
        raise ConfigError(f"--k {ks}: expected three or more with commas, so that an optimum can lie inside")
    for name in ("variant", "width", "layer", "lr"):
        if len((value_of(given, f"--{name}") or "").split(",")) > 1:
            raise ConfigError(
                f"--{name} {value_of(given, f'--{name}')}: expected one; levels differ in k and seed alone"
            )
    return ChooseL0(sweep=sweep, json=sweep.json)


PARSED_APART: dict[str, Callable[[list[str]], Any]] = {"sweep": parse_sweep, "choose-l0": parse_choose_l0}
"""Commands whose flags may take several values with commas."""


def show(
    result: dict[str, Any], *, as_json: bool, table: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> None:
    """Print the table for people (on stderr when the JSON line goes to stdout).

    Args:
        result: what the JSON line holds.
        table: makes what the table holds from it, where that is something else.
    """
    from rich.console import Console

    from sae.base.tables import render

    Console(stderr=as_json, highlight=False).print(render(table(result) if table else result))
    if as_json:
        print(json.dumps(result, allow_nan=False), flush=True)


def show_python(command: Any) -> None:
    """Print the Python that does the same, whole lines of it, to be copied."""
    from sae.cli.python import python_of

    print(f"\nThe same in Python:\n{python_of(command)}", flush=True)


def _status_of(error: BaseException) -> int | None:
    """Print an error that the user can mend as one message; None for a bug of ours, which keeps its traceback."""
    from sae.base.progress import Interrupted

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
    # refusals are exceptions defined in sae; any other is a bug
    if type(error).__module__.startswith("sae."):
        status = 1 if isinstance(error, ArithmeticError) else getattr(error, "exit_status", 2)
        return _say(f"error: {error}", status)
    return None


_WHOLE = "what was saved before is whole: make room, then run the command again (a training run with --resume)"
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
