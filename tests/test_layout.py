"""Imports go down the house and never in a circle, heavy packages stay in their rooms, `kernels` is no package."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("sae/**/*.py"), *ROOT.glob("kernels/**/*.py")])

FLOORS: list[set[str]] = [
    {"base", "config"},
    {"modules"},
    {"models", "data"},
    {"harvest"},
    {"runs"},
    {"training", "evaluation", "features"},
    {"browser", "interop", "pictures"},
    {"book", "reporting", "selftest"},
    {"cli"},
]
"""From the ground up: a room imports rooms of lower floors, and those of its own floor that import none back."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {
    "transformers": ("sae/harvest/", "sae/data/", "sae/evaluation/downstream.py", "sae/selftest/world.py"),
    "datasets": ("sae/data/",),
    "wandb": ("sae/training/logging.py",),
    "matplotlib": ("sae/book/", "sae/pictures/", "sae/reporting/", "sae/base/colours.py"),
    "fastapi": ("sae/browser/",),
    "starlette": ("sae/browser/",),
    "uvicorn": ("sae/browser/",),
    "triton": ("kernels/sae_kernels/",),
    "numba": ("kernels/sae_kernels/",),
}
COMMAND_FILES = (
    "main",
    "commands",
    "image_commands",
    "training",
    "train_forms",
    "match",
    "choose_l0",
    "exchange",
    "bench",
)
WITHOUT_TORCH = ("sae/config/", *(f"sae/cli/{name}.py" for name in COMMAND_FILES))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, late ones included; of `from package import module` the module alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                names.add(module if (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() else node.module)
    return names


def room_of(path: Path) -> str | None:
    """base, data, ...; None for a file at the top of sae/ and for the kernels."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "sae" and len(parts) > 2 else None


def files_imported(path: Path) -> set[Path]:
    """Files of sae that a file imports; a package's `__init__` only where a name of its own is taken from it."""
    files: set[Path] = set()
    for name in imported(path):
        place = ROOT / name.replace(".", "/")
        if name.startswith("sae."):
            files |= {p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}
    return files - {path}


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, first and last the same; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def named(paths: Iterable[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    relative, names = path.relative_to(ROOT).as_posix(), imported(path)
    if relative.startswith("kernels/"):
        assert not {n for n in names if n.split(".")[0] == "sae"}, "sae_kernels knows nothing of sae"
        return
    room = room_of(path)
    if room is not None:
        others = {other for other in map(room_of, files_imported(path)) if other not in (None, room)}
        assert room in FLOOR, f"{room} is a new room: give it a floor"
        assert not {other for other in others if FLOOR[other] > FLOOR[room]}, "an import goes up"
    for package, places in HEAVY.items():
        if any(n.split(".")[0] == package for n in names):
            assert relative.startswith(places), f"{relative} imports {package}"
    if relative.startswith(WITHOUT_TORCH):
        top = {n.split(".")[0] for n in names}
        assert "torch" not in top, "settings and commands are read before torch is loaded"


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [path for path in SOURCES if path.is_relative_to(ROOT / "sae")]
    assert not circle_of({path.relative_to(ROOT).as_posix(): named(files_imported(path)) for path in files})


def test_no_rooms_import_each_other_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for path in SOURCES:
        room = room_of(path)
        if room is not None:
            rooms.setdefault(room, set()).update(r for r in map(room_of, files_imported(path)) if r not in (None, room))
    assert not circle_of(rooms)


def test_a_circle_is_noticed() -> None:
    assert circle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle_of({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize("room", ["book", "selftest"])
def test_only_the_command_line_imports(room: str) -> None:
    outside = [path for path in SOURCES if room_of(path) not in (room, "cli")]
    assert not [p for p in outside if any(room_of(other) == room for other in files_imported(p))]


def test_kernels_is_a_folder_and_not_a_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "tests/kernels").exists()
    # a script's own folder is on its path: transformers would import such a file as the package of that name
    assert not list(ROOT.glob("scripts/**/kernels.py"))
