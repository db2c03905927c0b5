"""A store of made-up latents of any width, written by the real writer, for benchmarks and tests of the page.

    python tests/features/synthetic_store.py FOLDER --width 131072

No run belongs to it: logits and neighbours, which are told from weights, are made up too, with --lens (`lens=True`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae.features.store.collection import Collection
from sae.features.store.documents import Tokens
from sae.features.store.lens import NEIGHBOURS, TOKENS
from sae.features.store.store import FeatureStore
from sae.features.store.text import Vocabulary
from sae.features.store.writer import FORMAT, write_store
from sae_kernels import SparseCodes

WORDS = (
    "the of and river mill grain stone town salt iron wool ships coast spring war road silence market song home "
    "naïve 你好 🎉 <b>bold</b> &amp; العربية"
).split()
LENGTH = 128  # tokens in a document


def synthetic_vocabulary(size: int = 4000) -> Vocabulary:
    """Words with a leading space; those of several bytes are also there byte by byte."""
    parts = [f" {WORDS[i % len(WORDS)]}{i // len(WORDS) or ''}".encode() for i in range(size - 256)]
    return Vocabulary.of_bytes([bytes([b]) for b in range(256)] + parts)


def synthetic_collection(width: int, seed: int = 0, *, tokens: int = 65_536, active: int = 64) -> Collection:
    """Latents whose densities fall by a power law, over made-up documents."""
    collection = Collection(width, seed)
    draw = torch.Generator().manual_seed(seed)
    step = 4096
    for begin in range(0, tokens, step):
        n = min(step, tokens - begin)
        # one latent out of each of `active` equal ranges, low ones oftener: no latent twice in a token
        share = torch.rand(n, active, generator=draw) ** 1.5
        span = max(1, width // active)
        latent = (share * span).long().clamp(max=span - 1) * active + torch.arange(active)
        value = torch.rand(n, active, generator=draw).log().neg() * (1 + latent % 7)
        place = torch.arange(begin, begin + n)
        document, position = place // LENGTH, place % LENGTH
        words = torch.randint(0, 4000, (n,), generator=draw)
        collection.add(SparseCodes(value, latent, width), Tokens(words, document, position, torch.zeros_like(position)))
    collection.leave_out("bos", tokens // LENGTH)
    collection.finish()
    return collection


def synthetic_info(collection: Collection) -> dict[str, Any]:
    """What a store says of itself, for a made-up collection."""
    return {
        "format": FORMAT, "kind": "language", "model": "synthetic", "dataset": "synthetic", "site": "resid_post.0",
        "width": collection.width, "tokens": collection.tokens, "documents": len(collection.documents),
        "left_out": collection.left_out, "finished": True, "progress": 1.0, "seed": collection.seed,
        "window": [24, 8], "slots": {name: b.slots for name, b in collection.buffers.items()},
        "collected_at": "2026-01-01T00:00:00+00:00", "revision": 1, "seen": collection.tokens, "mark": [0, 0],
        "open_document": None, "weights": "synthetic", "split": "train", "store": None,
    }  # fmt: skip


def synthetic_store(
    folder: Path, width: int, seed: int = 0, *, tokens: int = 65_536, lens: bool = False
) -> FeatureStore:
    """Write a store of `width` latents into `folder` and open it; 131,072 latents take about a minute.

    With `lens` it has made-up logits and neighbours too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    active = min(64, width)
    collection = synthetic_collection(width, seed, tokens=tokens, active=active)
    norms = np.random.default_rng(seed).uniform(0.5, 2, width).astype(np.float32)
    nearest = np.random.default_rng(seed + 1).uniform(0, 1, width).astype(np.float32)
    write_store(folder, collection, synthetic_vocabulary(), synthetic_info(collection), norms, nearest)
    store = FeatureStore(folder)
    if lens:
        _fill_lens(store, seed)
    return store


def _fill_lens(store: FeatureStore, seed: int) -> None:
    """Random logits and neighbours for every latent, as if they had been computed."""
    draw = np.random.default_rng(seed)
    sizes = {"logits": (2 * TOKENS, len(store.vocabulary)), "neighbours": (NEIGHBOURS, store.width)}
    for table, (count, limit) in sizes.items():
        ids = draw.integers(0, limit, (store.width, count)).astype("<i4")
        values = -np.sort(-draw.standard_normal((store.width, count)), axis=1).astype("<f4")
        if table == "logits":
            values[:, TOKENS:] = values[:, : TOKENS - 1 : -1]
        else:
            values = -np.sort(-np.exp(-np.abs(values)), axis=1).astype("<f4")
        store.lens._keep(table, ((i, ids[i].tobytes() + values[i].tobytes()) for i in range(store.width)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lens", action="store_true")
    arguments = parser.parse_args()
    store = synthetic_store(
        arguments.folder, arguments.width, arguments.seed, tokens=arguments.tokens, lens=arguments.lens
    )
    print(f"{arguments.folder}: {store.width:,} latents, {store.info['tokens']:,} tokens")
