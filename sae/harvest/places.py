"""Where inside one block of a transformers model each kind of activation lives.

Found by the names of the block's children, which follow few conventions over all families; what names do not show is in
two short tables of block classes. A block with parts of unknown effect is refused rather than misread.

    place_in_block(model.model.layers[6], "mlp_out")      # Place(path="mlp", side="output", scale=1.0)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from sae.harvest.blocks import SiteError, children_named

KINDS = ("resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out", "resid_mid")
"""The kinds of site. A place that has two names takes the first of them."""

ATTENTION = ("self_attn", "self_attention", "attn", "attention", "linear_attn", "multi_head_attention")
"""Names under which blocks keep the attention (softmax or linear)."""

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "attention.out_proj")
"""Names of the linear layer behind the heads, in the attention."""

MIXERS = ("mixer", "mamba", "conv", "temporal_block", "short_conv")
"""Names under which blocks keep something that moves information between tokens and isn't attention."""

MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "shared_mlp", "mlp_block", "experts", "moe")
"""Names under which blocks keep the feed-forward part; two of them in one block are two terms of one sum."""

BRANCHES = {*ATTENTION, *MIXERS, *MLPS}
"""Children of a block that read and write vectors of the residual's width."""

POST_ATTENTION = ("post_self_attn_layernorm", "layer_scale1", "self_attn_layer_scale", "post_norm1")
POST_ATTENTION += ("post_operator_norm", "attn_sconv", "post_attention_convolution")
POST_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "layer_scale2", "mlp_layer_scale", "post_norm2")
POST_MLP += ("post_ffn_norm", "mlp_sconv", "post_mlp_convolution")
"""Modules that change a branch's output before it is added: their output is the contribution (Gemma 2, GLM 4, DINO)."""

SANDWICH = ("post_feedforward_layernorm", "pre_feedforward_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")
"""A block with one of these and no `post_self_attn_layernorm` uses `post_attention_layernorm` *on the branch*, before
the sum (Gemma 2 and later, OLMo 2); elsewhere that name means the norm before the MLP (Llama)."""

PRE_MLP = (
    *("pre_feedforward_layernorm", "pre_mlp_layernorm", "pre_ff_layernorm", "ln_2", "norm_2", "norm2", "layer_norm2"),
    *("layernorm_after", "mlp_norm", "ffn_norm", "post_attention_layernorm"),
)
"""Names of the norm whose input is the residual between attention and MLP. Order matters: the last name is also used
for the norm after the attention, in blocks that then have one of the first ones."""

RESIDUAL_SCALES = ("residual_multiplier", "residual_scale")
"""Float attributes of a block by which it multiplies both branches before adding them (Granite, MiniCPM 3)."""

FACTOR_ENDINGS = ("multiplier", "scale", "alpha", "factor")
"""Endings of numbers in other families that weight a sum in a way not known here (Falcon-H1, MiniMax)."""

SEVERAL_STREAMS = ("altup", "attn_hc", "ffn_hc", "hyper_connection", "attn_hyper_connection")
"""Children that mark a block with several residual streams side by side (Gemma 3n, hyper-connections)."""

OTHER_PARTS = ("fc1", "fc2", "intermediate", "output", "encoder_attn", "crossattention", "cross_attention", "router")
OTHER_PARTS += ("per_layer_input_gate", "per_layer_projection", "activation_fn", "activation", "act_fn", "drop_path")
"""Further parts of a block (besides norms and dropouts) that leave the contribution of attention and MLP as it is."""

BLOCK_PLACES: dict[str, dict[str, str]] = {
    # Both sums of BLOOM and the second of MPT happen inside the module, so its output includes the residual.
    "BloomBlock": {"attn_out": "self_attention.dense", "mlp_out": "mlp.dense_4h_to_h"},
    "MptBlock": {"mlp_out": "ffn.down_proj"},
    "AlbertLayerGroup": {
        "attn_out": "albert_layers.0.attention.dense",
        "mlp_in": "albert_layers.0.ffn:in",
        "mlp_out": "albert_layers.0.ffn_output",
    },
}
"""Block class -> kind -> place, where names and structure mislead."""

BLOCK_LACKS: dict[str, dict[str, str]] = {
    "AlbertLayerGroup": {"resid_mid": "it normalises the residual after each sum"},
    "Block": {"resid_mid": "GPT-1 normalises the residual after each sum"},
    "GPTNeoXJapaneseLayer": {"attn_out": "it adds the attention's bias outside the attention"},
    "ReformerLayer": dict.fromkeys(KINDS, "it is reversible, with two residual streams side by side"),
    "XLNetLayer": dict.fromkeys(KINDS, "it works on [S, B, d], with the tokens before the batch"),
    "BeamDecoderLayer": dict.fromkeys(("attn_out", "mlp_out"), "it weights each sum by its depth"),
}
"""Block class -> kind -> why there is no such place, where names and structure mislead."""


class Place(NamedTuple):
    """Where in a block an activation lives."""

    path: str
    """Dotted path below the block; empty for the block itself."""
    side: Literal["output", "input"]
    """Whether it is the module's output or its first input."""
    scale: float
    """The activation is this times what flows there."""


def place_in_block(block: nn.Module, kind: str) -> Place:
    """Place of `kind` in `block`.

    `attn_out` and `mlp_out` are what the block adds to the residual, so that
    ``resid_post - resid_pre = attn_out + mlp_out`` in every pre-norm or sandwich-norm block.
    Raises SiteError with the reason where the block has no such place or it cannot be told from the structure.
    """
    if streams := children_named(block, SEVERAL_STREAMS):
        raise SiteError(f"{type(block).__name__} keeps several residual streams (`{streams[0]}`), not [B, S, d]")
    block_class = type(block).__name__
    if reason := BLOCK_LACKS.get(block_class, {}).get(kind):
        raise SiteError(f"{block_class} has no {kind}: {reason}")
    if kind == "resid_pre":
        return Place("", "input", 1.0)
    if kind == "resid_post":
        return Place("", "output", 1.0)
    find = {"attn_out": _attn_out, "mlp_in": _mlp_in, "mlp_out": _mlp_out, "resid_mid": _resid_mid}[kind]
    path, _, side = (BLOCK_PLACES.get(block_class, {}).get(kind) or find(block)).partition(":")
    contribution = kind in ("attn_out", "mlp_out")
    return Place(path, "input" if side else "output", _scale(block) if contribution else 1.0)


def _branches(block: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The names under which `block` has one module; a list of modules is refused, since it has no single place."""
    branches = children_named(block, names)
    for name in branches:
        if isinstance(getattr(block, name), nn.ModuleList):
            raise SiteError(f"{type(block).__name__} has a list of modules under `{name}`, which have module paths")
    return branches


def heads_in_block(block: nn.Module) -> str:
    """Path of the attention's output projection, whose input is what the heads put out.

    Raises:
        SiteError: the block has no attention, or none whose projection has a known name.
    """
    for attention in _branches(block, ATTENTION):
        for projection in PROJECTIONS:
            if _has(block, f"{attention}.{projection}"):
                return f"{attention}.{projection}"
    raise SiteError(f"{type(block).__name__} has no attention with one of {', '.join(PROJECTIONS)}")


def norm_before_mlp(block: nn.Module) -> str:
    """Path of the norm whose output the MLP reads.

    Raises:
        SiteError: the block has none by a known name.
    """
    if norms := children_named(block, PRE_MLP):
        return norms[0]
    raise SiteError(f"{type(block).__name__} has no norm before the MLP, one of {', '.join(PRE_MLP)}")


def _normalises_sums(block: nn.Module) -> bool:
    """Whether the norms named as in a sandwich stand after each sum instead: no other norm is there (GTE)."""
    names = ("post_attention_layernorm", "post_mlp_layernorm")
    norms = [name for name, part in block.named_children() if "norm" in type(part).__name__.lower()]
    return sorted(norms) == sorted(names)


def _has(block: nn.Module, path: str) -> bool:
    for name in path.split("."):
        block = getattr(block, name, None)  # type: ignore[assignment]
    return isinstance(block, nn.Module)


def _scale(block: nn.Module) -> float:
    """The factor of both branches. Refuses blocks with parts whose effect on the branches is not known, so that an
    unknown family is refused and not misread."""
    tensors = [name for name, _ in (*block.named_parameters(recurse=False), *block.named_buffers(recurse=False))]
    # Gemma 4 multiplies the finished residual by `layer_scalar`, both branches and what came in alike.
    unknown = [name for name in tensors if name != "layer_scalar"]
    known = BRANCHES.union(POST_ATTENTION, POST_MLP, OTHER_PARTS)
    if type(block).__name__ not in BLOCK_PLACES:
        unknown += [name for name, part in block.named_children() if name not in known and not _is_plain(part)]
    if _has(block, "output.dense"):  # BERT's blocks add inside `output`, XMOD's adapters too
        parts = dict(getattr(block, "output").named_children())  # noqa: B009 - a module's attribute may be a tensor
        unknown += [f"output.{name}" for name, part in parts.items() if name != "dense" and not _is_plain(part)]
    factors = [name for name in vars(block) if name.endswith(FACTOR_ENDINGS) and name not in RESIDUAL_SCALES]
    unknown += [name for name in factors if isinstance(getattr(block, name), (int, float))]
    if unknown:
        raise SiteError(f"{type(block).__name__} also uses `{'`, `'.join(unknown)}`: its contribution is not known")
    for name in RESIDUAL_SCALES:
        if isinstance(value := getattr(block, name, None), (int, float)):
            return float(value)
    return 1.0


def _is_plain(part: nn.Module) -> bool:
    """Norms, dropouts and activations: they stand before a branch or behind the sum, or do nothing in evaluation."""
    name = type(part).__name__.lower()
    return "norm" in name or "drop" in name or isinstance(part, nn.Identity)


def _attn_out(block: nn.Module) -> str:
    attention, mixers = _branches(block, ATTENTION), _branches(block, MIXERS)
    if not attention:
        instead = (
            f"its token mixer is `{mixers[0]}`, which has a module path" if mixers else f"its parts are {_parts(block)}"
        )
        raise SiteError(f"{type(block).__name__} has no attention ({instead})")
    if len(attention + mixers) > 1:
        raise SiteError(f"{type(block).__name__} adds several modules at once: {', '.join(attention + mixers)}")
    if norms := children_named(block, POST_ATTENTION):
        return norms[0]
    if children_named(block, SANDWICH) and not _normalises_sums(block) and _has(block, "post_attention_layernorm"):
        return "post_attention_layernorm"
    if _has(block, f"{attention[0]}.output.dense"):  # BERT: the sum and its norm are inside `attention.output`
        return f"{attention[0]}.output.dense"
    if _has(block, f"{attention[0]}.attn") and _has(block, f"{attention[0]}.LayerNorm"):  # MPNet likewise
        return f"{attention[0]}.attn"
    return attention[0]


def _mlp(block: nn.Module) -> str:
    """The feed-forward module, or "" where the block holds its linear layers itself (OPT, BERT)."""
    mlps = _branches(block, MLPS)
    if not mlps and not _has(block, "fc2") and not _has(block, "intermediate"):
        raise SiteError(f"{type(block).__name__} has no MLP (its parts are {_parts(block)})")
    return mlps[0] if mlps else ""


def _mlp_in(block: nn.Module) -> str:
    return f"{_mlp(block) or ('fc1' if _has(block, 'fc2') else 'intermediate')}:in"


def _mlp_out(block: nn.Module) -> str:
    mlp = _mlp(block)
    if (norms := children_named(block, POST_MLP)) and not _normalises_sums(block):
        return norms[0]
    if len(mlps := children_named(block, MLPS)) > 1:
        raise SiteError(f"{type(block).__name__} adds several modules at once: {', '.join(mlps)}")
    return mlp or ("fc2" if _has(block, "fc2") else "output.dense")


def _resid_mid(block: nn.Module) -> str:
    _mlp(block)
    if getattr(block, "use_parallel_residual", False):
        raise SiteError(f"{type(block).__name__} runs attention and MLP in parallel, from the same residual")
    if (norms := children_named(block, PRE_MLP)) and not _normalises_sums(block):
        # OLMo 2 and EXAONE 4 have no norm before the MLP: it reads the residual itself.
        reads_residual = norms == ["post_attention_layernorm"] and _has(block, "post_feedforward_layernorm")
        return _mlp_in(block) if reads_residual else f"{norms[0]}:in"
    if _has(block, "fc2") and getattr(block, "do_layer_norm_before", False):  # OPT
        return "final_layer_norm:in"
    raise SiteError(f"{type(block).__name__} has no residual between attention and MLP (parallel, or post-norm)")


def _parts(block: nn.Module) -> str:
    return ", ".join(name for name, _ in block.named_children())
