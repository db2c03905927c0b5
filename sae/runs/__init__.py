"""Finished runs, opened again: one function for all kinds, which `KINDS` in `sae.runs.base` lists.

run = open_run("runs/demo")              # TextRun, ImageRun or TensorRun, by the run's own record
codes = run.model.encode(x)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    import torch

    from sae.runs.images import ImageRun
    from sae.runs.tensors import TensorRun
    from sae.runs.text import Run


@overload
def open_run(run: str | Path, kind: Literal["language"], *, device: torch.device | str = "cpu") -> Run: ...
@overload
def open_run(run: str | Path, kind: Literal["image"], *, device: torch.device | str = "cpu") -> ImageRun: ...
@overload
def open_run(run: str | Path, kind: Literal["tensors"], *, device: torch.device | str = "cpu") -> TensorRun: ...
@overload
def open_run(run: str | Path, kind: None = None, *, device: torch.device | str = "cpu") -> Any: ...


def open_run(run: str | Path, kind: str | None = None, *, device: torch.device | str = "cpu") -> Any:
    """Open a run folder, or a hub repository that holds one. Packages of other kinds are not imported.

    Args:
        run: the folder.
        kind: refuse runs of another kind; by default any that can be opened.

    Raises:
        ConfigError, CorruptError: it is no such run, or not finished. Text: ModelError, SiteError.
    """
    from sae.runs.base import check_kind, kind_of

    check_kind(run, *([kind] if kind else ("language", "image", "tensors")))
    kind = kind or kind_of(run)
    if kind == "language":
        from sae.runs.text import open_run as open_text_run

        return open_text_run(run, device=device)
    if kind == "image":
        from sae.runs.images import open_image_run

        return open_image_run(run, device=device)
    from sae.runs.tensors import open_tensor_run

    return open_tensor_run(run, device=device)
