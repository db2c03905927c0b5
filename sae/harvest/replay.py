"""Forward passes that begin in the middle of a model, from a clean pass over the same tokens.

    passes = Passes(model)
    passes.verify(inputs, sites)                          # settles how much of the model each pass needs
    clean = passes.clean(inputs, sites, [sites])          # one pass, activations and last hidden states
    hidden = passes.spliced(clean, {site: replacement})   # the blocks behind the site alone
    logits = passes.logits(hidden[:, -1])                 # the head alone, on any rows

The model's own forward runs in every pass, so masks, positions, the final norm and the head are the family's code; the
blocks in front of the first site return at once what they returned in the clean pass. Where a family hands on more than
blocks return (keys and values shared between layers, for instance), a replay of the clean pass differs from it:
`verify` notices, and every pass then begins at the embedding.

Letters: B contexts, S tokens in a context, d width of the residual stream, V vocabulary, n rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae.harvest.blocks import Blocks, find_blocks
from sae.harvest.hooks import Replacement, Stopped, capture, first_output, splice, with_first
from sae.harvest.sites import Site, SiteError

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest difference of a replay from the clean pass, relative to the largest value, by the model's dtype."""
HALF_TOLERANCE = 1e-2  # of the half precisions, whose products of other shapes round differently
PROBE_TOKENS = 64  # tokens on which the whole model's logits are compared


class Clean(NamedTuple):
    """What one clean pass leaves for others to begin from."""

    inputs: Mapping[str, Any]
    """Keyword arguments of the model."""
    activations: dict[str, Tensor]
    """Site name -> [B, S, d], in the model's dtype."""
    hidden: Tensor
    """Last hidden states [B, S, d], which the head reads; the logits [B, S, V] where the head does not run alone."""
    states: dict[int, Tensor]
    """Number of the first block that runs -> what the block in front of it put out, [B, S, d]."""
    shapes: dict[int, Any]
    """Number of a block -> what it returned, with an empty first tensor."""

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, bytes."""
        tensors = {id(t): t for t in (*self.activations.values(), *self.states.values(), self.hidden)}
        return sum(t.nbytes for t in tensors.values())


class Passes:
    """Clean and spliced forward passes of a transformers model, without gradients.

    Args:
        model: with a language modelling head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.whole: str | None = None
        """Why passes begin at the embedding; None where they begin at the site."""
        self.head_joined: str | None = "not verified"
        """Why the head only runs with the model around it; None where it runs on any rows."""
        self._body: nn.Module = model
        self._blocks: Blocks | None = None
        try:
            self._blocks = find_blocks(model)
        except SiteError as error:
            self.whole = str(error)
        self._ending: Any = None  # what the body returned, with an empty first tensor
        self._defaults = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    @torch.no_grad()
    def verify(self, inputs: Mapping[str, Any], places: Sequence[Sequence[Site]]) -> None:
        """Compare replays with whole passes on one batch; where they differ, fall back and say why.

        Args:
            inputs: keyword arguments of the model; a single context is enough.
            places: sites that are replaced together; a replay is tried for each of them.
        """
        self._find_head(inputs)
        for sites in places:
            if self.whole is None and self.start(sites):
                names = ", ".join(site.name for site in sites)
                self.whole = self._tried(
                    lambda sites=sites: self._compare_replay(inputs, sites), f"a replay at {names}"
                )

    def start(self, sites: Sequence[Site]) -> int:
        """Number of the first block that runs when these sites are replaced; the blocks in front are not computed."""
        return 0 if self.whole is not None else min((self._first_block(site) for site in sites), default=0)

    @torch.no_grad()
    def clean(self, inputs: Mapping[str, Any], sites: Sequence[Site], places: Sequence[Sequence[Site]] = ()) -> Clean:
        """One pass over whole contexts.

        Args:
            inputs: keyword arguments of the model, `input_ids` [B, S] among them.
            sites: whose activations are kept.
            places: sites that will be replaced together later on; the states that such passes begin from are kept.

        Raises:
            SiteError: see `capture`.
        """
        starts = {start for some in places if (start := self.start(some))}
        states: dict[int, Tensor] = {}
        shapes: dict[int, Any] = {}

        def record(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                first = first_output(output, f"block {number}")
                shapes[number] = with_first(output, first.new_empty(0))
                if number + 1 in starts:
                    # later blocks may write into the same memory
                    states[number + 1] = first.clone()

            return hook

        with ExitStack() as hooks:
            for number in range(max(starts, default=0)):
                hooks.callback(self._block(number).register_forward_hook(record(number)).remove)
            captured = hooks.enter_context(capture(self.model, sites, stop=False))
            hidden = self._run(inputs, hooks)
        return Clean(inputs, captured.checked(inputs), hidden, states, shapes)

    @torch.no_grad()
    def spliced(self, clean: Clean, replacements: Mapping[Site, Replacement]) -> Tensor:
        """Last hidden states [B, S, d] (or what `Clean.hidden` is) with activations replaced at some sites.

        Args:
            clean: of the same tokens; its `places` held these sites.
            replacements: site -> a callable that gets the activation there, as in `splice`.
        """
        start = self.start(list(replacements))
        with ExitStack() as hooks:
            for number in range(start):
                hooks.enter_context(_returning(self._block(number), clean.shapes[number], clean.states[start]))
            hooks.enter_context(splice(self.model, replacements))
            return self._run(clean.inputs, hooks)

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        """Logits [n, V] of rows [n, d] of last hidden states; rows of logits stay as they are."""
        if self.head_joined is not None:
            return rows
        tokens = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
        with _returning(self._body, self._ending, rows[None]):
            return self.model(input_ids=tokens, **self._defaults).logits[0]

    def _run(self, inputs: Mapping[str, Any], hooks: ExitStack) -> Tensor:
        """What the head reads, or the logits where the head only runs with the model around it."""
        inputs = {**self._defaults, **inputs}
        if self.head_joined is not None:
            return self.model(**inputs).logits
        result: list[Tensor] = []

        def stop(module: nn.Module, args: tuple, output: Any) -> None:
            first = first_output(output, "the body's end")
            self._ending = with_first(output, first.new_empty(0))
            result.append(first)
            raise Stopped

        hooks.callback(self._body.register_forward_hook(stop).remove)
        with suppress(Stopped):
            self.model(**inputs)
        if not result:
            raise SiteError(f"a forward of {type(self.model).__name__} did not reach the end of its body")
        return result[0]

    def _block(self, number: int) -> nn.Module:
        assert self._blocks is not None  # else every start is 0
        return self.model.get_submodule(self._blocks.block(number)[0])

    def _first_block(self, site: Site) -> int:
        blocks = self._blocks
        if blocks is None or blocks.n_modules != blocks.n_layers or site.block is None or site.layer is None:
            return 0
        return site.layer + (site.path == site.block and site.side == "output")

    def _tried(self, compare: Callable[[], bool], what: str) -> str | None:
        """None where a comparison holds, else the reason why not."""
        name = type(self.model).__name__
        try:
            return None if compare() else f"{what} of {name} differs from the whole pass"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # families raise many types where a part runs without the rest
            said = " ".join(str(error).split()) or type(error).__name__
            return f"{what} of {name} fails: {said[:200]}"

    def _find_head(self, inputs: Mapping[str, Any]) -> None:
        """The body is the outermost module around the blocks that the head's class calls (OPT calls an inner one)."""
        parts = self._blocks.path.split(".") if self._blocks else []
        self.head_joined = f"{type(self.model).__name__} has no body around its blocks"
        for depth in range(1, len(parts)):
            self._body, self.head_joined = self.model.get_submodule(".".join(parts[:depth])), None
            self.head_joined = self._tried(lambda: self._compare_head(inputs), "the head alone")
            if self.head_joined is None:
                return

    def _compare_head(self, inputs: Mapping[str, Any]) -> bool:
        length = inputs["input_ids"].shape[1]
        short = {name: _shortened(value, length) for name, value in inputs.items()}
        expected = self.model(**{**self._defaults, **short}).logits[0]
        with ExitStack() as hooks:
            hidden = self._run(short, hooks)
        return _same(self.logits(hidden[0]), expected)

    def _compare_replay(self, inputs: Mapping[str, Any], sites: Sequence[Site]) -> bool:
        clean = self.clean(inputs, sites, [sites])
        again = self.spliced(clean, {site: _constant(clean.activations[site.name]) for site in sites})
        return _same(again, clean.hidden)


def _constant(activation: Tensor) -> Replacement:
    return lambda _: activation


def _shortened(value: Any, length: int) -> Any:
    """An input of the first context's first tokens: all axes of `length` cut, one context kept."""
    if not isinstance(value, Tensor):
        return value
    short = value[:1]
    for axis in range(1, short.ndim):
        if short.shape[axis] == length:
            short = short.narrow(axis, 0, min(PROBE_TOKENS, length))
    return short


def _same(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = TOLERANCE.get(theirs.dtype, HALF_TOLERANCE)
    if ours.shape != theirs.shape:
        return False
    if torch.equal(ours, theirs):
        return True
    ours, theirs = ours.float(), theirs.float()
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


@contextmanager
def _returning(module: nn.Module, shape: Any, first: Tensor) -> Iterator[None]:
    """Within the block, `module` computes nothing and returns `shape` with a copy of `first` in front."""
    # an instance may carry a forward of its own (accelerate's)
    before = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: with_first(shape, first.clone())
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
