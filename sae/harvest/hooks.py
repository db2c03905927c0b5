"""Read activations at sites, and replace them, with plain forward hooks on a transformers model.

    acts = harvest_forward(model, {"input_ids": ids}, sites)      # {site name: [B, S, d]}, stops at the last site
    with splice(model, {site: lambda x: sae(x)}):
        logits = model(input_ids=ids).logits

Shapes: B batch rows, S tokens (or patches), d the width at the site.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from sae.harvest.sites import Site, SiteError

Replacement = Callable[[Tensor], Tensor]
"""Maps an activation [B, S, d] to its replacement of the same shape."""
Visit = Callable[[Tensor], Tensor | None]
"""Gets an activation [B, S, d]; returns its replacement of the same shape, or None to leave it."""


class Stopped(Exception):  # noqa: N818 - it reports no error
    """Ends a forward once every site has been reached."""


class Captured:
    """The activations that `capture` collects: one entry per site that the latest forward has reached."""

    activations: dict[str, Tensor]
    """Site name -> [B, S, d], detached, in the model's dtype and on its device. Each forward starts a new dict."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], stop: bool) -> None:
        self._model, self._stop = model, stop
        self._widths = {site.name: site.width for site in sites}
        self._names = set(self._widths)
        # Keys and values of past tokens are of no use in a pass over whole contexts.
        self._defaults = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        self._start()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the model on `inputs` without gradients and return all activations of this forward.

        Raises SiteError when the forward ends and a site has not been reached, or has not one row for each token.
        """
        # Not inference_mode: a trainer may use these tensors in a graph.
        with torch.no_grad(), suppress(Stopped):
            self._model(**{**self._defaults, **inputs})
        return self.checked(inputs)

    def checked(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """All activations of the latest forward, which was of `inputs`; raises SiteError as `run` does."""
        if missed := sorted(self._names - self.activations.keys()):
            raise SiteError(f"this forward of {type(self._model).__name__} never reached {', '.join(missed)}")
        if "pixel_values" not in inputs and "input_ids" in inputs:
            self._check_rows(tuple(inputs["input_ids"].shape))
        return self.activations

    def _check_rows(self, tokens: tuple[int, ...]) -> None:
        """Refuse what is not one vector a token, of the width expected (prompts in front, several streams)."""
        for name, activation in self.activations.items():
            if tuple(activation.shape[:2]) != tokens:
                raise SiteError(
                    f"{name} of {type(self._model).__name__} has {tuple(activation.shape[:2])} rows for {tokens}"
                    " tokens: its rows are not the tokens"
                )
            if self._widths[name] not in (None, activation.shape[-1]):
                raise SiteError(
                    f"{name} of {type(self._model).__name__} is {activation.shape[-1]} wide, expected"
                    f" {self._widths[name]}: it is not the one vector of a token"
                )

    def _start(self) -> None:
        self.activations = {}
        self._pending = set(self._names)

    def _take(self, site: Site, activation: Tensor) -> None:
        self._pending.discard(site.name)
        stopping = self._stop and not self._pending
        scaled = activation if site.scale == 1.0 else activation * site.scale
        # What runs after this hook may write into the same memory (Falcon: `mlp_output += attention_output`; residual
        # sums in place), so it is copied, unless nothing runs after it or scaling has copied it.
        kept = scaled if stopping or scaled is not activation else scaled.clone()
        self.activations[site.name] = kept.detach()
        if stopping:
            raise Stopped


@contextmanager
def capture(model: nn.Module, sites: Sequence[Site], *, stop: bool = True) -> Iterator[Captured]:
    """Within the block, every forward of `model` fills ``captured.activations``.

    With `stop`, a forward ends as soon as it has reached every site: later layers and the head never run. Use
    ``captured.run(inputs)``, any number of times. A plain ``model(...)`` works too; when it is stopped, the rest of
    the with block is skipped.

    `model` is the module in which the sites were resolved, and the one to call. Hooks are removed on every way out.
    Raises SiteError, inside the forward, for an activation that isn't [B, S, d] or [B*S, d].
    """
    captured = Captured(model, sites, stop)
    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(lambda *_: captured._start()).remove)
        for site in dict.fromkeys(sites):
            _attach(hooks, model, _SiteHook(site, partial(captured._take, site)))
        with suppress(Stopped):
            yield captured


def harvest_forward(model: nn.Module, inputs: Mapping[str, Any], sites: Sequence[Site]) -> dict[str, Tensor]:
    """Activations of one forward: site name -> [B, S, d], detached. Later layers and the head don't run.

    Raises SiteError where `capture` and `Captured.run` do.
    """
    with capture(model, sites) as captured:
        return captured.run(inputs)


@contextmanager
def splice(model: nn.Module, replacements: Mapping[Site, Replacement]) -> Iterator[None]:
    """Within the block, forwards of `model` (also those of ``generate``) use the replaced activations.

    Each callable gets the activation [B, S, d] (in generation S tokens first, then one at a time) and returns one of
    the same shape; it is cast to the model's dtype. At `attn_out` and `mlp_out` it is the contribution to the residual
    that is replaced: where the model scales that (Granite), the result is divided by the scale.

    Raises SiteError at once for `resid_mid`, and inside the forward for a result of another shape.
    """
    for site in replacements:
        check_replaceable(site)
    with visit(model, replacements):
        yield


def check_replaceable(site: Site) -> None:
    """Refuse a site that can only be read (SiteError)."""
    if site.kind == "resid_mid":
        raise SiteError(f"{site.name} can be read but not replaced: the block holds that tensor outside any module")


@contextmanager
def visit(model: nn.Module, visits: Mapping[Site, Visit]) -> Iterator[None]:
    """`splice`, in which a callable may also return None to leave the activation as it is.

    Unlike `capture` it gives activations with their gradients, and in the model's own memory: what is kept must be
    copied, since the model may write there later. Raises SiteError inside the forward for a result of another shape.
    """
    with ExitStack() as hooks:
        for site, one in visits.items():
            _attach(hooks, model, _SiteHook(site, partial(_visited, site, one)))
        yield


def _visited(site: Site, one: Visit, activation: Tensor) -> Tensor | None:
    new = one(activation if site.scale == 1.0 else activation * site.scale)
    if new is None:
        return None
    if new.shape != activation.shape:
        raise SiteError(
            f"the replacement at {site.name} must have shape {tuple(activation.shape)}, got {tuple(new.shape)}"
        )
    return (new if site.scale == 1.0 else new / site.scale).to(activation.dtype)


class _SiteHook:
    """Calls `visit` with a site's activation [B, S, d]; a tensor that it returns takes the activation's place."""

    def __init__(self, site: Site, visit: Callable[[Tensor], Tensor | None]) -> None:
        self.site, self.visit = site, visit
        self.calls = 0
        self.block_rows: tuple[int, ...] | None = None  # (B, S) of the enclosing block's running call

    def restart(self, *_: Any) -> None:
        """Forward pre-hook of the model."""
        self.calls = 0

    def before_block(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of the block around the site."""
        _, hidden = _first_input(module, args, kwargs, self.site)
        self.block_rows = tuple(hidden.shape[:2])

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Forward pre-hook of the site's module, for an input."""
        key, tensor = _first_input(module, args, kwargs, self.site)
        new = self._visit(tensor)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: new})

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Forward hook of the site's module, for an output."""
        new = self._visit(first_output(output, self.site.name))
        return None if new is None else with_first(output, new)

    def _visit(self, tensor: Tensor) -> Tensor | None:
        call, self.calls = self.calls, self.calls + 1
        if self.site.call not in (None, call):
            return None
        new = self.visit(self._batched(tensor))
        return None if new is None else new.reshape(tensor.shape)

    def _batched(self, tensor: Tensor) -> Tensor:
        """[B, S, d] from [B, S, d] or from flat [B*S, d]; outside the blocks [R, d] is one position per row."""
        rows = self.block_rows or tuple(tensor.shape[: 1 if tensor.ndim == 2 else 2])
        if tensor.ndim == 2 and len(tensor) == math.prod(rows):
            return tensor.reshape(rows[0], -1, tensor.shape[-1])
        if tensor.ndim == 3 and tensor.shape[:2] == rows:
            return tensor
        raise SiteError(
            f"the tensor at {self.site.name} must be [B, S, d] or [B*S, d] with (B, S) = {rows}, got shape"
            f" {tuple(tensor.shape)}: its rows are not the tokens (heads, experts and chunks can't be sites)"
        )


def _attach(hooks: ExitStack, model: nn.Module, hook: _SiteHook) -> None:
    site, module = hook.site, model.get_submodule(hook.site.path)
    hooks.callback(model.register_forward_pre_hook(hook.restart).remove)
    if site.block is not None and site.block != site.path:
        block = model.get_submodule(site.block)
        hooks.callback(block.register_forward_pre_hook(hook.before_block, with_kwargs=True).remove)
    if site.side == "input":
        hooks.callback(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
    else:
        hooks.callback(module.register_forward_hook(hook.after).remove)


def _first_input(module: nn.Module, args: tuple, kwargs: dict, site: Site) -> tuple[str | None, Tensor]:
    """The tensor that goes in, and its keyword (None for a positional argument)."""
    key = None if args else next(iter(inspect.signature(module.forward).parameters))
    tensor = args[0] if args else kwargs.get(key)
    if not isinstance(tensor, Tensor):
        raise SiteError(f"the first input at {site.name} is a {type(tensor).__name__}, not a tensor")
    return key, tensor


def first_output(output: Any, place: str) -> Tensor:
    """The tensor that comes out at `place`. By type: ``output[0]`` of a tensor would be batch row 0."""
    first = output
    if isinstance(output, ModelOutput):
        first = next(iter(output.values()))
    elif isinstance(output, (tuple, list)) and output:
        first = output[0]
    if not isinstance(first, Tensor):
        raise SiteError(f"the output at {place} is a {type(output).__name__} without a tensor in front")
    return first


def with_first(output: Any, new: Tensor) -> Any:
    """A copy of `output` with its first tensor replaced, of the same type."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, ModelOutput):
        output = copy.copy(output)
        output[next(iter(output))] = new
        return output
    items = [new, *output[1:]]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
