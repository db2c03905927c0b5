"""A Llama-shaped GGUF file turned into a folder that `from_pretrained` loads in a second.

transformers reads GGUF itself, but slowly, only with `accelerate`, and a model read that way cannot be saved. So the
weights are taken with the `gguf` library and put into a plain model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

# GGUF's name of a tensor -> the model's; {} is the layer's number
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_llama_gguf(source: Path, target: Path) -> None:
    """Write config, weights (float16), tokenizer and generation config of the GGUF file `source` into `target`.

    Only Llama models with tied embeddings and no biases are known (KeyError or RuntimeError otherwise).
    """
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    reader = GGUFReader(source)
    config = _config(reader)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        _, *inner = tensor.name.split(".")[:-1]
        if tensor.name.startswith("blk."):
            layer, kind = inner
            name = f"model.layers.{layer}.{INNER[kind]}.weight"
            values = _split_halves(values, heads[kind]) if kind in heads else values
        else:
            name = OUTER[tensor.name]
        weights[name] = torch.tensor(values)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.half().save_pretrained(target)
    if shown:
        logging.enable_progress_bar()
    # half a file, but computed with as float32 unless the caller asks for another type
    config.dtype = "float32"
    config.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def _config(reader: GGUFReader):
    from transformers import LlamaConfig

    def field(name: str):
        return reader.fields[name].contents()

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=float(field("llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(field("llama.rope.freq_base"))},
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
    )


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a rotary projection's rows: pairs (2i, 2i+1) back to halves (i, i + width/2)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
