"""The Python that does what a command did, from its parsed settings; every command prints it at its end.

python_of(parse(["eval", "runs/demo", "--tokens", "4096"]))
# import sae
# sae.evaluate("runs/demo", sae.EvalConfig(tokens=4096))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sae
from sae.cli import bench, commands, exchange, harvest, image_commands, training
from sae.cli.choose_l0 import ChooseL0
from sae.cli.comparing import Compare
from sae.cli.match import Match
from sae.cli.measure import Measure
from sae.cli.reporting import Report
from sae.cli.selftest import SelfTest
from sae.cli.sources import members_of
from sae.cli.steering import SteerMeasure

WIDTH = 100
"""Columns that a call fills before its arguments get lines of their own."""


class Call:
    """A call to be written down: a name that `sae` exports, or `module:name`."""

    def __init__(self, function: str, *arguments: Any, **named: Any) -> None:
        self.function, self.arguments, self.named = function, arguments, named


class Name:
    """Python to be written down as it stands."""

    def __init__(self, name: str, needs: str | None = None) -> None:
        self.name, self.needs = name, needs


def _run(source: str | Path, command: str, **settings: Any) -> Any:
    """The run that a command reads: its folder or, for another tool's files, their import."""
    from sae.interop.opening import own_run

    if own_run(source) is not None:
        return source
    given = {name: value for name, value in settings.items() if value is not None}
    return Call("sae.interop.opening:as_run", source, command=command, **given)


def _on_run(function: str, command: str) -> Callable[[Any], Call]:
    """A call on a run folder, with the settings unless all are defaults."""

    def call(c: Any) -> Call:
        text = {name: getattr(c.config, name, None) for name in ("dataset", "text_field")}
        run = _run(c.run_folder, command, **text) if command in ("eval", "features") else _run(c.run_folder, command)
        return Call(function, run, *([c.config] if any(_settings(c.config)) else []))

    return call


def _train(command: Any) -> Call:
    if command.dry_run:
        return Call("sae.training.space:estimate", Call("sae.training.plan:make_plan", command.config))
    return Call("train", command.config)


def _harvest(command: harvest.Harvest) -> Call:
    if command.dry_run:
        return Call("sae.harvest.harvesting:dry_run", command.config)
    return Call("harvest_store", command.config)


def _export(command: exchange.Export) -> Call:
    out, text = command.out, command.to in ("static", "neuronpedia")
    run = _run(command.run_folder, "export", with_text=text)
    if command.to == "hub":
        return Call("sae.interop.export.hub:push", run, command.repo, private=command.private, licence=command.licence)
    if command.to == "static":
        return Call("sae.browser.export:export_static", run, out, latents=command.latents or None)
    if command.to == "neuronpedia":
        return Call("sae.interop.neuronpedia:export", run, out)
    return Call("sae.interop.export:export", run, command.to, out)


def _evaluate(command: commands.Eval) -> Call:
    from sae.runs.sweeps import sweep_of

    if sweep_of(command.run_folder) is not None:
        settings = [command.config] if any(_settings(command.config)) else []
        return Call("sae.reporting.sweep:compare", command.run_folder, *settings)
    return _on_run("evaluate", "eval")(command)


def _sweep(command: training.Sweep) -> Call:
    if command.dry_run:
        return Call("sae.cli.sweep:dry_run", command.members)
    return Call("sae.cli.sweep:run_sweep", command.config.out, command.members, command.evaluation())


def _bench(command: bench.Bench) -> Call:
    named = {name: getattr(command, name) for name in bench.READ_BY_BENCHES[command.what]}
    if "device" in named:
        named["device"] = Name(f'pick_device("{command.device}").type', "from sae.base.device import pick_device")
    if command.what == "recovery":
        named = {**named, "variants": command.variants.split(","), "worlds": command.worlds.split(",")}
        return Call("sae.cli.recovery:measure_recovery", **named, tell=Name("print"))
    if command.what == "l0":
        return Call(
            "sae.cli.l0_worlds:measure_choices", **named | {"worlds": command.worlds.split(",")}, tell=Name("print")
        )
    if command.what == "variants":
        return Call("sae.training.bench:measure_variants", named.pop("variants").split(","), **named)
    module = "kernels" if command.what == "kernels" else "step"
    return Call(f"sae_kernels.bench.{module}:measure_{command.what}", **named)


def _members(command: Any, name: str) -> list[Any]:
    """The runs that a command shows, a sweep's members one by one."""
    return [_run(member, name) for run in command.run_folders for member in members_of(run, command)]


def _browse(command: commands.Browse) -> Call:
    runs = _members(command, "browse")
    return Call("sae.browser.serve:serve", runs, port=command.port, device=command.device, ready=Name("print"))


def _match(command: Match) -> Call:
    text = {"dataset": command.config.dataset, "text_field": command.config.text_field}
    runs = [_run(run, "match", with_text=text["dataset"] is not None, **text) for run in command.run_folders]
    return Call("match", runs, *([command.config] if _settings(command.config) else []))


def _compare_runs(command: Compare) -> Call:
    from sae.runs.sweeps import sweep_of

    runs = [run if sweep_of(run) is not None else _run(run, "compare") for run in command.run_folders]
    return Call("compare", runs, *([command.config] if _settings(command.config) else []))


def _choose_l0(command: ChooseL0) -> Call:
    if command.sweep is not None:
        call = _sweep(command.sweep)
        return call if command.sweep.dry_run else Call("sae.cli.l0:sweep_and_choose", *call.arguments)
    runs = [_run(run, "choose-l0") for run in command.run_folders]
    return Call("sae.cli.l0:choose_and_draw", runs, *([command.config] if _settings(command.config) else []))


def _chapter(command: image_commands.ImageChapter) -> Call:
    setting = Call("sae.book.chapter.base:Setting", **command.setting(), tell=Name("print"))
    return Call("sae.book.chapter.report:run_chapter", setting, command.names())


def _compare(command: image_commands.ImageCompare) -> Call:
    return Call("sae.book.comparison.report:compare", command.out, **command.options(), tell=Name("print"))


CALLS: dict[type, Callable[[Any], Call]] = {
    commands.Demo: lambda c: Call("sae.cli.demo:run_demo", c.out, tokens=c.tokens, epochs=c.epochs, seed=c.seed),
    training.Train: _train,
    training.TensorTrain: _train,
    harvest.Harvest: _harvest,
    training.Sweep: _sweep,
    commands.Eval: _evaluate,
    Match: _match,
    Compare: _compare_runs,
    Measure: _on_run("measure", "measure"),
    ChooseL0: _choose_l0,
    commands.Explain: _on_run("explain", "explain"),
    commands.Steer: _on_run("steer", "steer"),
    SteerMeasure: _on_run("measure_steering", "steer"),
    commands.Features: _on_run("collect", "features"),
    commands.Browse: _browse,
    Report: lambda c: Call(
        "report", [_run(member, "report") for run in c.run_folders for member in members_of(run, c)], c.out
    ),
    exchange.List: lambda c: Call("sae.interop.listing:list_published", **c.given()),
    exchange.Import: lambda c: Call("sae.interop.importing:import_run", c.source, c.config),
    exchange.Export: _export,
    commands.Verify: lambda c: Call("verify", _run(c.run_folder, "verify", with_text=False)),
    bench.Bench: _bench,
    SelfTest: lambda c: Call("sae.selftest.run:run_selftest", c.what, **c.given()),
    commands.Doctor: lambda c: Call("sae.cli.doctor:examine"),
    image_commands.ImageTrain: _train,
    image_commands.ImageEval: _on_run("sae.evaluation.images:evaluate_images", "image eval"),
    image_commands.ImageReport: lambda c: Call(
        "sae.book.report.image:image_report", c.run_folder, *([c.out] if c.out else [])
    ),
    image_commands.ImageChapter: _chapter,
    image_commands.ImageCompare: _compare,
}
"""Command -> the call that it makes."""


def python_of(command: Any) -> str:
    """Lines of Python that do what this command does, imports first."""
    imports: set[str] = set()
    call = _written(CALLS[type(command)](command), imports)
    package = {"import sae"} if "sae." in call else set()
    return "\n".join([*sorted(imports), *package, call])


def _written(value: Any, imports: set[str], indent: int = 0) -> str:
    """A value as Python; `imports` gets the lines that it needs."""
    if isinstance(value, Name):
        imports.update([value.needs] if value.needs else [])
        return value.name
    if isinstance(value, Path):
        imports.add("from pathlib import Path")
        return f"Path({_quoted(str(value))})"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Call):
        arguments = [("", argument) for argument in value.arguments]
        return _called(_name(value.function, imports), [*arguments, *value.named.items()], imports, indent)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        function = name if name in sae.__all__ else f"{type(value).__module__}:{name}"
        return _called(_name(function, imports), list(_settings(value)), imports, indent)
    if isinstance(value, (tuple, list)):
        ends = "()" if isinstance(value, tuple) else "[]"
        items = [("", item) for item in value]
        return _called("", items, imports, indent, ends=ends, single=isinstance(value, tuple))
    if isinstance(value, int) and value >= 10_000:
        return f"{value:_}"
    return repr(value)


def _quoted(text: str) -> str:
    """A string as ruff writes it: in double quotes, unless it holds some and no single ones."""
    written = repr(text)
    if written[0] == "'" and '"' not in text:
        return f'"{written[1:-1]}"'
    return written


def _settings(config: Any) -> list[tuple[str, Any]]:
    """The fields whose values are not their defaults."""
    settings = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or value != default:
            settings.append((field.name, value))
    return settings


def _name(function: str, imports: set[str]) -> str:
    module, colon, name = function.partition(":")
    if not colon:
        return f"sae.{function}"
    imports.add(f"from {module} import {name}")
    return name


def _called(
    function: str,
    arguments: list[tuple[str, Any]],
    imports: set[str],
    indent: int,
    *,
    ends: str = "()",
    single: bool = False,
) -> str:
    """`function(arguments)` on one line, or, where that is too long, with a line for each argument."""
    before = [f"{name}=" if name else "" for name, _ in arguments]
    flat = [start + _written(value, imports) for start, (_, value) in zip(before, arguments, strict=True)]
    comma = "," if single and len(flat) == 1 else ""
    line = f"{function}{ends[0]}{', '.join(flat)}{comma}{ends[1]}"
    if (len(line) + indent <= WIDTH and "\n" not in line) or not flat:
        return line
    inner = indent + 4
    parts = [
        f"{' ' * inner}{start}{_written(value, imports, inner)},\n"
        for start, (_, value) in zip(before, arguments, strict=True)
    ]
    return f"{function}{ends[0]}\n{''.join(parts)}{' ' * indent}{ends[1]}"
