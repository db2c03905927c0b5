"""How faithful an embedding is to its neighbourhoods, and how well its clusters agree with classes.

neighbourhood_trust(images, codes)
clusters(codes, labels).nmi
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.manifold import trustworthiness
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sae.config import ConfigError
from sae.evaluation.arrays import labels, matrix, table


def neighbourhood_trust(
    inputs: Any, embedded: Any, *, neighbours: int = 12, sample: int | None = 2000, seed: int = 0
) -> float:
    """Trustworthiness (Venna and Kaski 2001, doi:10.1007/3-540-44668-0_68), by Euclidean distance, in [0, 1].

    1 less a penalty for neighbours in the embedding that are none in the input, by their rank there.

    Args:
        inputs: [n, d].
        embedded: [n, k].
        neighbours: size of a neighbourhood, below half of the points.
        sample: points to draw, since memory and time grow with their square; None takes all of them.
        seed: of the draw.

    Raises:
        ConfigError: shapes that do not fit, or too few points for the neighbourhoods.
    """
    x, z = table(inputs, "inputs"), table(embedded, "embedded")
    if len(x) != len(z):
        raise ConfigError(f"embedded: expected one for each of the {len(x)} inputs, got {len(z)}")
    if sample is not None and sample < len(x):
        rows = np.random.default_rng(seed).choice(len(x), sample, replace=False)
        x, z = x[rows], z[rows]
    if not 1 <= neighbours < len(x) / 2:
        raise ConfigError(f"neighbours {neighbours}: expected at least 1 and below half of the {len(x)} points")
    return float(trustworthiness(x, z, n_neighbors=neighbours))


class Clusters(NamedTuple):
    """Agreement of k-means clusters with classes; neither measure depends on how clusters are numbered."""

    nmi: float
    """Mutual information over the arithmetic mean of the two entropies, in [0, 1]: scikit-learn's default, NMI_sum of
    Vinh, Epps and Bailey 2010 (JMLR 11). Strehl and Ghosh 2002 divide by the geometric mean."""
    ari: float
    """Share of pairs on which both agree, adjusted: 1 alike, 0 on average by chance (Hubert and Arabie 1985)."""


def clusters(codes: Any, classes: Any, *, count: int | None = None, starts: int = 10, seed: int = 0) -> Clusters:
    """k-means (Lloyd 1982; k-means++ starts, Arthur and Vassilvitskii 2007) compared with classes.

    Args:
        codes: [n, F], sparse or dense, not rescaled: a latent counts by its variance.
        classes: labels [n] of any type.
        count: clusters; the number of classes by default.
        starts: of which the one with the smallest squared distances is taken.
        seed: of the starts.

    Raises:
        ConfigError: shapes that do not fit, or more clusters than samples.
    """
    x = matrix(codes, "codes")
    truth = labels(classes, x.shape[0], "classes")
    count = len(np.unique(truth)) if count is None else count
    if not 1 <= count <= x.shape[0]:
        raise ConfigError(f"count {count}: expected 1 to the {x.shape[0]} samples")
    assigned = KMeans(count, random_state=seed).set_params(n_init=starts).fit_predict(x)
    return Clusters(float(normalized_mutual_info_score(truth, assigned)), float(adjusted_rand_score(truth, assigned)))
