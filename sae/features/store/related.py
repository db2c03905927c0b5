"""Latents that fire together, from what is kept of each alone.

The uniform buffers hold, for every latent, the firings with the smallest hashes: bottom-k sketches of the sets of
places where the latents fire (Broder 1997, "On the resemblance and containment of documents"). The resemblance
|A ∩ B| / |A ∪ B| of two sets is estimated by the share of the k smallest hashes of both together that lie in both;
with k = 32 its standard error is at most 0.09. Candidates are the latents that share a place of the sketch.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from sae.features.store import keys
from sae.features.store.buffers import NAMES, SLOTS
from sae.features.store.store import FeatureStore

LISTED, CANDIDATES = 10, 60


def coactive(store: FeatureStore, latent: int) -> list[dict[str, Any]]:
    """Up to 10 latents that fire most nearly at the same tokens: `{"latent", "jaccard"}`, the largest jaccard first.

    "jaccard" is the estimated resemblance of the sets of tokens. Raises FeatureError where there is no such latent.
    """
    sketch = store.raw(latent).events["uniform"][0]
    shared: Counter[int] = Counter()
    places = torch.from_numpy(sketch.copy())
    documents, positions = keys.document_of(places).numpy(), keys.position_of(places).numpy()
    for document in np.unique(documents).tolist():
        events = store.events_in(document)
        here = np.isin(events.position, positions[documents == document])
        here &= events.buffer == NAMES.index("uniform")
        shared.update(events.latent[here].tolist())
    del shared[latent]
    related = []
    # of equally many shared places the lower latent first, so that the answer does not vary
    for other, _ in sorted(shared.items(), key=lambda pair: (-pair[1], pair[0]))[:CANDIDATES]:
        jaccard = resemblance(sketch, store.raw(other).events["uniform"][0], store.info["seed"])
        related.append({"latent": other, "jaccard": jaccard})
    return sorted(related, key=lambda row: (-row["jaccard"], row["latent"]))[:LISTED]


def resemblance(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Estimated |A ∩ B| / |A ∪ B| from the bottom-k sketches of A and B, places int64."""
    union = np.union1d(a, b)
    hashes = keys.order(torch.from_numpy(union), seed).numpy()
    smallest = union[hashes.argsort()[: SLOTS["uniform"]]]
    both = np.isin(smallest, a) & np.isin(smallest, b)
    return float(both.mean()) if len(smallest) else 0.0
