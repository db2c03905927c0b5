"""Every measure of a table of codes and factors at once, and the controls it is read beside.

    scores = disentanglement(codes, factors)
    for name, (codes, factors) in controls(factors).items(): ...

Latents of an overcomplete sparse code that each mean one thing still share factors: their MIG and completeness are near
zero by construction. Lead with disentanglement and modularity, which ask what a latent means, on live latents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae.book.measures.disentanglement.arrays import Array, checked, live_latents
from sae.book.measures.disentanglement.dci import Trees, dci
from sae.book.measures.disentanglement.information import (
    Information,
    Protocol,
    mig_of,
    modularity_of,
    mutual_information,
)
from sae.book.measures.disentanglement.irs import irs
from sae.evaluation.arrays import to_numpy


class Disentanglement(NamedTuple):
    """The scores of one code; all but `informativeness` are of the latents that vary, and 0 where none does."""

    disentanglement: float
    """DCI's D: a latent serves one factor."""
    completeness: float
    """DCI's C: a factor is served by one latent."""
    informativeness: float
    """DCI's I: mean accuracy over factors on samples held out."""
    modularity: float
    """A latent shares information with one factor."""
    mig: float
    """A factor's information is in one latent."""
    irs: float
    """A latent keeps still once its factor is set."""
    live: int
    """Number of latents that vary."""
    importance: np.ndarray
    """DCI's, float64 [L, K]."""
    information: Information
    """Mutual information [L, K], nats, and what MIG divides it by."""


def disentanglement(
    codes: Array,
    factors: Array,
    *,
    protocol: Protocol = "locatello2019",
    log_variances: Array | None = None,
    trees: Trees = "boosted",
    live: bool = True,
    seed: int = 0,
) -> Disentanglement:
    """Score codes [n, L] against factors int64 [n, K].

    Args:
        codes: means, where the code is random.
        factors: the index of every factor's value.
        protocol: of MIG and modularity; see `mutual_information`.
        log_variances: [n, L], for chen2018.
        trees: of DCI; see `dci`.
        live: drop latents that never vary from modularity and C; False counts each as 0, and in C's base.
        seed: of what is drawn.

    Raises:
        ValueError: as `dci` and `mutual_information`.
    """
    z, _ = checked(codes, factors)
    lives = live_latents(z)
    information = mutual_information(z, factors, protocol=protocol, log_variances=log_variances, seed=seed)
    balance = dci(z, factors, trees=trees, live=live, seed=seed)
    return Disentanglement(
        disentanglement=balance.disentanglement,
        completeness=balance.completeness,
        informativeness=balance.informativeness,
        modularity=modularity_of(information.matrix[lives] if live else information.matrix),
        mig=mig_of(*information),
        irs=irs(z, factors),
        live=int(lives.sum()),
        importance=balance.importance,
        information=information,
    )


class Control(NamedTuple):
    """A code whose scores are known."""

    codes: np.ndarray
    """[n, L]."""
    factors: np.ndarray
    """int64 [n, K]."""


def controls(codes: Array, factors: Array, *, seed: int = 0) -> dict[str, Control]:
    """The ceiling and the floor of every score, from the same samples.

    "true_factors" has the factors themselves as codes, each on its own latent: all scores are near 1, but a factor of
    V > 20 values gives MIG ln 20 / ln V at most under locatello2019. "shuffled_labels" has the given codes with other
    samples' factors: D, C and MIG are near 0 and informativeness at chance. Modularity and IRS, each held against its
    own best factor, stay above 0 (modularity .35 for 3 factors of 4 values), and modularity more so where factors
    differ in their number of values, the bias of I growing with it. Read those two beside their floor.
    """
    z, v = to_numpy(codes), to_numpy(factors)
    order = np.random.default_rng(seed).permutation(len(v))
    return {"true_factors": Control(v.astype(np.float64), v), "shuffled_labels": Control(z, v[order])}
