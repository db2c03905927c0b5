"""What an evaluation has measured document by document, in `eval_documents.npz` beside eval.json.

With these sums runs are compared on the same documents (`sae.evaluation.comparison`) without the language model.

    write_documents(folder, documents)
    read_documents(folder).rows["error"]          # squared error of every group of documents, [G]
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.base.files import CorruptError, publish_file
from sae.config import ConfigError
from sae.evaluation.bootstrap import GroupSums
from sae.evaluation.control_table import components_of
from sae.evaluation.reconstruction import Reconstruction
from sae.models.saved import read_description, read_report

FILE, REPORT = "eval_documents.npz", "eval.json"
FORMAT = 1
_CONTROL = "control/"


class Documents(NamedTuple):
    """Sums over G groups of documents, float64 [G] unless another shape is given."""

    rows: dict[str, Tensor]
    """Of ordinary tokens: "count", "error", "square" and "offset" [G, d_out] about the mean of all, "norm_square",
    "l0", "cosine", for `fvu_of` and `ratio`."""
    controls: dict[str, dict[str, Tensor]]
    """Name of a control -> its "error", "l0", "cosine"."""
    losses: dict[str, Tensor]
    """As `Downstream` sums them, over documents of their own; empty where nothing was spliced in."""
    dead_without: Tensor
    """Share of dead latents without each group."""
    fired: Tensor
    """Tokens on which each latent fired, int64 [F]."""
    settings: dict[str, Any]
    """JSON values of the evaluation's settings."""


def documents_of(
    reconstruction: Reconstruction, losses: GroupSums | None, *, k: int, settings: Mapping[str, Any]
) -> Documents:
    """What a run's reconstruction of ordinary tokens and its losses have measured."""
    sums, shift = reconstruction.sums.sums, reconstruction.mean - reconstruction.centre
    controls: dict[str, dict[str, Tensor]] = {}
    if reconstruction.controls is not None:
        of_all = reconstruction.control_sums(components_of(reconstruction, k))
        controls = {name: {part: each[part] for part in ("error", "l0", "cosine")} for name, each in of_all.items()}
    rows = {name: sums[name] for name in ("count", "error", "norm_square", "l0", "cosine")}
    rows["square"] = sums["square"] - 2 * sums["offset"] @ shift + sums["count"] * shift.square().sum()
    rows["offset"] = sums["offset"] - sums["count"][:, None] * shift
    without = reconstruction.dead_without_groups()
    return Documents(rows, controls, {} if losses is None else losses.sums, without, reconstruction.fired, {**settings})


def write_documents(folder: Path, documents: Documents, report: Mapping[str, Any]) -> None:
    """Write the file into a run's folder, before its eval.json, `report`."""
    arrays = {f"rows/{name}": each for name, each in documents.rows.items()}
    arrays |= {f"losses/{name}": each for name, each in documents.losses.items()}
    for control, parts in documents.controls.items():
        arrays |= {f"{_CONTROL}{part}/{control}": each for part, each in parts.items()}
    arrays |= {"dead_without": documents.dead_without, "fired": documents.fired}
    # centred, so that half the digits are enough; with its d columns it is most of the file
    stored = {name: each.numpy().astype(np.float32 if name == "rows/offset" else each.numpy().dtype)
              for name, each in arrays.items()}  # fmt: skip
    about = {
        "format": FORMAT,
        "weights": read_description(folder).get("sha256"),
        "report": _mark(report),
        "settings": documents.settings,
    }
    info = np.frombuffer(json.dumps(about).encode(), np.uint8)
    publish_file(folder / FILE, lambda stream: np.savez(stream, info=info, **stored))


def read_documents(folder: Path) -> Documents:
    """The sums of a run's newest evaluation.

    Raises:
        ConfigError: there are none: it was not evaluated, or by a version that kept none.
        CorruptError: the file is damaged, or of another evaluation than eval.json.
    """
    path = folder / FILE
    remedy = f"evaluate it again: sae eval {folder}"
    if not path.is_file() or not (folder / REPORT).is_file():
        raise ConfigError(f"{folder}: it has no {FILE} of its documents; {remedy}")
    try:
        with np.load(path, allow_pickle=False) as file:
            info = json.loads(file["info"].tobytes())
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "info"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptError(f"{path}: cannot be read ({error}); {remedy}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise CorruptError(f"{path}: not the format that this version reads, {FORMAT}; {remedy}")
    here = [read_description(folder).get("sha256"), _mark(read_report(folder, REPORT))]
    if [info["weights"], info["report"]] != here:
        raise CorruptError(f"{path}: of another evaluation than {REPORT} beside it; {remedy}")
    rows, losses, controls = {}, {}, {}
    for name, array in arrays.items():
        if name.startswith("rows/"):
            rows[name.removeprefix("rows/")] = array.double()
        elif name.startswith("losses/"):
            losses[name.removeprefix("losses/")] = array
        elif name.startswith(_CONTROL):
            part, _, control = name.removeprefix(_CONTROL).partition("/")
            controls.setdefault(control, {})[part] = array
    return Documents(rows, controls, losses, arrays["dead_without"], arrays["fired"], info["settings"])


def _mark(report: Mapping[str, Any]) -> list[float | None]:
    """Numbers that two evaluations of a run do not share."""
    fvu, losses = report["fvu"] or {}, report.get("downstream") or {}
    tokens, spliced = report.get("tokens", report.get("rows")), losses.get("ce_spliced") or {}
    numbers = [tokens, fvu.get("value"), fvu.get("low"), spliced.get("value")]
    return [None if n is None or math.isnan(n) else n for n in numbers]
