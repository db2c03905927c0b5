"""What follows from an atom's weights alone: the tokens it makes likely, and the atoms nearest to it.

The logit lens (nostalgebraist 2020) applies the unembedding to an atom w directly: logits = U (γ ⊙ w), with w first
centred where the model's final norm centres (LayerNorm). γ is the final norm's gain. Left out are all layers between
the atom's site and the end, the norm's division by the size of the residual stream (which depends on the whole stream
and is one factor for all tokens), the biases of norm and head, and a head's soft cap.

    lens = Lens("runs/demo")
    lens.logits(17)                              # ([(token, value), ...], [...])
    lens.neighbours(17)                          # [(latent, cosine), ...]

Results are kept in the run's `features.lens.sqlite`, under the hash of the weights.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sae.features.store.database import Blobs, open_read_only, write_in_place
from sae.features.store.keys import FeatureError
from sae.models.saved import load
from sae.runs.base import called, kind_of

if TYPE_CHECKING:
    from sae.harvest.language_model import LanguageModel
    from sae.runs.text import Run

FILE = "features.lens.sqlite"
REMEDY = "it can be deleted: results are computed again"
TABLES = frozenset({"logits", "neighbours", "weights"})
TOKENS, NEIGHBOURS = 20, 10
CHEAP = 5e11
"""Multiplications up to which all latents' results are computed ahead: some ten seconds on two cores."""
_CHUNK = 1 << 26  # numbers in one block of scores
Pairs = list[tuple[int, float]]


class UndefinedError(FeatureError):
    """These atoms have no logits, because no unembedding reads them; the message says why."""


class Lens:
    """Logits and neighbours of one run's latents, computed when first asked for."""

    def __init__(self, run_folder: str | Path, weights: str) -> None:
        self.folder, self.weights = Path(run_folder).expanduser(), weights
        self.path = self.folder / FILE
        self._lock = threading.RLock()
        self._unembedding: Tensor | None = None
        self._atoms: Tensor | None = None

    def logits(self, latent: int) -> tuple[Pairs, Pairs]:
        """The tokens with the highest and the lowest logits of a latent's atom, 20 each, best first.

        Raises:
            UndefinedError: the atoms are not in the residual stream of a model with an unembedding.
        """
        with self._lock:
            data = self._cached("logits", latent)
            if data is None:
                data = self._logits(torch.tensor([latent]), self.unembedding())[0].tobytes()
                self._keep("logits", [(latent, data)])
        pairs = _pairs(data)
        return pairs[:TOKENS], pairs[TOKENS:]

    def neighbours(self, latent: int) -> Pairs:
        """The latents with the highest cosine between their atoms and this one's, at most 10."""
        with self._lock:
            data = self._cached("neighbours", latent)
            if data is None:
                cosines = self.atoms() @ self.atoms()[latent]
                cosines[latent] = -torch.inf
                best = cosines.topk(min(NEIGHBOURS, len(cosines) - 1))
                data = _packed(best.indices[None], best.values[None])[0].tobytes()
                self._keep("neighbours", [(latent, data)])
        return _pairs(data)

    def all_logits(self) -> np.ndarray | None:
        """Every latent's 20 highest, then 20 lowest tokens, int32 ids [F, 40]; -1 or None where not yet computed."""
        with self._lock:
            rows = self._all("logits")
        if not rows:
            return None
        ids = np.full((max(rows) + 1, 2 * TOKENS), -1, np.int32)
        for latent, data in rows.items():
            ids[latent, : len(data) // 8] = np.frombuffer(data, "<i4", len(data) // 8)
        return ids

    def prepare_logits(self, lm: LanguageModel) -> None:
        """Compute all latents' logits with a loaded language model, where that is cheap and not yet done."""
        width, dim = self.atoms().shape
        try:
            unembedding = next_token_unembedding(lm, dim)
        except UndefinedError:
            return  # whoever asks for a latent's logits gets the reason
        if width * unembedding.numel() > CHEAP or len(self._all("logits")) == width:
            return
        for latents in torch.arange(width).split(max(1, _CHUNK // len(unembedding))):
            packed = self._logits(latents, unembedding)
            self._keep("logits", ((i, row.tobytes()) for i, row in zip(latents.tolist(), packed, strict=True)))

    def nearest_cosines(self) -> np.ndarray | None:
        """Cosine of every atom to its nearest other one, float32 [F]; None where that is not cheap."""
        atoms = self.atoms()
        width = len(atoms)
        if float(width) * width * atoms.shape[1] > CHEAP or width < 2:
            return None
        best = []
        for rows in torch.arange(width).split(max(1, _CHUNK // width)):
            cosines = atoms[rows] @ atoms.T
            cosines[torch.arange(len(rows)), rows] = -torch.inf
            best.append(cosines.amax(1))
        return torch.cat(best).numpy()

    def atoms(self) -> Tensor:
        """All atoms at unit length, float32 [F, d_out]; a zero atom stays zero."""
        if self._atoms is None:
            self._atoms = nn.functional.normalize(load(self.folder).dictionary.W.detach().float(), dim=1)
        return self._atoms

    def unembedding(self) -> Tensor:
        """`unembedding_of` the run's language model, which is loaded once."""
        if self._unembedding is None:
            kind = kind_of(self.folder)
            if kind != "language":
                raise UndefinedError(f"logits are not defined here: no language model belongs to {called(kind)}")
            run = open_run(self.folder)
            lm = run.load_language_model(torch.device("cpu"))
            self._unembedding = next_token_unembedding(lm, run.model.dim_out)
        return self._unembedding

    def _logits(self, latents: Tensor, unembedding: Tensor) -> np.ndarray:
        scores = self.atoms()[latents] @ unembedding.T
        count = min(TOKENS, scores.shape[1])
        top, bottom = scores.topk(count, dim=1), scores.topk(count, dim=1, largest=False)
        return _packed(torch.cat([top.indices, bottom.indices], 1), torch.cat([top.values, bottom.values], 1))

    def _cached(self, table: str, latent: int) -> bytes | None:
        return self._all(table, latent).get(latent)

    def _all(self, table: str, latent: int | None = None) -> dict[int, bytes]:
        if not self.path.exists():
            return {}
        with contextlib.closing(open_read_only(self.path, TABLES, recover=True, remedy=REMEDY)) as connection:
            blobs = Blobs(connection, self.path, REMEDY)
            if _weights_of(blobs) != self.weights:
                return {}
            if latent is None:
                return dict(blobs.all(table))
            data = blobs.get(table, latent)
            return {} if data is None else {latent: data}

    def _keep(self, table: str, rows: Iterable[tuple[int, bytes]]) -> None:
        """Save results; in a folder that cannot be written they are computed again another time."""
        if not os.access(self.folder, os.W_OK):
            return
        with write_in_place(self.path, REMEDY, TABLES) as blobs:
            execute = blobs.connection.execute
            if _weights_of(blobs) != self.weights:
                for name in ("logits", "neighbours", "weights"):
                    execute(f"DROP TABLE IF EXISTS {name}")
                for name in ("logits", "neighbours"):
                    blobs.create(name)
                execute("CREATE TABLE weights (sha256 TEXT)")
                execute("INSERT INTO weights VALUES (?)", (self.weights,))
            blobs.put(table, rows)


def open_run(folder: Path) -> Run:
    """`sae.runs.text.open_run`, imported late: it imports packages that runs on images do without."""
    from sae.runs import text as runs

    return runs.open_run(folder)


def next_token_unembedding(lm: LanguageModel, width: int) -> Tensor:
    """`unembedding_of` a model that predicts next tokens.

    Raises:
        UndefinedError: it predicts none; or as `unembedding_of`.
    """
    if lm.traits.no_next_token is not None:
        raise UndefinedError(
            f"logits are not defined here: the model predicts no next token ({lm.traits.no_next_token})"
        )
    return unembedding_of(lm.model, width)


def unembedding_of(model: nn.Module, width: int) -> Tensor:
    """U diag(γ), float32 [V, d], centred over d where the final norm centres: the lens is its product with an atom.

    Raises:
        UndefinedError: the model has no head, or one that does not read vectors of `width`.
    """
    from sae.harvest.blocks import SiteError, find_blocks  # late, like `open_run`

    try:
        blocks = find_blocks(model)
    except SiteError as error:
        raise UndefinedError(f"logits are not defined here: {error}") from error
    if blocks.head is None:
        raise UndefinedError("logits are not defined here: the model has no output head")
    head: Any = model.get_submodule(blocks.head)
    weight = head.weight.detach().float().cpu()
    if weight.shape[1] != width or blocks.width != width:
        raise UndefinedError(
            f"logits are not defined here: the head reads {weight.shape[1]} numbers, an atom has {width}"
        )
    if blocks.final_norm is None:
        return weight
    norm = model.get_submodule(blocks.final_norm)
    gain, centred = _linear_part(norm, width)
    weight = weight * gain
    return weight - weight.mean(1, keepdim=True) if centred else weight


def _linear_part(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """A norm's gain [d], and whether it subtracts the mean, from its outputs for vectors of 1 and of alternating ±1."""
    parameter = next(norm.parameters(), torch.zeros(0))
    signs = torch.ones(width, dtype=parameter.dtype, device=parameter.device)
    signs[1::2] = -1
    ones = signs.abs()
    with torch.no_grad():
        # odd parts, so that a bias drops out
        gain = (norm(signs[None]) - norm(-signs[None]))[0] / 2 * signs
        level = (norm(ones[None]) - norm(-ones[None]))[0] / 2
    return gain.float().cpu(), bool(level.float().norm() < 0.1 * gain.float().norm())


def _weights_of(blobs: Blobs) -> str | None:
    """The hash of the weights to which a file's results belong; None for a new file."""
    if not list(blobs.query("SELECT 1 FROM sqlite_schema WHERE name = 'weights'")):
        return None
    return next((row[0] for row in blobs.query("SELECT sha256 FROM weights")), None)


def _packed(ids: Tensor, values: Tensor) -> np.ndarray:
    """Ids and values [n, m] -> rows of bytes [n, 8 m]: ids int32, then values float32."""
    parts = [ids.numpy().astype("<i4").view(np.uint8), values.numpy().astype("<f4").view(np.uint8)]
    return np.concatenate([np.ascontiguousarray(p) for p in parts], 1)


def _pairs(data: bytes) -> Pairs:
    count = len(data) // 8
    ids, values = np.frombuffer(data, "<i4", count), np.frombuffer(data, "<f4", count, 4 * count)
    return list(zip(ids.tolist(), values.tolist(), strict=True))
