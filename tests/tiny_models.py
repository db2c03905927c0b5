"""Tiny random models of every family that sites are tested on; nothing is downloaded.

    model = FAMILIES["llama"]()                    # or (vocab_size=300)
    inputs = example_inputs(model, batch=3)        # {"input_ids": [3, 7]} or {"pixel_values": [3, 3, 16, 16]}

Weights are far from their usual initial values (norm gains differ from 1, biases from 0), so that two places which
only coincide in a fresh model can be told apart.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM

from sae.selftest.world import LLAMA, randomise

LLAMA_LIKE = LLAMA
D, HEADS, LAYERS = LLAMA["hidden_size"], LLAMA["num_attention_heads"], LLAMA["num_hidden_layers"]
BERT_LIKE = {key: LLAMA_LIKE[key] for key in LLAMA_LIKE if key != "num_key_value_heads"}
GPT2_LIKE = {"n_embd": D, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
}
MIXED_LAYERS = ["linear_attention", "linear_attention", "full_attention"]
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4}
LINEAR_ATTENTION = {
    "layer_types": MIXED_LAYERS,
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def _tiny(auto: Any, config_class: str, settings: dict[str, Any], vocab_size: int | None = 128) -> Any:
    """Build from a config; on the meta device when called under ``torch.device("meta")``."""
    vocabulary = {} if vocab_size is None else {"vocab_size": vocab_size}
    config = getattr(transformers, config_class)(**settings, **vocabulary)
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    if not any(parameter.is_meta for parameter in model.parameters()):
        randomise(model)
    return model


def _causal(config_class: str, settings: dict[str, Any] | None = None, **more: Any) -> Callable[..., Any]:
    return partial(_tiny, AutoModelForCausalLM, config_class, {**(settings or LLAMA_LIKE), **more})


def _masked(config_class: str, **more: Any) -> Callable[..., Any]:
    return partial(_tiny, AutoModelForMaskedLM, config_class, {**BERT_LIKE, **more})


def _vision(config_class: str, auto: Any = AutoModel, **more: Any) -> Callable[..., Any]:
    return lambda vocab_size=None: _tiny(auto, config_class, {**VISION, **more}, None)


def _gemma3_with_vision(vocab_size: int = 128) -> Any:
    text = {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "vocab_size": vocab_size}
    settings = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 3}
    settings |= {"boi_token_index": 4, "eoi_token_index": 5}
    return _tiny(transformers.AutoModelForImageTextToText, "Gemma3Config", settings, None)


FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt2": _causal("GPT2Config", GPT2_LIKE),
    "gpt_bigcode": _causal("GPTBigCodeConfig", GPT2_LIKE),
    "gpt_neo": _causal(
        "GPTNeoConfig",
        {"hidden_size": D, "num_layers": 2, "num_heads": HEADS, "max_position_embeddings": 64, "window_size": 4},
        attention_types=[[["global", "local"], 1]],
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gptj": _causal("GPTJConfig", GPT2_LIKE, rotary_dim=4),
    "gpt_neox": _causal("GPTNeoXConfig"),
    "gpt_neox_sequential": _causal("GPTNeoXConfig", use_parallel_residual=False),
    "falcon": _causal("FalconConfig", num_kv_heads=2, new_decoder_architecture=True),
    "falcon_7b": _causal("FalconConfig", multi_query=True, parallel_attn=True),
    "falcon_rw": _causal("FalconConfig", alibi=True, parallel_attn=False, multi_query=False),
    "bloom": _causal("BloomConfig"),
    "mpt": _causal("MptConfig", {"d_model": D, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 64}),
    "opt": _causal("OPTConfig", BERT_LIKE, ffn_dim=48, word_embed_proj_dim=D),
    "opt_350m": _causal("OPTConfig", BERT_LIKE, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "llama": _causal("LlamaConfig"),
    "mistral": _causal("MistralConfig", sliding_window=4),
    "qwen2": _causal("Qwen2Config"),
    "qwen3": _causal("Qwen3Config", head_dim=8),
    "gemma": _causal("GemmaConfig", head_dim=8),
    "gemma2": _causal("Gemma2Config", head_dim=8),
    "gemma3": _causal("Gemma3TextConfig", head_dim=8),
    "gemma4": _causal(
        "Gemma4TextConfig",
        head_dim=8,
        global_head_dim=8,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "phi": _causal("PhiConfig"),
    "phi3": _causal("Phi3Config"),
    "cohere": _causal("CohereConfig"),
    "granite": _causal("GraniteConfig", residual_multiplier=0.22, embedding_multiplier=12.0),
    "granite_moe": _causal("GraniteMoeConfig", residual_multiplier=0.22, num_local_experts=4, num_experts_per_tok=2),
    "olmo": _causal("OlmoConfig"),
    "olmo2": _causal("Olmo2Config"),
    "olmo3": _causal("Olmo3Config"),
    "smollm3": _causal("SmolLM3Config"),
    "starcoder2": _causal("Starcoder2Config"),
    "exaone4": _causal("Exaone4Config"),
    "glm4": _causal("Glm4Config", head_dim=8),
    "mixtral": _causal("MixtralConfig", num_local_experts=4),
    "qwen2_moe": _causal("Qwen2MoeConfig", shared_expert_intermediate_size=16, **MOE),
    "qwen3_moe": _causal("Qwen3MoeConfig", head_dim=8, **MOE),
    "olmoe": _causal("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "phimoe": _causal("PhimoeConfig", num_local_experts=4),
    "deepseek_v3": _causal(
        "DeepseekV3Config",
        {**LLAMA_LIKE, "num_key_value_heads": HEADS},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "gpt_oss": _causal("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "llama4": _causal("Llama4TextConfig", head_dim=8, num_local_experts=4, intermediate_size_mlp=48, moe_layers=[0, 2]),
    "qwen3_next": _causal("Qwen3NextConfig", shared_expert_intermediate_size=16, **LINEAR_ATTENTION, **MOE),
    "qwen3_5": _causal("Qwen3_5TextConfig", **LINEAR_ATTENTION),
    "mamba": _causal("MambaConfig", {"hidden_size": D, "num_hidden_layers": LAYERS, "state_size": 4}),
    "mamba2": _causal(
        "Mamba2Config",
        {"hidden_size": D, "num_hidden_layers": LAYERS, "state_size": 8, "num_heads": 4, "head_dim": 16},
        n_groups=1,
        chunk_size=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "bert": _masked("BertConfig"),
    "roberta": _masked("RobertaConfig"),
    "modernbert": _masked("ModernBertConfig", cls_token_id=1, sep_token_id=2),
    "albert": _masked("AlbertConfig", embedding_size=16, num_hidden_groups=1),
    "vit": _vision("ViTConfig", AutoModelForImageClassification),
    # Without `architectures` transformers 5.23 fails on DeiT, which has two classifiers.
    "deit": _vision("DeiTConfig", AutoModelForImageClassification, architectures=["DeiTForImageClassification"]),
    "dinov2": _vision("Dinov2Config", AutoModelForImageClassification, layerscale_value=0.7),
    "dinov3": _vision("DINOv3ViTConfig", layerscale_value=0.7),
    "clip_vision": _vision("CLIPVisionConfig"),
    "siglip_vision": _vision("SiglipVisionConfig"),
    "gemma3_vision": _gemma3_with_vision,
}
"""Family name -> function (``vocab_size=128``) that builds its tiny model; vision models have no vocabulary."""


def example_inputs(model: Any, batch: int = 3, length: int = 7) -> dict[str, torch.Tensor]:
    """Forward arguments with `batch` different rows: token ids [B, S], or pixels [B, 3, 16, 16] for a vision model."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(batch, 3, VISION["image_size"], VISION["image_size"], generator=generator)}
    return {"input_ids": torch.randint(6, 120, (batch, length), generator=generator)}
