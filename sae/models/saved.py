"""Saving and loading an autoencoder in its inference form, with a self-test inside.

A run folder holds `config.json` and `sae.safetensors`. The weights are folded: inputs need no scaling, atoms have unit
norm. The file also holds a few inputs with their codes and reconstruction at the time of saving; `load` computes these
again and refuses a file whose results differ.

    model = load("runs/demo")
    model.decode(model.encode(x))
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sae.base.files import CorruptError, publish_file, publish_json, read_checked, read_json, refuse_links, sha256_of
from sae.config import ConfigError, built
from sae.models.autoencoder import Autoencoder
from sae.models.language import VARIANTS
from sae.modules.codes import make_code

assert VARIANTS  # the table's import makes every variant's code known by its name
WEIGHTS = "sae.safetensors"
CONFIG = "config.json"
CONFIG_FORMAT, FIRST_HASHED = 3, 3
OF_WEIGHTS = "weights_sha256"
TOLERANCE = 1e-3  # of the self-test: relative error in norm; another machine's float32 product differs by about 1e-6
SELF_TEST_ROWS = 8


class SelfTest(NamedTuple):
    """Difference between the loaded autoencoder and the saved one, as RMS(error) / RMS(saved)."""

    codes: float
    reconstruction: float


def save_weights(folder: Path, model: Autoencoder, probe: Tensor) -> dict[str, Any]:
    """Write `sae.safetensors` for a folded model; returns what `config.json` must record under "autoencoder".

    Args:
        folder: the run folder.
        model: folded, in float32.
        probe: inputs [n, d]; the rows whose codes are least sensitive to rounding become the self-test.
    """
    model = model.cpu().float()
    inputs, codes, reconstruction = _self_test_rows(model, probe.cpu().float())
    tensors = {
        "W_enc": model.W_enc.detach(),
        "b_enc": model.b_enc.detach(),
        "W_dec": model.dictionary.W.detach(),
        "b_dec": model.dictionary.b.detach(),
        **({} if model.W_skip is None else {"W_skip": model.W_skip.detach()}),
        **_parts(model),
        "selftest.inputs": inputs,
        "selftest.codes": codes,
        "selftest.reconstruction": reconstruction,
    }
    data = save({name: t.contiguous().clone() for name, t in tensors.items()})  # a tied encoder shares memory
    publish_file(folder / WEIGHTS, data)
    return {
        "dim": model.dim,
        "dim_out": model.dim_out,
        "width": model.width,
        "code": model.code.describe(),
        "transcodes": model.transcodes,
        "skip": model.W_skip is not None,
        "per_token_norm": model.per_token_norm,
        "stem": None if model.stem is None else model.stem.describe(),
        "head": None if model.head is None else model.head.describe(),
        "unit_atoms": model.dictionary.unit,
        "sha256": sha256_of(folder / WEIGHTS),
    }


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Autoencoder:
    """The autoencoder of a run folder, or of a hub repository with one, ready for `encode` and `decode`.

    Raises:
        ConfigError: no such folder, or a run that is not finished.
        CorruptError: the file is damaged, or the self-test fails.
    """
    folder = locate_run(path)
    return _load(folder, read_description(folder))[0].to(device)


def verify(path: str | Path) -> SelfTest:
    """Check a saved run's hash, shapes and self-test; returns the self-test's errors.

    Raises:
        ConfigError, CorruptError: as `load`.

    Example:
        >>> import sae
        >>> max(sae.verify("runs/demo")) < 1e-3
        True
    """
    folder = locate_run(path)
    description = read_description(folder)
    return _load(folder, description)[1]


def locate_run(path: str | Path) -> Path:
    """The local folder of a run; a name that is no local folder is downloaded from the hub as a repository id."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigError(f"{path}: a file; expected a run folder")
    if str(path).count("/") != 1 or str(path).startswith((".", "~", "/")):
        raise ConfigError(f"{path}: no such run folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # network libraries share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path}: no such run folder, and it cannot be read from the hub ({reason})") from error


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.json, finished or not. Of a run from before hashes were kept, this is said once.

    Raises:
        CorruptError: it is missing, damaged, or edited by hand; or a symbolic link lies in the folder.
    """
    path = folder / CONFIG
    if path.exists() or path.is_symlink():  # else it is any folder, which may be large
        refuse_links(folder)
    record, hashed = read_checked(path)
    if not isinstance(record, dict):
        raise CorruptError(f"{path}: not the record of a run")
    version = record.get("format", 1)
    if not isinstance(version, int) or version > CONFIG_FORMAT:
        raise CorruptError(f"{path}: format {version!r}, of a newer version; expected at most {CONFIG_FORMAT}")
    if not hashed:
        if version >= FIRST_HASHED:
            read_json(path, hashed=True)
        _say_unhashed(folder.absolute())
    return record


def publish_report(folder: Path, name: str, report: dict[str, Any]) -> None:
    """Leave what was measured of a finished run in its folder, such as eval.json, with the weights' SHA-256."""
    publish_json(folder / name, {**report, OF_WEIGHTS: read_description(folder).get("sha256")})


def read_report(folder: Path, name: str) -> dict[str, Any]:
    """What `publish_report` left in a run folder.

    Raises:
        CorruptError: it is missing, damaged, edited by hand, or of other weights.
    """
    record = read_config(folder)
    report = read_json(folder / name, hashed=record.get("format", 1) >= FIRST_HASHED)
    if not isinstance(report, dict):
        raise CorruptError(f"{folder / name}: {type(report).__name__}, expected an object")
    weights = (record.get("autoencoder") or {}).get("sha256")
    if report.pop(OF_WEIGHTS, weights) != weights:
        raise CorruptError(f"{folder / name}: it is of other weights than {WEIGHTS} here; restore the run from a copy")
    return report


@functools.cache
def _say_unhashed(folder: Path) -> None:
    said = "written before hashes of its files were kept, so damage to them may go unnoticed"
    print(f"sae: {folder}: {said}", file=sys.stderr, flush=True)


def read_description(folder: Path) -> dict[str, Any]:
    """The "autoencoder" part of a finished run's config.json.

    Raises:
        ConfigError: there is none; the message says how to finish the run.
        CorruptError: config.json is damaged.
    """
    if not (folder / CONFIG).is_file():
        content = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{folder}: not a run folder, it has no {CONFIG} (it holds {content})")
    record = read_config(folder)
    if not isinstance(record.get("autoencoder"), (dict, type(None))):
        raise CorruptError(f"{folder / CONFIG}: not the record of a run")
    description = record.get("autoencoder")
    if description is None:
        raise ConfigError(f"{folder}: this run is not finished; finish it with: sae train --resume --out {folder}")
    return description


def self_test(model: Autoencoder, tensors: dict[str, Tensor]) -> SelfTest:
    """Compute the saved inputs' codes and reconstruction again and compare."""
    with torch.no_grad():
        codes, reconstruction = model(tensors["selftest.inputs"])
        dense = codes.to_dense()
    return SelfTest(
        _relative(dense, tensors["selftest.codes"]), _relative(reconstruction, tensors["selftest.reconstruction"])
    )


def _load(folder: Path, description: dict[str, Any]) -> tuple[Autoencoder, SelfTest]:
    """The autoencoder and the errors of its self-test; CorruptError where that fails."""
    model, tensors = _read(folder, description)
    distance = self_test(model, tensors)
    # not max(distance), which can hide a NaN
    if not all(error <= TOLERANCE for error in distance):
        raise CorruptError(
            f"{folder / WEIGHTS}: the self-test fails (relative error of codes {distance.codes:.2g}, of reconstruction "
            f"{distance.reconstruction:.2g}, allowed {TOLERANCE}): this is not the autoencoder that was saved"
        )
    if sha256_of(folder / WEIGHTS) != description.get("sha256"):
        raise CorruptError(
            f"{folder / WEIGHTS}: its SHA-256 is not the one {CONFIG} records: the file was changed or damaged; "
            "restore it from a copy"
        )
    return model, distance


def _read(folder: Path, description: dict[str, Any]) -> tuple[Autoencoder, dict[str, Tensor]]:
    path = folder / WEIGHTS
    model = _described(folder, description)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{path}: cannot be read ({error})") from error
    rows = max(1, len(tensors.get("selftest.inputs", ())))
    shapes = {
        "W_enc": tuple(model.W_enc.shape),
        "b_enc": tuple(model.b_enc.shape),
        "W_dec": tuple(model.dictionary.W.shape),
        "b_dec": tuple(model.dictionary.b.shape),
        **({"W_skip": tuple(model.W_skip.shape)} if model.W_skip is not None else {}),
        **{name: tuple(tensor.shape) for name, tensor in _parts(model).items()},
        "selftest.inputs": (rows, model.dim),
        "selftest.codes": (rows * model.positions, model.width),
        "selftest.reconstruction": (rows, model.dim_out),
    }
    for name, expected in shapes.items():
        if name not in tensors:
            raise CorruptError(f"{path}: tensor {name} is missing")
        if tensors[name].shape != expected or tensors[name].dtype != torch.float32:
            raise CorruptError(
                f"{path}: {name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, expected float32 {expected} "
                f"by {CONFIG}"
            )
    for name in tensors:
        if name not in shapes:
            raise CorruptError(f"{path}: tensor {name} is not part of the autoencoder that {CONFIG} describes")
    if not model.transcodes and model.dim_out != model.dim:
        widths = f"dim {model.dim} and dim_out {model.dim_out}"
        raise CorruptError(f"{folder / CONFIG}: autoencoder: {widths} differ, but it is not a transcoder")
    if model.code.tied and not tensors["W_enc"].equal(tensors["W_dec"]):
        raise CorruptError(f"{path}: W_enc and W_dec differ, but this code ties them")
    names = {"W_dec": "dictionary.W", "b_dec": "dictionary.b"}
    state = {names.get(n, n): t for n, t in tensors.items() if not n.startswith("selftest.")}
    state["dictionary.tokens_since_fired"] = torch.zeros(model.width, dtype=torch.int64)
    model.load_state_dict(state, assign=True)
    if model.code.tied:
        model.W_enc = model.dictionary.W
    return model.eval(), tensors


def _described(folder: Path, description: dict[str, Any]) -> Autoencoder:
    """An autoencoder as described, on the meta device."""
    try:
        dim, width = int(description["dim"]), int(description["width"])
        dim_out = int(description.get("dim_out", dim))
        switches: dict[str, Any] = {
            name: bool(description.get(name, False)) for name in ("transcodes", "skip", "per_token_norm")
        }
        if int(description["code"].get("width", width)) != width:
            raise ValueError(f"the code has another width than {width}")
        with torch.device("meta"):
            model = Autoencoder(
                dim,
                width,
                make_code(description["code"]),
                dim_out=dim_out,
                **_image_parts(description),
                unit_atoms=bool(description.get("unit_atoms", True)),
                **switches,
            )
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CorruptError(f"{folder / CONFIG}: autoencoder: cannot be read ({error!r})") from error
    return model


def _image_parts(description: dict[str, Any]) -> dict[str, Any]:
    """Stem and head, where there are any; only then their packages are needed."""
    if description.get("stem") is None and description.get("head") is None:
        return {}
    from sae.models.heads import HEADS
    from sae.models.stems import STEMS

    tables = {"stem": STEMS, "head": HEADS}
    described = {part: description.get(part) for part in tables}
    return {part: built(f"--{part}", tables[part], d) for part, d in described.items() if d is not None}


def _parts(model: Autoencoder) -> dict[str, Tensor]:
    """Tensors of the code, the stem and the head."""
    parts = {"code": model.code, "stem": model.stem, "head": model.head}
    return {f"{n}.{name}": t for n, part in parts.items() if part is not None for name, t in part.state_dict().items()}


def _self_test_rows(model: Autoencoder, probe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Up to 8 probe rows whose active latents survive a change of 1e-3, so that rounding cannot move them."""
    noise = torch.randn(probe.shape, generator=torch.Generator().manual_seed(0))
    shaken = probe * (1 + 1e-3 * noise)
    with torch.no_grad():
        same = (model.encode(probe).to_dense() != 0) == (model.encode(shaken).to_dense() != 0)
        same = same.view(len(probe), -1).all(1)
        inputs = probe[same.long().argsort(descending=True, stable=True)[:SELF_TEST_ROWS]]
        codes, reconstruction = model(inputs)
    return inputs, codes.to_dense(), reconstruction


def _relative(got: Tensor, saved: Tensor) -> float:
    return ((got - saved).norm() / saved.norm().clamp_min(1e-12)).item()
