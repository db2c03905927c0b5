"""What the first forward pass over the data decides: the norms over which tokens are sinks, and the precision of rows.

measured = measure(rows, trained, max_norm=10.0, bounded=True)
measured.norm_limits["resid_post.9"], measured.precision
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sae.harvest.kinds import ORDINARY, with_sinks
from sae.harvest.precision import Choice, Kept, choose_precision
from sae.harvest.rows import Rows

PERCENTILES = (1, 25, 50, 75, 99, 100)


class FirstPass(NamedTuple):
    """What the first forward pass over the data shows."""

    norm_limits: dict[str, float]
    """Site name -> the norm over which a token counts as a sink; empty with `max_norm` 0."""
    norm_percentiles: dict[str, list[float]]
    """Site name -> norms of ordinary tokens at `PERCENTILES`, sinks included."""
    precision: Choice
    """The precision in which activations should wait."""


def measure(rows: Rows, trained: Callable[[Tensor], Tensor], *, max_norm: float, bounded: bool) -> FirstPass:
    """Norms and precision of the rows of a pass.

    Args:
        rows: with kinds, sinks not told apart yet.
        trained: which kinds int8 [n] are trained on, bool [n].
        max_norm: a token is a sink over this many times the median norm of ordinary ones; 0 for none.
        bounded: whether the limit holds for every token that is trained on.
    """
    ordinary = rows.kind == ORDINARY
    limits: dict[str, float] = {}
    percentiles: dict[str, list[float]] = {}
    for name, a in rows.activations.items():
        norms = a[ordinary.to(a.device)].float().norm(dim=1).cpu()
        # not torch.quantile, which is limited to 2^24 values
        percentiles[name] = np.percentile(norms.numpy(), PERCENTILES).tolist()
        if max_norm:
            limits[name] = max_norm * norms.median().item()
    keep = trained(with_sinks(rows.kind, rows.activations, limits))
    bounds = limits if bounded else {}
    kept = {name: Kept(a[keep.to(a.device)], bounds.get(name)) for name, a in rows.activations.items()}
    return FirstPass(limits, percentiles, choose_precision(kept))
