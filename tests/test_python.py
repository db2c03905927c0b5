"""The Python API: its examples run, and every command prints the Python that does the same."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import sae
from finished_runs import collected_run, finished_run
from sae.cli.commands import COMMANDS
from sae.cli.image_commands import IMAGE_COMMANDS
from sae.cli.main import PARSED_APART, main, parse
from sae.cli.python import CALLS, python_of
from sae.interop.export import export

HEADING = "The same in Python:\n"
FUNCTIONS = [name for name in sae.__all__ if not name.endswith("Config")]


@pytest.fixture
def folder(tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs/demo (a tiny run with features), others beside it, model and texts.jsonl."""
    shutil.copytree(collected_run(tiny_model, corpus).folder, tmp_path / "runs/demo")
    for name, settings in (("seed1", {"seed": 1}), ("k4", {"k": 4}), ("k16", {"k": 16})):
        shutil.copytree(finished_run(tiny_model, corpus, **settings).folder, tmp_path / "runs" / name)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "texts.jsonl").symlink_to(corpus)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_examples_in_docstrings_run(folder: Path, name: str) -> None:
    subject = getattr(sae, name)
    module = importlib.import_module(subject.__module__)
    (example,) = [t for t in doctest.DocTestFinder(recurse=False).find(subject, name, globs=vars(module).copy())]
    assert example.examples, f"sae.{name} has no example"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)


def test_every_exported_name_is_there_and_known_to_type_checkers() -> None:
    listed = ast.parse(Path(sae.__file__).read_text())
    typed = {
        alias.asname or alias.name
        for node in ast.walk(listed)
        if isinstance(node, ast.If)
        for part in node.body
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }
    assert typed == set(sae.__all__) <= set(dir(sae))
    for name in sae.__all__:
        assert getattr(sae, name).__doc__
    with pytest.raises(AttributeError, match="it offers Autoencoder"):
        _ = sae.nothing  # pyright: ignore[reportAttributeAccessIssue]


COMMAND_LINES = [
    "list --model gemma-2-2b --layer 12",
    "demo --tokens 9000",
    "train --model m --dataset d --layer 3 --variant jumprelu --recipe anthropic --out r --lr 1e-3 --roles assistant",
    "train --data digits --variant vae --out r",
    "train --data rows.npy --width 64 --out r",
    "sweep --model m --dataset d --layer 3 --k 4,8 --out r",
    "harvest --model m --dataset d --layer 3,4 --store s --tokens 20000 --worker 0/2",
    "harvest --model m --dataset d --layer 3 --store s --dry-run",
    "eval /nowhere/runs/x --tokens 4096",
    "eval /nowhere/runs/x",
    "match /nowhere/runs/x /nowhere/runs/y --pool p --at-least 0.7",
    "match /nowhere/runs/x /nowhere/runs/y",
    "measure /nowhere/runs/x --measures probing,tpp --documents 40",
    "measure /nowhere/runs/x",
    "compare /nowhere/runs/x /nowhere/runs/y --reference jumprelu",
    "choose-l0 /nowhere/runs/x /nowhere/runs/y --tokens 4096",
    "choose-l0 --model m --dataset d --layer 3 --k 4,8,16 --out r",
    "choose-l0 --model m --dataset d --layer 3 --k 4,8,16 --out r --dry-run",
    "explain /nowhere/runs/x --latents 3 5",
    "explain /nowhere/runs/x --score detection,fuzzing --judged 6 --scorer local --scorer-model m",
    "steer /nowhere/runs/x --latent 3 5 --measure --doses 1 2",
    "features /nowhere/runs/x --store acts --tokens 100000",
    "browse /nowhere/runs/x /nowhere/runs/y --port 81",
    "report /nowhere/runs/x /nowhere/runs/y --out page",
    "import folder --out r --dataset demo",
    "list --model gemma-2-2b --layer 12",
    "export /nowhere/runs/x --to static --out page --latents 4",
    "export /nowhere/runs/x --to neuronpedia --out page",
    "export /nowhere/runs/x --to saelens --out theirs",
    "export /nowhere/runs/x --to hub --repo user/name --private",
    "verify /nowhere/runs/x",
    "bench kernels --width 64",
    "bench step --device cpu",
    "bench curve",
    "bench variants --variants topk,relu:penalty=tanh",
    "bench recovery --seeds 1",
    "bench l0 --worlds easy16 --draws 2",
    "selftest corrupt --n 12 --break no-hash",
    "doctor",
    "image train --data digits --out r --epochs 2",
    "image eval /nowhere/runs/x --resamples 20",
    "image report /nowhere/runs/x",
    "image chapter --out r --quick --only collapse",
    "image compare --out r --seeds 2",
]


class Answer(dict):
    """What a recorded call returns: empty in each form in which a command reads it."""

    def to_json(self) -> dict[str, Any]:
        return {}

    def _asdict(self) -> dict[str, Any]:
        return {}


def parsed(line: str) -> Any:
    arguments = line.split()
    return PARSED_APART.get(arguments[0], parse)(arguments)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_the_python_makes_the_call_that_the_command_makes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = parsed(line)
    function = CALLS[type(command)](command).function
    place = function if ":" in function else sae._LAZY[function]
    module, _, name = place.partition(":")
    original = getattr(importlib.import_module(module), name)
    calls: list[dict[str, Any]] = []

    def record(*arguments: Any, **named: Any) -> Answer:
        bound = inspect.signature(original).bind(*arguments, **named)
        bound.apply_defaults()
        # no settings are the default ones; how progress is shown is the caller's own
        settings = bound.arguments.get("config")
        usual = original.__name__ in ("evaluate", "collect", "explain", "match", "measure") and settings in (
            None,
            type(settings)(),
        )
        apart = {"tell", "ready", *(["config"] if usual else [])}
        calls.append({n: v for n, v in bound.arguments.items() if n not in apart})
        return Answer()

    monkeypatch.setattr(importlib.import_module(module), name, record)
    command.run()
    exec(python_of(command), {})
    by_command, by_python = (json.dumps(call, default=repr, sort_keys=True) for call in calls)
    if line.startswith("image chapter"):  # the settings hold the way to show progress
        by_command, by_python = (text.partition("tell=")[0] for text in (by_command, by_python))
    assert by_python == by_command


def test_every_command_has_its_python_and_is_tried() -> None:
    commands = {*COMMANDS.values(), *IMAGE_COMMANDS.values()} - {COMMANDS["image"]}
    assert commands <= set(CALLS)
    # steer is run for good below
    assert {type(parsed(line)) for line in COMMAND_LINES} == set(CALLS) - {COMMANDS["steer"]}


def test_what_is_printed_runs_and_does_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(line: str) -> str:
        main(line.split())
        table, _, python = capsys.readouterr().out.partition(HEADING)
        assert table
        assert "import sae\n" in python
        return python

    train = "train --model model --dataset texts.jsonl --layer 1 --width 64 --k 4 --tokens 4096 --batch 256"
    python = ran(f"{train} --context 64 --contexts 4 --out runs/first")
    exec(python.replace("runs/first", "runs/second"), {})
    first, second = (Path(f"runs/{name}/sae.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second

    few = "--tokens 1024 --downstream-tokens 512 --pca-tokens 1024 --resamples 10"
    python = ran(f"eval runs/first {few}")
    reports = [sae.Run("runs/first").evaluation]
    exec(python, {})
    reports.append(sae.Run("runs/first").evaluation)
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}

    python = ran("features runs/first --tokens 2048")
    records = [sae.Run("runs/first").features.record(3)]
    exec(python, {})
    records.append(sae.Run("runs/first").features.record(3))
    assert records[0] == records[1]

    python = ran("steer runs/demo --latent 3 7 --scale 20 --absolute --tokens 4 --prompt river")
    scope: dict[str, Any] = {}
    exec(python.replace("sae.steer(", "result = sae.steer("), scope)
    main("steer runs/demo --latent 3 7 --scale 20 --absolute --tokens 4 --prompt river --json".split())
    assert scope["result"] == json.loads(capsys.readouterr().out)


def test_another_tool_s_files_are_imported_by_the_python_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAE_CACHE", str(folder / "cache"))
    export("runs/demo", "saelens", "theirs")
    main(["verify", "theirs"])
    python = capsys.readouterr().out.partition(HEADING)[2]
    assert 'as_run("theirs", command="verify", with_text=False)' in python
    exec(python, {})


def test_with_json_only_the_result_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", "runs/demo", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["verified"]
    assert HEADING not in err


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    readme = (Path(sae.__file__).parent.parent / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block, scope)
    assert scope["session"].dense("resid_post.1").shape[0] == len(scope["texts"]) == 2
