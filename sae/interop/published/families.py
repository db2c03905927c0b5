"""Sets with files of their own: Llama Scope, Qwen-Scope, Goodfire, temporal SAEs."""

from __future__ import annotations

from sae.interop.published.base import PILE, PublishedSet


def _llama_scope() -> dict[str, PublishedSet]:
    """Llama Scope (He et al. 2024) on Llama 3.1 8B, and on its R1 distillation."""
    sites = {"r": "resid_post.{layer}", "a": "attn_out.{layer}", "m": "mlp_out.{layer}", "tc": "mlp_in.{layer}"}
    sets = {
        f"llama_scope_lx{kind}_{factor}x": PublishedSet(
            repository=f"fnlp/Llama3_1-8B-Base-LX{kind.upper()}-{factor}x",
            path=f"Llama3_1-8B-Base-L{{layer}}{kind.upper()}-{factor}x",
            short=f"l{{layer}}{kind}_{factor}x",
            format="llama_scope",
            model="meta-llama/Llama-3.1-8B",
            variants={"": range(32)},
            site=site,
            target="mlp_out.{layer}" if kind == "tc" else None,
            width=width,
            licence="apache-2.0",
            bos=True,
            context=1024,
            dataset="cerebras/SlimPajama-627B",
        )
        for kind, site in sites.items()
        for factor, width in (("8", "32k"), ("32", "128k"))
    }
    mixtures = (
        "800M-Slimpajama-0-OpenR1-Math-220k",
        "400M-Slimpajama-400M-OpenR1-Math-220k",
        "0-Slimpajama-800M-OpenR1-Math-220k",
    )
    sets["llama_scope_r1_distill"] = PublishedSet(
        repository="fnlp/Llama-Scope-R1-Distill",
        path="{variant}/L{layer}R",
        format="llama_scope",
        model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        variants=dict.fromkeys(mixtures, range(32)),
        site="resid_post.{layer}",
        width="32k",
        licence="apache-2.0",
        bos=True,
        context=1024,
    )
    return sets


def _qwen_scope() -> dict[str, PublishedSet]:
    """Qwen-Scope, on the residual stream of Qwen 3 and 3.5."""
    models = (
        ("Qwen3-1.7B-Base", 28, {50: 32, 100: 32}),
        ("Qwen3-8B-Base", 36, {50: 64, 100: 64}),
        ("Qwen3-30B-A3B-Base", 48, {50: 32, 100: 128}),
        ("Qwen3.5-2B-Base", 24, {50: 32, 100: 32}),
        ("Qwen3.5-9B-Base", 32, {50: 64, 100: 64}),
        ("Qwen3.5-27B", 64, {50: 80, 100: 80}),
        ("Qwen3.5-35B-A3B-Base", 40, {50: 32, 100: 128}),
    )
    return {
        f"qwen-scope-{model.removeprefix('Qwen').lower()}-w{width}k-l{k}": PublishedSet(
            repository=f"Qwen/SAE-Res-{model}-W{width}K-L0_{k}",
            path="layer{layer}.sae.pt",
            short="layer{layer}",
            format="qwen_scope",
            model=f"Qwen/{model}",
            variants={"": range(depth)},
            site="resid_post.{layer}",
            width=f"{width}k",
        )
        for model, depth, kinds in models
        for k, width in kinds.items()
    }


def _goodfire() -> dict[str, PublishedSet]:
    """Goodfire's, on two chat models of Llama 3."""
    models = {"3.1-8B": (19, "pth"), "3.3-70B": (50, "pt")}
    return {
        f"goodfire-llama-{size.lower()}-instruct": PublishedSet(
            repository=f"Goodfire/Llama-{size}-Instruct-SAE-l{layer}",
            path=f"Llama-{size}-Instruct-SAE-l{{layer}}.{ending}",
            short="layer_{layer}",
            format="goodfire",
            model=f"meta-llama/Llama-{size}-Instruct",
            variants={"": (layer,)},
            site="resid_post.{layer}",
            width="64k",
            licence="llama3.1" if size == "3.1-8B" else None,
            dataset="lmsys/lmsys-chat-1m",
        )
        for size, (layer, ending) in models.items()
    }


def _temporal() -> dict[str, PublishedSet]:
    """Temporal feature analysis (Lubana et al. 2025), which is listed to be refused by name."""
    models = {
        "temporal-sae-gemma-2-2b": ("google/gemma-2-2b", "gemma-2-2B", (12,)),
        "temporal-sae-llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "llama-3.1-8B", (15, 26)),
    }
    return {
        name: PublishedSet(
            repository="canrager/temporalSAEs",
            path=f"{folder}/layer_{{layer}}/temporal",
            short="layer_{layer}",
            format="temporal",
            model=model,
            variants={"": layers},
            site="resid_post.{layer}",
            dataset=PILE,
        )
        for name, (model, folder, layers) in models.items()
    }


FAMILIES = {**_llama_scope(), **_qwen_scope(), **_goodfire(), **_temporal()}
