"""Sets in the files of the tools that trained them: dictionary_learning, sparsify, SAELens."""

from __future__ import annotations

from typing import Any

from sae.interop.published.base import PublishedSet

OUTLIERS = "the first 8 of each sample, and norms over 10 times the median of a batch"


def _dictionary_learning() -> dict[str, PublishedSet]:
    """Sets in dictionary_learning's files: Andy Arditi's on chat models, SAEBench's on Pythia."""
    layers = (3, 7, 11, 15, 19, 23, 27)
    andyrdt = {
        "qwen2.5-7b-instruct": ("Qwen/Qwen2.5-7B-Instruct", layers, range(4), "apache-2.0", OUTLIERS),
        "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", layers, (1,), None, None),
        "gpt-oss-20b": ("openai/gpt-oss-20b", layers[:-1], (0,), None, None),
    }
    sets = {
        f"{name}-andyrdt": PublishedSet(
            repository=f"andyrdt/saes-{name}",
            path="resid_post_layer_{layer}/{variant}",
            format="dictionary_learning",
            model=model,
            variants={f"trainer_{trainer}": numbers for trainer in trainers},
            site="resid_post.{layer}",
            further=r"trainer_\d+",
            licence=licence,
            left_out=left_out,
        )
        for name, (model, numbers, trainers, licence, left_out) in andyrdt.items()
    }
    sweeps = {
        "gated_ctx128_0730": (20, 20),
        "panneal_ctx128_0730": (28, 28),
        "standard_ctx128_0712": (20, 24),
        "topk_ctx128_0730": (24, 24),
    }
    for sweep, (at_3, at_4) in sweeps.items():
        sets[f"sae_bench_pythia70m_sweep_{sweep}"] = PublishedSet(
            repository="canrager/lm_sae",
            path=f"pythia70m_sweep_{sweep}/resid_post_layer_{{layer}}/{{variant}}",
            short="resid_post_layer_{layer}/{variant}",
            format="dictionary_learning",
            model="EleutherAI/pythia-70m-deduped",
            variants={f"trainer_{n}": (3, 4) if n < at_3 else (4,) for n in range(at_4)},
            site="resid_post.{layer}",
            context=128,
        )
    for kind in ("topk", "vanilla"):
        for power in (12, 14, 16):
            name = f"gemma-2-2b_{kind}_width-2pow{power}_date-1109"
            sets[f"sae_bench_{name}"] = PublishedSet(
                repository=f"canrager/saebench_gemma-2-2b_width-2pow{power}_date-1109",
                path=f"{name}/resid_post_layer_{{layer}}/{{variant}}",
                short="resid_post_layer_{layer}/{variant}",
                format="dictionary_learning",
                model="google/gemma-2-2b",
                variants={f"trainer_{n}": (5, 12, 19) for n in range(6)},
                site="resid_post.{layer}",
                width=f"{2 ** (power - 10)}k",
                bos=True,
            )
    return sets


def _sparsify() -> dict[str, PublishedSet]:
    """EleutherAI's sets in sparsify's files, which say where they read."""
    sets = {
        "sae-pythia-160m-32k": ("EleutherAI/pythia-160m", "layers.{layer}.mlp", range(12), "32k", "mit"),
        "sae-llama-3.1-8b-32x": ("meta-llama/Llama-3.1-8B", "layers.{layer}.mlp", (23,), "128k", "mit"),
        "sae-llama-3.1-8b-64x": ("meta-llama/Llama-3.1-8B", "layers.{layer}.mlp", (23,), "256k", "mit"),
        "sae-llama-3-8b-32x-v2": ("meta-llama/Meta-Llama-3-8B", "layers.{layer}", (24,), "128k", None),
        "Llama-3.2-1B-mntss-skip-transcoder": (
            "meta-llama/Llama-3.2-1B",
            "layers.{layer}.mlp",
            range(16),
            "128k",
            None,
        ),
    }
    return {
        f"eleutherai-{name.lower().removeprefix('sae-')}": PublishedSet(
            repository=f"EleutherAI/{name}",
            path=path,
            format="sparsify",
            model=model,
            variants={"": layers},
            width=width,
            licence=licence,
        )
        for name, (model, path, layers, width, licence) in sets.items()
    }


CENTRED = "its model's writing weights were centred: it reads the residual less its mean over dimensions"


def _saelens() -> dict[str, PublishedSet]:
    """Sets in SAELens' files, which say where they read."""
    gpt2: dict[str, Any] = {"format": "saelens", "model": "openai-community/gpt2"}
    twelve = {"": range(12)}
    sets = {
        "gpt2-small-res-jb": PublishedSet(
            repository="jbloom/GPT2-Small-SAEs-Reformatted",
            path="blocks.{layer}.hook_resid_pre",
            variants=twelve,
            width="24k",
            bos=True,
            notes=(CENTRED,),
            **gpt2,
        ),
        "gpt2-small-res-jb-feature-splitting": PublishedSet(
            repository="jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
            path="blocks.{layer}.hook_resid_pre_{variant}",
            variants={str(768 * 2**n): (8,) for n in range(8)},
            bos=True,
            notes=(CENTRED,),
            **gpt2,
        ),
    }
    for kind in ("attn-out", "mlp-out", "resid-mid", "resid-post"):
        for width in ("32k", "128k"):
            # one of the eight repositories names its folders like OpenAI's files
            ending = ".pt" if (kind, width) == ("resid-post", "32k") else ""
            sets[f"gpt2-small-{kind}-v5-{width}"] = PublishedSet(
                repository=f"jbloom/GPT2-Small-OAI-v5-{width}-{kind}-SAEs",
                path=f"v5_{width}_layer_{{layer}}{ending}",
                short="layer_{layer}",
                variants=twelve,
                width=width,
                dataset="Skylion007/openwebtext",
                **gpt2,
            )
    for kind, site in {"att": "attn_out", "mlp": "mlp_out", "res": "resid_post"}.items():
        sets[f"pythia-70m-deduped-{kind}-sm"] = PublishedSet(
            repository=f"ctigges/pythia-70m-deduped__{kind}-sm_processed",
            path=f"{{layer}}-{kind}-sm",
            short="layer_{layer}",
            format="saelens",
            model="EleutherAI/pythia-70m-deduped",
            variants={"": range(6)},
            site=f"{site}.{{layer}}",
        )
    matryoshka = {
        "gemma-2-2b": ("google/gemma-2-2b", "40", "standard/", 25),
        "gemma-2-9b": ("google/gemma-2-9b", "60", "", 41),
        "gemma-3-1b": ("google/gemma-3-1b-pt", "40", "", 25),
    }
    for name, (model, l0, folder, layers) in matryoshka.items():
        sets[f"{name}-res-matryoshka-dc"] = PublishedSet(
            repository=f"chanind/{name}-batch-topk-matryoshka-saes-w-32k-l0-{l0}",
            path=f"{folder}blocks.{{layer}}.hook_resid_post",
            short="blocks.{layer}.hook_resid_post",
            format="saelens",
            model=model,
            variants={"": range(layers)},
            site="resid_post.{layer}",
            width="32k",
        )
    return sets


TOOLS = {**_dictionary_learning(), **_sparsify(), **_saelens()}
