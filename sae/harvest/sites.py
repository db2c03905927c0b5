"""Names of places in a model: what a user writes becomes a Site that hooks can read and replace.

One place has several spellings: `resid_post.6` (ours; or `resid_post` with ``layer=6``), `blocks.6.hook_resid_post`
(TransformerLens), a module path (`model.layers.6`, with `:in` for its input), and patterns (`resid_*.6`,
`model.layers.*.mlp`), in which `*` does not cross a dot.

    sites = resolve_sites(model, ["resid_post", "mlp_out.3"], layer=[6, 9])

Nothing here runs the model: a model built on the meta device resolves the same, so a wrong site is refused before
weights are loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from sae.harvest.blocks import Blocks, SiteError, find_blocks
from sae.harvest.places import BRANCHES, KINDS, heads_in_block, place_in_block

__all__ = ["KINDS", "Blocks", "Site", "SiteError", "find_blocks", "resolve_sites"]

LENS_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_in": "mlp_in",
    # Not `mlp_in`: TransformerLens puts this hook before the norm (components/transformer_block.py,
    # `self.ln2(self.hook_mlp_in(resid_mid))`), so its values are the residual's.
    "hook_mlp_in": "resid_mid",
}
"""TransformerLens hook -> kind. `ln2.hook_normalized` is left out: whether it comes before or after the norm's gain
depends on the norm and on weight folding, so it isn't one place."""

HEADS = re.compile(r"blocks\.(\d+)\.attn\.hook_z")
"""TransformerLens' name for what the heads put out, side by side: the input of the attention's output projection."""

WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place in one model. The activation there is ``scale`` x (what the module puts out or takes in)."""

    name: str
    """Canonical name: `resid_post.6`, or the module path where no kind fits, with `:in` for its input."""
    path: str
    """Dotted path of the hooked module."""
    side: Literal["output", "input"]
    """Which end of the module is meant. An output may be a tuple (its first item counts), an input is the first one."""
    kind: str | None
    """One of KINDS, or None for a module path."""
    layer: int | None
    """Layer from 0; None outside the stack of blocks."""
    block: str | None
    """Path of the block around the module; its input tells hooks B and S where a module works on flat [B*S, d]."""
    call: int | None
    """Which call of the module in a forward, where layers share a block (ALBERT); None takes every call."""
    width: int | None
    """d, the activation's last dimension; None where only a run can tell (a free module path to an odd module)."""
    scale: float
    """Factor between the hooked tensor and the activation (Granite's residual_multiplier), else 1."""

    def describe(self) -> dict[str, str | int | None]:
        """JSON values for the records of runs."""
        return {"name": self.name, "path": self.path, "width": self.width}


def resolve_sites(model: nn.Module, names: Sequence[str] | str, layer: int | Sequence[int] | None = None) -> list[Site]:
    """Turn names into sites: in the order given, a pattern's matches in the model's order, each site once.

    `layer` completes bare kinds (``resid_post``); a name with a layer of its own keeps it, but where no name is bare
    the layers must agree.

    Raises SiteError for a name or layer that the model doesn't have, naming what was given, what exists and the three
    nearest names; and, with the reason, for a kind that this family doesn't have.
    """
    resolver = _Resolver(model)
    layers = [layer] if isinstance(layer, int) else layer
    names = [names] if isinstance(names, str) else names
    sites = list(dict.fromkeys(site for name in names for site in resolver.resolve(name, layers)))
    if layers and not any(_from_lens(name) in KINDS for name in names):
        other = [site.name for site in sites if site.layer not in layers]
        if other:
            raise SiteError(f"layer={layer} contradicts {', '.join(other)}: give a bare kind or no layer")
    return sites


class _Resolver:
    """Resolves names in one model, from a list of all its sites of a known kind."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.sites: dict[str, Site] = {}
        self.reasons: dict[str, str] = {}  # name of a site that its block doesn't have -> why
        self.blocks, self.no_blocks = _try_blocks(model)
        for layer in range(self.blocks.n_layers if self.blocks else 0):
            for kind in KINDS:
                self._add_site(kind, layer)
        # Setdefault keeps the first of two kinds at one place, and of the layers that share a block.
        self.by_place: dict[tuple[str, str], Site] = {}
        for site in self.sites.values():
            if site.scale == 1.0:
                self.by_place.setdefault((site.path, site.side), site)

    def _add_site(self, kind: str, layer: int) -> None:
        assert self.blocks is not None  # there are layers
        block, call = self.blocks.block(layer)
        name = f"{kind}.{layer}"
        try:
            place = place_in_block(self.modules[block], kind)
        except SiteError as reason:
            self.reasons[name] = str(reason)
            return
        self.sites[name] = Site(
            name=name,
            path=f"{block}.{place.path}" if place.path else block,
            side=place.side,
            kind=kind,
            layer=layer,
            block=block,
            call=call,
            width=self.blocks.width,
            scale=place.scale,
        )

    def resolve(self, name: str, layers: Sequence[int] | None) -> list[Site]:
        if heads := HEADS.fullmatch(name):
            return [self._heads_site(name, int(heads[1]))]
        spelling = _from_lens(name)
        if spelling in KINDS:
            if not layers:
                raise SiteError(f"site {name!r} needs a layer: write {name}.L or pass layer=; {self._exists()}")
            return [self._kind_site(f"{spelling}.{layer}", f"{name}.{layer}") for layer in layers]
        if WILDCARDS.search(spelling):
            return self._pattern_sites(name, spelling)
        if spelling.partition(".")[0] in KINDS:
            return [self._kind_site(spelling, name)]
        path, is_input = spelling.removesuffix(":in"), spelling.endswith(":in")
        if path not in self.modules:
            raise self._unknown(name)
        return [self._path_site(path, "input" if is_input else "output")]

    def _kind_site(self, name: str, given: str) -> Site:
        if site := self.sites.get(name):
            return site
        if self.blocks is None:
            raise SiteError(f"site {given!r}: {self.no_blocks}")
        kind, _, layer = name.partition(".")
        if reason := self.reasons.get(name):
            others = ", ".join(other for other in KINDS if f"{other}.{layer}" in self.sites)
            here = f"Layer {layer} has {others}" if others else "Use module paths"
            raise SiteError(f"site {given!r} does not exist: {reason}. {here}")
        # Negative layers are refused too: in tools that count the embedding as a layer, -1 means another one.
        of_kind = [site for site in self.sites if site.startswith(f"{kind}.")] or list(self.sites)
        raise SiteError(f"site {given!r}: no layer {layer!r}; {self._exists()}; nearest: {_nearest(name, of_kind)}")

    def _heads_site(self, name: str, layer: int) -> Site:
        if self.blocks is None or layer >= self.blocks.n_layers:
            raise SiteError(f"site {name!r}: no layer {layer}; {self._exists()}")
        block, _ = self.blocks.block(layer)
        return self._path_site(f"{block}.{heads_in_block(self.modules[block])}", "input")

    def _path_site(self, path: str, side: Literal["output", "input"]) -> Site:
        if site := self.by_place.get((path, side)):
            return site
        stack = f"{self.blocks.path}." if self.blocks else None
        inside = stack is not None and path.startswith(stack)
        block = f"{stack}{path[len(stack) :].partition('.')[0]}" if stack and inside else None
        return Site(
            name=path if side == "output" else f"{path}:in",
            path=path,
            side=side,
            kind=None,
            layer=next((site.layer for site in self.sites.values() if site.block == block), None) if block else None,
            block=block,
            call=None,
            width=self._width(path, block, side),
            scale=1.0,
        )

    def _width(self, path: str, block: str | None, side: str) -> int | None:
        """Last dimension at one end of a module whose name or weights tell it; None where only a run can."""
        module = self.modules[path]
        if self.blocks and block and path.removeprefix(f"{block}.") in BRANCHES:
            return self.blocks.width
        if isinstance(module, nn.Linear):
            return module.out_features if side == "output" else module.in_features
        if isinstance(module, Conv1D):
            return module.nf if side == "output" else module.nx
        if isinstance(module, nn.Embedding):
            return module.embedding_dim if side == "output" else None
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter):
            return weight.shape[-1]
        return None

    def _pattern_sites(self, name: str, pattern: str) -> list[Site]:
        sites = [site for site_name, site in self.sites.items() if _matches(site_name, pattern)]
        side: Literal["output", "input"] = "input" if pattern.endswith(":in") else "output"
        paths = [path for path in self.modules if path and _matches(path, pattern.removesuffix(":in"))]
        sites += [self._path_site(path, side) for path in paths]
        if sites:
            return sites
        for refused, reason in self.reasons.items():
            if _matches(refused, pattern):
                raise SiteError(f"site {name!r} does not exist in any layer: {reason}")
        raise self._unknown(name)

    def _unknown(self, name: str) -> SiteError:
        pool = [*KINDS, *self.sites, *(path for path in self.modules if path)]
        return SiteError(
            f"no site {name!r} in {type(self.model).__name__}: {self._exists()}, or a module path, with ':in' for its"
            f" input; nearest: {_nearest(name, pool)}"
        )

    def _exists(self) -> str:
        if self.blocks is None:
            return self.no_blocks
        here = [kind for kind in KINDS if any(site.kind == kind for site in self.sites.values())]
        return f"layers 0..{self.blocks.n_layers - 1}, kinds {', '.join(here)}"


def _try_blocks(model: nn.Module) -> tuple[Blocks | None, str]:
    """The stack, or why there is none: module paths work without one."""
    try:
        return find_blocks(model), ""
    except SiteError as error:
        return None, str(error)


def _from_lens(name: str) -> str:
    """TransformerLens spelling -> ours; other names as they are. A hook that isn't one of our kinds is refused."""
    match = re.fullmatch(r"blocks\.([^.]+)\.(.*hook_.*)", name)
    if not match:
        return name
    layer, hook = match.groups()
    if hook not in LENS_HOOKS:
        known = ", ".join(f"blocks.L.{known}" for known in LENS_HOOKS)
        raise SiteError(
            f"site {name!r}: the TransformerLens hook {hook!r} is no site; nearest:"
            f" {_nearest(name, [f'blocks.{layer}.{known}' for known in LENS_HOOKS])}; known are {known}"
        )
    return f"{LENS_HOOKS[hook]}.{layer}"


def _matches(name: str, pattern: str) -> bool:
    """Like a shell's file names: `*` stays within one part of a dotted name."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _nearest(name: str, pool: Sequence[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, pool, n=3, cutoff=0.0))
