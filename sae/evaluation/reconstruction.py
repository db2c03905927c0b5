"""How well activations are reconstructed, and by how many latents: FVU, L0, cosine, norms, dead latents, densities.

Definitions (x what is to be reconstructed, the input or a transcoder's target, x̂ its reconstruction, mu the mean of x
over the whole evaluation set, sums over tokens):

    FVU = Σ||x - x̂||² / Σ||x - mu||²        cosine = mean cos(x, x̂)        norm ratio = mean ||x̂|| / ||x||, x ≠ 0
    reconstruction bias = Σ||x̂||² / Σ x·x̂    L0 = mean number of non-zero codes

A latent fires where its code is not zero, of whatever sign.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae.config import SAEConfig
from sae.evaluation.baselines import PCA
from sae.evaluation.bootstrap import GroupSums, Interval, ratio
from sae.evaluation.controls import MEAN, Control, Encoded, pca_name
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import make_code

DENSITY_FLOOR = -6  # lowest edge of the density histogram, log10
CHUNK = 8192  # rows encoded at a time


def fvu_of(error: str, sums: Mapping[str, Tensor]) -> Tensor:
    """FVU from the sums of `fvu_sums`; `error` names the sum that the variance divides.

    NaN where all x are equal up to float32 rounding (BOS tokens of one model are): there is no variance to explain.
    """
    variance = sums["square"] - sums["offset"].pow(2).sum(-1) / sums["count"]
    return torch.where(variance > 1e-9 * sums["norm_square"], sums[error] / variance, torch.nan)


def fvu_sums(
    x: Tensor, x_hat: Tensor | None = None, centre: Tensor | None = None, *, by_row: bool = False
) -> dict[str, Tensor]:
    """Sums for `fvu_of`: "count" n, "square" Σ||x-c||², "offset" Σ(x-c), "norm_square" Σ||x||², "error" Σ||x-x̂||².

    Sums of batches can be added if they have the same centre.

    Args:
        x: the values to be reconstructed [n, d].
        x_hat: reconstructions [n, d]; None leaves "error" out.
        centre: c [d], any fixed point near the mean of x, so that the sums stay accurate; None is these rows' mean.
        by_row: return every row's summands, [n] and [n, d], instead of their sums.

    Returns:
        float64, on the device of x.
    """
    wide = x.detach().double()
    offset = wide - (wide.mean(0) if centre is None else centre.to(wide))
    rows = {
        "count": wide.new_ones(len(wide)),
        "square": offset.square().sum(1),
        "offset": offset,
        "norm_square": wide.square().sum(1),
    }
    if x_hat is not None:
        rows["error"] = (wide - x_hat.detach().to(wide)).square().sum(1)
    return rows if by_row else {name: row.sum(0) for name, row in rows.items()}


class Parts(NamedTuple):
    """What one process adds to a `Reconstruction`."""

    sums: dict[str, Tensor]
    fired: Tensor
    """Rows in which each latent fired, int64 [F]."""
    first: Tensor
    """Order number of the first document in which it fired, int64 [F]."""
    last: Tensor
    """That of the last one, int64 [F]."""
    total: Tensor
    """Sum of the targets, float64 [d_out]."""


class Reconstruction:
    """Sums about x and x̂, document by document.

    Args:
        model: the saved autoencoder.
        centre: any fixed point [d] near the data's mean; sums are taken around it so that they stay accurate.
        pca: a fitted baseline, or None.
        controls: other ways to reconstruct the same rows, measured beside it; None also leaves out the sums from
            which `control_sums` has the mean and PCA.
    """

    def __init__(
        self, model: Autoencoder, centre: Tensor, pca: PCA | None, controls: Sequence[Control] | None = None
    ) -> None:
        self.model, self.centre, self.pca, self.controls = model, centre.double().cpu(), pca, controls
        self.sums = GroupSums()
        self.fired = torch.zeros(model.width, dtype=torch.int64)
        # order number of the first and last document in which a latent fired
        self.first = torch.full((model.width,), torch.iinfo(torch.int64).max)
        self.last = torch.full((model.width,), -1)
        self.total = torch.zeros(model.dim_out, dtype=torch.float64)
        self.tokens = 0

    @torch.no_grad()
    def add(self, x: Tensor, target: Tensor, document: Tensor) -> None:
        """Add inputs [n, d] and their targets [n, d_out] of the documents int64 [n]."""
        for rows in zip(x.float().split(CHUNK), target.float().split(CHUNK), document.split(CHUNK), strict=True):
            self._add(*rows)

    def see(self, document: Tensor) -> None:
        """Count rows of the documents int64 [n] that another process adds, in the order of all processes' rows."""
        self.sums.see(document)
        self.tokens += len(document)

    def parts(self) -> Parts:
        """What this process has added, for `merge`."""
        return Parts(self.sums.sums, self.fired, self.first, self.last, self.total)

    def merge(self, parts: Parts) -> None:
        """Add the parts of another process, whose rows this one has seen."""
        self.sums.merge(parts.sums)
        self.fired += parts.fired
        self.first = torch.minimum(self.first, parts.first)
        self.last = torch.maximum(self.last, parts.last)
        self.total += parts.total

    def _add(self, x: Tensor, target: Tensor, document: Tensor) -> None:
        codes, x_hat = self.model(x)
        wide, wide_hat = target.double(), x_hat.double()
        norms = wide.norm(dim=1)
        values = {
            **fvu_sums(wide, wide_hat, self.centre, by_row=True),
            "l0": codes.l0().view(len(x), -1).sum(1),
            "cosine": cosine_similarity(wide, wide_hat, dim=1),
            "norm_ratio": torch.where(norms > 0, wide_hat.norm(dim=1) / norms, 0.0),
            "with_norm": norms > 0,
            "hat_square": wide_hat.pow(2).sum(1),
            "dot": (wide * wide_hat).sum(1),
        }
        if self.pca is not None:
            of_pca = self.pca.energies(wide) if self.controls is None else self.pca.prefixes(wide)
            values |= {f"pca_{name}": numbers for name, numbers in of_pca._asdict().items()}
        if self.controls is not None:
            values |= self._control_values(Encoded(x, target, codes))
        order = self.sums.add(document, values)
        fired = codes.values != 0
        latents = codes.indices[fired].cpu()
        when = order[codes.rows()[fired].cpu() // self.model.positions]
        self.fired += torch.bincount(latents, minlength=self.model.width)
        self.first.scatter_reduce_(0, latents, when, "amin")
        self.last.scatter_reduce_(0, latents, when, "amax")
        self.total += wide.sum(0).cpu()
        self.tokens += len(x)

    def _control_values(self, rows: Encoded) -> dict[str, Tensor]:
        wide = rows.target.double()
        values = {"unit": torch.nn.functional.normalize(wide, dim=1)}
        for control in self.controls or ():
            attempt = control.attempt(rows)
            other = attempt.reconstruction.double()
            numbers = {
                "error": (wide - other).square().sum(1),
                "cosine": cosine_similarity(wide, other, dim=1),
                "hat_square": other.square().sum(1),
                "dot": (wide * other).sum(1),
                "l0": attempt.l0,
            }
            values |= {f"{control.name}.{name}": number for name, number in numbers.items()}
        return values

    def control_sums(self, components: Collection[int] = ()) -> dict[str, dict[str, Tensor]]:
        """Every control's sums a group of documents, [groups]: "error", "cosine", "hat_square", "dot", "l0".

        Args:
            components: numbers of principal components with which PCA is a control.

        Returns:
            "the mean", `pca_name` of all `components`, and the controls that were given.
        """
        sums, count = self.sums.sums, self.sums.sums["count"]
        shift = self.mean - self.centre
        controls = {
            MEAN: {
                "error": sums["square"] - 2 * sums["offset"] @ shift + count * shift.square().sum(),
                "cosine": sums["unit"] @ torch.nn.functional.normalize(self.mean, dim=0),
                "hat_square": count * self.mean.square().sum(),
                "dot": (sums["offset"] + count[:, None] * self.centre) @ self.mean,
                "l0": torch.zeros_like(count),
            }
        }
        for m in components:
            of_pca = {name: sums[f"pca_{name}"][:, m - 1] for name in ("cosine", "hat_square", "dot")}
            controls[pca_name(m)] = {"error": self.pca_left(m), **of_pca, "l0": m * count}
        for control in self.controls or ():
            names = ("error", "cosine", "hat_square", "dot", "l0")
            controls[control.name] = {name: sums[f"{control.name}.{name}"] for name in names}
        return controls

    @property
    def mean(self) -> Tensor:
        """Mean of the rows so far, float64 [d]."""
        return self.total / max(self.tokens, 1)

    def metrics(self, *, resamples: int, seed: int) -> dict[str, Any]:
        """Every metric at the top of this file as an `Interval`."""

        def interval(metric: Any) -> Interval | None:
            return self.sums.interval(metric, resamples=resamples, seed=seed)

        return {
            "tokens": self.tokens,
            "documents": self.sums.documents,
            "fvu": interval(lambda sums: fvu_of("error", sums)),
            "l0": interval(ratio("l0", "count")),
            "dead": self.dead(),
            "cosine": interval(ratio("cosine", "count")),
            "norm_ratio": interval(ratio("norm_ratio", "with_norm")),
            "reconstruction_bias": interval(ratio("hat_square", "dot")),
            "relative_error": interval(ratio("error", "norm_square")),
        }

    def baselines(self, *, k: int, resamples: int, seed: int) -> dict[str, Any]:
        """FVU of PCA with k components and of the training mean; the components for the autoencoder's FVU."""
        draws = {"resamples": resamples, "seed": seed}
        return {
            "pca_fvu": self.pca_fvu(k, **draws),
            "pca_components": k,
            "pca_components_for_same_fvu": self.components_for_same_fvu(),
            "mean_fvu": self.pca_fvu(0, **draws),
        }

    def pca_fvu(self, components: int, *, resamples: int, seed: int) -> Interval | None:
        """FVU of PCA with some components; with none, of the training mean."""
        left = {"left": self.pca_left(components)}
        return self.sums.interval(lambda sums: fvu_of("left", sums), left, resamples=resamples, seed=seed)

    def pca_left(self, components: int) -> Tensor:
        """Squared error of PCA with some components, sums a group of documents [groups]."""
        return self.sums.sums["pca_square"] - self.sums.sums["pca_energy"][:, :components].sum(1)

    def components_for_same_fvu(self) -> int | None:
        """The fewest components with which PCA reaches the autoencoder's FVU; None where all of them do not."""
        full = {name: s.sum(0, keepdim=True) for name, s in self.sums.sums.items()}
        # the first entry is the mean alone, without a component
        explained = torch.nn.functional.pad(full["pca_energy"].cumsum(1), (1, 0))
        curve = fvu_of("left", full | {"left": full["pca_square"][:, None] - explained})
        reached = (curve[0] <= fvu_of("error", full).item()).nonzero()
        return int(reached[0]) if len(reached) else None

    def dead(self) -> Interval:
        """Share of latents that never fired in the tokens seen.

        Every resample misses some latents that fire in the whole set, so the interval is the jackknife's (Efron &
        Tibshirani 1993, ch. 11): without one group of documents, the latents that fire in that group alone are dead. A
        single group gives no bounds (NaN).
        """
        dead = (self.fired == 0).double().mean().item()
        without = self.dead_without_groups()
        if len(without) < 2:
            return Interval(dead, math.nan, math.nan)
        groups = len(without)
        error = ((groups - 1) / groups * (without - without.mean()).pow(2).sum()).sqrt().item()
        return Interval(dead, max(0.0, dead - 1.96 * error), min(1.0, dead + 1.96 * error))

    def dead_without_groups(self) -> Tensor:
        """Share of latents that never fired in the tokens seen but for those of each group, float64 [groups]."""
        single = (self.fired > 0) & (self.sums.group(self.first) == self.sums.group(self.last))
        killed = torch.bincount(self.sums.group(self.first[single]), minlength=self.sums.groups)
        return ((self.fired == 0).sum() + killed).double() / len(self.fired)

    def densities(self) -> dict[str, Any]:
        """Histogram of log10(firing rate): half-decade bins from 1e-6 to 1, and how many latents never fired.

        Rates are shares of rows of codes; a sample has as many rows as the model has positions. Rates below 1e-6 count
        in the first bin.
        """
        rows = max(self.tokens * self.model.positions, 1)
        rate = (self.fired[self.fired > 0].double() / rows).log10()
        bins = 2 * -DENSITY_FLOOR
        edges = torch.linspace(DENSITY_FLOOR, 0, bins + 1, dtype=torch.float64)
        counts = torch.histc(rate.clamp(min=DENSITY_FLOOR), bins=bins, min=DENSITY_FLOOR, max=0)
        return {
            "log10_edges": edges.tolist(),
            "latents": counts.long().tolist(),
            "never": int((self.fired == 0).sum()),
        }


def training_form(model: Autoencoder, record: dict[str, Any], config: SAEConfig) -> Autoencoder | None:
    """The autoencoder with the code it was trained with, where another was saved in its place; else None.

    Args:
        model: as it was saved.
        record: the run's config.json.
        config: its settings.
    """
    code = make_code(record["training"]["form"])
    # whitening is folded latent by latent: a selection among them would be another one
    return model.like(code) if code.settles and config.normalise != "whiten" else None
