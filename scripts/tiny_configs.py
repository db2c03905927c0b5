"""A tiny config of any family of transformers, shrunk field by field from its config class.

    config = tiny_config("qwen2_vl")               # model type, as in transformers' mappings
    AutoModelForImageTextToText.from_config(config)

A field's value follows from its name, by the names that most families share; parts (text, vision, audio) are shrunk
alike. What names cannot tell stands in EXCEPTIONS.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 3, 320
"""The model's width, attention heads, layers and tokens."""
BOS, EOS, PAD = 0, 1, 2
"""Ids of the special tokens, as in `sae.selftest.world.byte_tokenizer`."""
FIRST_PLACEHOLDER = 300
"""Placeholders of images and the like get ids from here on, which a tokenizer of 300 tokens never gives."""

SMALL: tuple[tuple[str, Any], ...] = (
    (r"audio_channels", 1),
    (r"(num|in|out)_channels", 3),
    (r"(bos|start|decoder_start)_token_id|bos_index", BOS),
    (r"(forced_)?eos_(token_id|index)", EOS),
    (r"pad_(token_id|index)", PAD),
    (r"(.*_)?vocab_size|.*group_vocab|num_embeddings|vocab_size_per_layer_input", VOCABULARY),
    (r"codebook_size", 64),
    (r"image_size|crop_size|force_image_size", 32),
    (r"patch_size", 8),
    (r"max_position_embeddings|n_ctx|max_(source|target)_positions|seq_len|max_2d_position_embeddings", 128),
    (r"original_max_position_embeddings", 64),
    (r"num_key_value_heads|num_kv_heads|.*num_key_value_heads", 2),
    (r"num_attention_heads|.*heads|n_head", HEADS),
    (r"qk_(rope|nope)_head_dim", 4),
    (r"head_dim|.*head_dim|attention_head_size|kv_channels|d_kv|dim_head|d_head|kv_channels", WIDTH // HEADS),
    (r".*(lora_rank|lowrank|adapter_rank|laurel_rank|embedding_rank|gated_norm_rank)", 8),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r".*(experts_per_tok|moe_top_?k|moe_k|top_k_experts)", 2),
    (r"zero_expert_num", 2),
    (r"n_group|topk_group", 1),
    (r"(n_routed|num|num_local|moe_num)_experts", 4),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"(moe|shared|expert|share).*(size|dim)|hidden_size_per_layer_input|.*ffn_mult", 16),
    (r".*(intermediate|ffn|inner|feed_forward|mlp)_?(size|dim|hidden_size)?", 48),
    (r"d_ff|dim_ff|dff|n_inner|intermediate_size_mlp", 48),
    (r"num_hidden_layers|num_layers|n_layers?|layers", LAYERS),
    (r"(?!.*(dense|shared|start|residual|mtp|nextn|by)).*(layers|depth|num_blocks)", 2),
    (r".*(sliding_window|window_size|attention_window|window_len|chunk_length|chunk_size|local_attention)", 8),
    (r".*(period|pattern|interval|every_n_layers)|layer_group_size|n_layers_per_attn_res_block", 2),
    (r".*(chunk_size|block_size|canvas_length|keep_window_size|floor_scale|n_floor)", 8),
    (r".*state_size|mamba_d_state|segment_means_seq_len|num_landmarks|mamba_head_dim", 8),
    (
        r"(?!.*(kernel|merge|patch|batch|group|pool|grid|num|token|conv_size|codebook))"
        r".*(size|dim|d_model|channels|width|lru_width|embd)",
        WIDTH,
    ),
)
"""Pattern of a field's standard name -> its value; the first that matches the whole name counts."""


class Part(NamedTuple):
    """The config of a part that an exception asks for."""

    family: str
    values: dict[str, Any]


CLIP = Part("clip_vision_model", {})
WIDE_VISION = Part("siglip_vision_model", {"hidden_size": 64})
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
HYBRID = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
NO_SHARED_CACHE = {"num_kv_shared_layers": 0}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "AyaVisionConfig": {"vision_config": CLIP},
    "BambaConfig": {"attn_layer_indices": [1]},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 311}},
    "CohereCompassTextConfig": {
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": 1e4} for name in ("full_attention", "sliding_attention")
        }
    },
    "DbrxConfig": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts_per_tok": 2},
    "DiffusionGemmaTextConfig": {"top_k_experts": 2, "num_experts": 4, "moe_intermediate_size": 16},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "Dots3NoteTextConfig": {"num_key_value_heads": HEADS, "use_sliding_window": False},
    "Dots3NoteVisionConfig": {"mlp_layer_types": ["dense"] * LAYERS},
    "Emu3Config": {"vocabulary_map": {"<image>": 311, "<|extra_200|>": 312}},
    "Ernie4_5_VLMoeTextConfig": {"rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]}},
    "EsmConfig": {"vocab_size": VOCABULARY, "pad_token_id": PAD, "mask_token_id": 310},
    "FastVlmConfig": {"vision_config": CLIP},

    "Gemma3nTextConfig": NO_SHARED_CACHE,
    "Glm5NextTextConfig": {"num_key_value_heads": HEADS},
    "GPTNeoConfig": {"attention_types": [[["global", "local", "global"], 1]]},
    "Glm4vMoeTextConfig": {
        "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    },
    "HunYuanVLTextConfig": {"rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 1, 1]}},
    "Granite4VisionConfig": {
        "deepstack_layer_map": [], "downsample_rate": "1/2", "vision_config": WIDE_VISION,
        "spatial_target_layers": [0, 1],
    },
    "JambaConfig": {"attn_layer_offset": 1},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention", "conv"]},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "MusicgenConfig": {"audio_channels": 1},
    "MusicgenMelodyConfig": {"audio_channels": 1},
    "MuseSparkAudioConfig": {
        "num_hidden_layers": 2, "patch_sizes": [4, 4], "hidden_sizes": [16, 32], "depths": [1, 1],
    },
    "Molmo2AdapterConfig": {"vision_feature_layer": [-1, -2]},
    "NemotronHConfig": {"n_groups": 2},
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": 315, "vision_end_token_id": 316},
    "Qwen2_5OmniThinkerConfig": {"vision_start_token_id": 315, "vision_end_token_id": 316},
    "Step3p7TextConfig": {"sliding_window": 8},
    "NemotronConfig": {"num_key_value_heads": 2},
    "NeoMMEConfig": {"head_dim": 16},
    "ParakeetEncoderConfig": {"projection_hidden_size": WIDTH, "projection_bias": False},
    "PerceiverConfig": {"d_latents": WIDTH, "num_latents": 8, "num_self_attends_per_block": 3},
    "ReformerConfig": {
        "is_decoder": True, "attn_layers": ["local", "lsh", "local"], "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [8, 24],
    },
    "GraniteMoeHybridConfig": HYBRID,
    "KimiLinearConfig": HYBRID,
    "Qwen3NextConfig": HYBRID,
    "Qwen3_5TextConfig": HYBRID,
    "Qwen3_5MoeTextConfig": HYBRID,
    "Qwen4ExpTextConfig": {
        **HYBRID,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "DeepseekV2Config": {"num_experts_per_tok": 2, "num_key_value_heads": HEADS},
    "CodeGenConfig": {"rotary_dim": 4},
    "GPTJConfig": {"rotary_dim": 4},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "ZambaConfig": {"num_hidden_layers": 6, "attn_layer_offset": 1},
    "ZayaConfig": {"num_experts_per_tok": 1},
    "Florence2VisionConfig": {
        "depths": [1, 1, 1, 1], "embed_dim": [16, 16, 16, 32], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2],
    },
    "JanusVQVAEConfig": {"base_channels": 32, "channel_multiplier": [1, 1]},
}  # fmt: skip
"""Config class -> field -> value, where names mislead or sizes must fit each other. Parts are given as classes."""


COMMON_FIELDS = {field.name for field in dataclasses.fields(PreTrainedConfig)}
PLACEHOLDER = r"token_id|token_index|_token|(start|end|newline|patch)_id$|_index$"


def tiny_config(family: str) -> PreTrainedConfig:
    """A config of the family `family` (a model type) with three layers of width 32."""
    return _shrink(CONFIG_MAPPING[family], itertools.count(FIRST_PLACEHOLDER), {})


def _shrink(config_class: Any, ids: Iterator[int], defaults: dict[str, Any], **given: Any) -> PreTrainedConfig:
    """A small config of a class with what is `given`; `defaults` replace the class's own, before they are shrunk."""
    exceptions = EXCEPTIONS.get(config_class.__name__, {})
    standard = {theirs: ours for ours, theirs in config_class.attribute_map.items()}
    values: dict[str, Any] = {}
    for name, part in (config_class.sub_configs_defaults or config_class.sub_configs).items():
        if name not in exceptions:
            values[name] = _part(part, ids)
    for field in dataclasses.fields(config_class):
        if field.name in values or field.name in COMMON_FIELDS:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = defaults.get(field.name, default)
        small = _small(standard.get(field.name, field.name), field.name, default, ids)
        if small is not None or (field.name in defaults and not isinstance(default, dict)):
            values[field.name] = default if small is None else small
    if "kv_lora_rank" in values and "num_key_value_heads" in values:  # latent attention gives every head its own
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "mrope_section" in getattr(config_class, "ignore_keys_at_rope_validation", ()):
        values["rope_parameters"] = SECTIONS
    for name, value in exceptions.items():
        values[name] = (
            _shrink(CONFIG_MAPPING[value.family], ids, {}, **value.values) if isinstance(value, Part) else value
        )
    return config_class(**{**values, **given})


def _part(spec: Any, ids: Iterator[int]) -> PreTrainedConfig | None:
    if isinstance(spec, type):
        return _shrink(spec, ids, {})
    known = issubclass(spec.config_class, PreTrainedConfig)
    return _shrink(spec.config_class if known else CONFIG_MAPPING[spec.model_type], ids, spec.init_kwargs)


def _small(standard: str, name: str, default: Any, ids: Iterator[int]) -> Any:
    """The small value of a field, or None where its default stays."""
    if name == "head_dim" and default is None:
        return WIDTH // HEADS
    if isinstance(default, tuple) and len(set(default)) == 1 and type(default[0]) is int:
        one = _small(standard, name, default[0], ids)
        return None if one is None else (one,) * len(default)
    if type(default) is not int or (default <= 0 and not re.search(r"token_id|index|_id$", name)):
        return None
    for pattern, value in SMALL:
        if re.fullmatch(pattern, standard) or re.fullmatch(pattern, name):
            return value
    if default >= FIRST_PLACEHOLDER and re.search(PLACEHOLDER, name):
        return next(ids)
    return None


def tiny_model(family: str, auto: Any) -> Any:
    """A random model of `auto` (`AutoModelForCausalLM`, ...) from the family's tiny config.

    Families that have encoders and decoders of one class are made the one that `auto` is for.

    Weights are far from their usual initial values, so that what a module adds to the residual can be told from
    nothing, and the places in a block from one another.
    """
    torch.manual_seed(0)
    config: Any = tiny_config(family)
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = auto is AutoModelForCausalLM
    model = auto.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                noise = torch.rand(weight.shape, generator=generator) - 0.5
                weight.add_(noise.to(weight) * (0.6 if weight.ndim == 1 else 0.3))
    return model
