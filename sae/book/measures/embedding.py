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

NEIGHBOURS = 12  # in a neighbourhood
SAMPLE = 2000  # points of which neighbourhoods are taken: memory and time grow with their square
STARTS = 10  # of k-means, of which the one with the smallest squared distances is taken


def neighbourhood_trust(inputs: Any, embedded: Any) -> float:
    """Trustworthiness (Venna and Kaski 2001, doi:10.1007/3-540-44668-0_68), by Euclidean distance, in [0, 1].

    1 less a penalty for neighbours in the embedding that are none in the input, by their rank there.

    Args:
        inputs: [n, d]; of more than `SAMPLE` points as many are drawn.
        embedded: [n, k].

    Raises:
        ConfigError: shapes that do not fit, or too few points for the neighbourhoods.
    """
    x, z = table(inputs, "inputs"), table(embedded, "embedded")
    if len(x) != len(z):
        raise ConfigError(f"embedded: expected one for each of the {len(x)} inputs, got {len(z)}")
    if len(x) > SAMPLE:
        rows = np.random.default_rng(0).choice(len(x), SAMPLE, replace=False)
        x, z = x[rows], z[rows]
    if len(x) <= 2 * NEIGHBOURS:
        raise ConfigError(f"inputs: expected more than {2 * NEIGHBOURS} points, got {len(x)}")
    return float(trustworthiness(x, z, n_neighbors=NEIGHBOURS))


class Clusters(NamedTuple):
    """Agreement of k-means clusters with classes; neither measure depends on how clusters are numbered."""

    nmi: float
    """Mutual information over the arithmetic mean of the two entropies, in [0, 1]: scikit-learn's default, NMI_sum of
    Vinh, Epps and Bailey 2010 (JMLR 11). Strehl and Ghosh 2002 divide by the geometric mean."""
    ari: float
    """Share of pairs on which both agree, adjusted: 1 alike, 0 on average by chance (Hubert and Arabie 1985)."""


def clusters(codes: Any, classes: Any, *, count: int | None = None) -> Clusters:
    """k-means (Lloyd 1982; k-means++ starts, Arthur and Vassilvitskii 2007) compared with classes.

    Args:
        codes: [n, F], sparse or dense, not rescaled: a latent counts by its variance.
        classes: labels [n] of any type.
        count: clusters; the number of classes by default.

    Raises:
        ConfigError: shapes that do not fit, or more clusters than samples.
    """
    x = matrix(codes, "codes")
    truth = labels(classes, x.shape[0], "classes")
    count = len(np.unique(truth)) if count is None else count
    if not 1 <= count <= x.shape[0]:
        raise ConfigError(f"count {count}: expected 1 to the {x.shape[0]} samples")
    assigned = KMeans(count, random_state=0).set_params(n_init=STARTS).fit_predict(x)
    return Clusters(float(normalized_mutual_info_score(truth, assigned)), float(adjusted_rand_score(truth, assigned)))
