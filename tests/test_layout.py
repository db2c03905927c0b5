"""Imports go one way, heavy packages stay in their rooms, and `kernels` is no package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("sae/**/*.py"), *ROOT.glob("kernels/**/*.py")])

# each room may import itself, the foundations, and what its row lists
FOUNDATIONS = {"config", "image_config", "fields", "files", "device", "draws", "progress", "tables"}
ALLOWED = {
    "data": set(),
    "harvest": {"data"},
    "modules": set(),
    "models": {"modules"},
    "training": {"data", "harvest", "modules", "models", "image_runs"},
    "evaluation": {"data", "harvest", "modules", "models", "runs", "image_runs"},
    "pictures": {"data", "modules", "models", "evaluation", "image_runs"},
    "reports": {"data", "modules", "models", "training", "evaluation", "pictures", "image_runs"},
    "chapter": {"data", "modules", "models", "training", "evaluation", "pictures", "image_runs", "runs", "generate"},
    "comparison": {
        *("data", "harvest", "modules", "models", "training", "evaluation", "pictures", "chapter"),
        *("image_runs", "runs"),
    },
    "generate": {"data", "modules", "models", "training", "image_runs"},
    "features": {"data", "harvest", "modules", "models", "runs", "image_runs"},
    "browser": {"data", "harvest", "modules", "models", "runs", "image_runs", "evaluation", "features", "pictures"},
    "interop": {"data", "harvest", "modules", "models", "runs", "features"},
}
HEAVY = {
    "transformers": ("sae/harvest/", "sae/data/", "sae/evaluation/downstream.py"),
    "datasets": ("sae/data/",),
    "wandb": ("sae/training/logging.py",),
    "matplotlib": ("sae/pictures/", "sae/chapter/"),
    "fastapi": ("sae/browser/",),
    "starlette": ("sae/browser/",),
    "uvicorn": ("sae/browser/",),
    "triton": ("kernels/sae_kernels/",),
    "numba": ("kernels/sae_kernels/",),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "sae" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    names = imported(path)
    if relative.startswith("kernels/"):
        assert not {n for n in names if n.split(".")[0] == "sae"}, "sae_kernels knows nothing of sae"
        return
    room = relative.split("/")[1]
    if room in ALLOWED:
        rooms = {r for r in map(room_of, names) if r}
        assert rooms <= ALLOWED[room] | FOUNDATIONS | {room}
    for package, places in HEAVY.items():
        if any(n.split(".")[0] == package for n in names):
            assert relative.startswith(places), f"{relative} imports {package}"


def test_config_imports_no_torch() -> None:
    assert "torch" not in imported(ROOT / "sae/config.py")
    assert "torch" not in imported(ROOT / "sae/cli.py")
    assert "torch" not in imported(ROOT / "sae/commands.py")


def test_kernels_is_a_folder_and_not_a_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "tests/kernels").exists()
    # a script's own folder is on its path: transformers would import such a file as the package of that name
    assert not list(ROOT.glob("scripts/**/kernels.py"))
