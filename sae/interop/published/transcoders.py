"""Transcoders in circuit-tracer's files (Hanna, Piotrowski et al. 2025), in layers and cross-layer."""

from __future__ import annotations

from sae.interop.published.base import PILE, PublishedSet


def _circuit_tracer() -> dict[str, PublishedSet]:
    """Transcoders for attribution graphs (Hanna, Piotrowski et al. 2025), in circuit-tracer's files."""
    qwen = {
        "0.6b-transcoders-lowl0": 28,
        "1.7b-transcoders-lowl0": 28,
        "4b-transcoders": 36,
        "8b-transcoders": 36,
        "14b-transcoders": 40,
        "14b-transcoders-lowl0": 40,
    }
    sets = {
        f"mwhanna-qwen3-{name}": PublishedSet(
            repository=f"mwhanna/qwen3-{name}",
            path="layer_{layer}.safetensors",
            short="layer_{layer}",
            format="circuit_tracer",
            model=f"Qwen/Qwen3-{name.partition('-')[0].upper()}",
            variants={"": range(depth)},
            site="mlp_in.{layer}",
            target="mlp_out.{layer}",
            licence="mit" if name in ("4b-transcoders", "14b-transcoders") else None,
            dataset=PILE,
        )
        for name, depth in qwen.items()
    }
    sets["mntss-llama-3.2-1b-transcoders"] = PublishedSet(
        repository="mntss/transcoder-Llama-3.2-1B",
        path="layer_{layer}.safetensors",
        short="layer_{layer}",
        format="circuit_tracer",
        model="meta-llama/Llama-3.2-1B",
        variants={"": range(16)},
        site="resid_mid.{layer}",
        target="mlp_out.{layer}",
    )
    cross_layer = {
        "mntss-gemma-2-2b-426k-clt": ("mntss/clt-gemma-2-2b-426k", "google/gemma-2-2b", 26, "426k"),
        "mntss-gemma-2-2b-2.5m-clt": ("mntss/clt-gemma-2-2b-2.5M", "google/gemma-2-2b", 26, "2.5m"),
        "mntss-llama-3.2-1b-524k-clt": ("mntss/clt-llama-3.2-1b-524k", "meta-llama/Llama-3.2-1B", 16, "524k"),
    }
    for name, (repository, model, depth, width) in cross_layer.items():
        sets[name] = PublishedSet(
            repository=repository,
            path="W_enc_{layer}.safetensors",
            short="layer_{layer}",
            also=("W_dec_{layer}.safetensors",),
            format="circuit_tracer",
            model=model,
            variants={"": range(depth)},
            width=f"{width} in all layers",
        )
    return sets


TRANSCODERS = _circuit_tracer()
