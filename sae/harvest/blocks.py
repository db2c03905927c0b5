"""The layer stack of a transformers model, found by structure.

    blocks = find_blocks(model)
    blocks.path, blocks.n_layers, blocks.final_norm       # "model.layers", 30, "model.norm"
    blocks.block(6)                                       # "model.layers.6", None

In nearly every family it is the one list of checkpointable layers in `get_decoder()`, as long as the config says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "final_norm", "layernorm")
FINAL_NORMS += ("post_layernorm", "ln_post", "embedding_norm")


class SiteError(ValueError):
    """A place that the model does not have, or that cannot be read or replaced as asked."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The layer stack of a model; every path is relative to the model it was found in."""

    path: str
    """Dotted path of the ModuleList."""
    n_layers: int
    """Layers as a forward sees them; ALBERT calls one block for many of them."""
    n_modules: int
    """Length of the ModuleList."""
    width: int
    """d_model: last dimension of the residual stream."""
    final_norm: str | None
    """Path of the norm after the last block; None where there is none (BERT)."""
    embedding: str | None
    """Path of the input embedding (the patch embedding in vision models)."""
    head: str | None
    """Path of the output head; None for models without one."""

    def block(self, layer: int) -> tuple[str, int | None]:
        """Path of the block that computes `layer`, and which of its calls in a forward does so (None: the only one)."""
        if self.n_modules == self.n_layers:
            return f"{self.path}.{layer}", None
        index = layer * self.n_modules // self.n_layers
        first_layer = -(-index * self.n_layers // self.n_modules)
        return f"{self.path}.{index}", layer - first_layer


def find_blocks(model: nn.Module) -> Blocks:
    """Find the layer stack of a transformers model (built on any device, meta included).

    In a model with a text and a vision tower this is the text decoder's; the vision tower's blocks are reached by
    module paths, or by passing the tower itself. Raises SiteError where no single stack stands out.
    """
    paths = {id(module): name for name, module in model.named_modules()}
    for root in _roots(model):
        config = _config(root, model)
        stacks = _stacks(root, config)
        if not stacks:
            continue
        if len(stacks) > 1:
            listed = ", ".join(paths[id(stack)] for stack in stacks)
            raise SiteError(f"{type(model).__name__} has several stacks of layers ({listed}): use module paths")
        path = paths[id(stacks[0])]
        return Blocks(
            path=path,
            n_layers=config.num_hidden_layers if _shares_blocks(config) else len(stacks[0]),
            n_modules=len(stacks[0]),
            width=config.hidden_size,
            final_norm=_final_norm(model, path),
            embedding=_accessor_path(model, "get_input_embeddings", paths),
            head=_accessor_path(model, "get_output_embeddings", paths),
        )
    raise SiteError(f"{type(model).__name__} has no list of blocks: use module paths")


def _roots(model: Any) -> Iterator[nn.Module]:
    """Modules to search, best first: `get_decoder()` is the language model of a multimodal model, but the prediction
    head of ModernBERT's masked LM is also called `decoder`."""
    if hasattr(model, "get_decoder"):
        yield model.get_decoder()
    yield model


def _config(root: nn.Module, model: nn.Module) -> Any:
    config: Any = getattr(root, "config", None) or getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _stacks(root: nn.Module, config: Any) -> list[nn.ModuleList]:
    lists = [module for _, module in text_modules(root) if isinstance(module, nn.ModuleList) and len(module)]
    if getattr(config, "model_type", None) == "albert":
        # One group of weights serves several layers. Larger groups have no paths for their inner layers' parts.
        return [stack for stack in lists if _shares_blocks(config) and type(stack[0]).__name__ == "AlbertLayerGroup"]
    layers = [stack for stack in lists if all(isinstance(x, GradientCheckpointingLayer) for x in stack)]
    right_length = [stack for stack in lists if len(stack) == getattr(config, "num_hidden_layers", None)]
    # The length is not always the config's: a decoder cut out of BART has decoder_layers, LongCat counts half layers.
    # Models with code of their own don't use transformers' layer class; then the length alone has to do.
    return [stack for stack in layers if stack in right_length] or layers or right_length


def _shares_blocks(config: Any) -> bool:
    """Whether fewer blocks than layers are there, each computing several layers in turn (ALBERT)."""
    return getattr(config, "model_type", None) == "albert" and config.inner_group_num == 1


def text_modules(module: nn.Module, path: str = "", main_input: str | None = None) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of all modules, without those of towers inside the model that read something else (images).

    A tower is recognised by its main input, or, if it has none, by a config without a vocabulary.
    """
    main_input = main_input or getattr(module, "main_input_name", "input_ids")
    yield path, module
    for name, child in module.named_children():
        wordless = False
        if main_input == "input_ids" and isinstance(config := getattr(child, "config", None), PreTrainedConfig):
            wordless = not hasattr(config.get_text_config(), "vocab_size")
        if not wordless and getattr(child, "main_input_name", main_input) == main_input:
            yield from text_modules(child, f"{path}.{name}" if path else name, main_input)


def _final_norm(model: nn.Module, stack_path: str) -> str | None:
    """The norm is beside the stack (`model.norm`) or one of its ancestors (`post_layernorm` beside `encoder`)."""
    parts = stack_path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:depth])
        if norms := children_named(model.get_submodule(parent), FINAL_NORMS):
            return f"{parent}.{norms[0]}" if parent else norms[0]
    return None


def _accessor_path(model: nn.Module, accessor: str, paths: dict[int, str]) -> str | None:
    try:
        module = getattr(model, accessor)()
    except (AttributeError, NotImplementedError):  # what transformers raises for a model without embeddings of tokens
        return None
    return paths.get(id(module))


def children_named(block: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The names under which `block` has a submodule, in the order of `names`."""
    # Hybrid models keep a child that a layer does not use as None.
    return [name for name in names if isinstance(getattr(block, name, None), nn.Module)]
