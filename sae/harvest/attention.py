"""The route by which a forward pass keeps documents apart that share a context, chosen by what model and device can do.

    attention = choose_attention(lm.model, context=1024, asked="auto")
    with attention.applied():
        model(**model_inputs(model, contexts, attention.isolation))

| route | documents in a context | attention is computed |
|---|---|---|
| varlen | several | within each, by torch's varlen flash kernel: no mask, no work between documents |
| flex | several | by `flex_attention`, compiled with a block-diagonal causal mask |
| masked | several | as transformers does by default, with a mask [B, 1, S, S] |
| padded | one, then padding | as transformers does by default |

A route counts as possible when a trial on this model and device gives the hidden states of each document alone, as the
model computes them by default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from sae.config import ConfigError
from sae.data.isolation import Isolation, choose_isolation, compare_isolated, isolates_documents
from sae.harvest.varlen import VARLEN

Route = Literal["varlen", "flex", "masked", "padded"]
IMPLEMENTATIONS: dict[Route, str] = {"varlen": VARLEN, "flex": "flex_attention"}
"""Route -> the implementation of transformers that it uses; the others use the model's default."""
ON_GPU: tuple[Route, ...] = ("varlen", "flex")
"""What auto tries on a GPU, the fastest first. On a CPU it takes the default implementation."""


class Attention(NamedTuple):
    """How a model's passes keep documents apart."""

    route: Route
    isolation: Isolation
    """What its inputs need, for `model_inputs`."""
    why: str
    """A clause, such as "--attention" or "padded: the model has ALiBi"."""
    model: Any

    def line(self) -> str:
        """One line for the user."""
        kept = "have a context each" if self.route == "padded" else "share contexts and do not see each other"
        return f"Documents {kept}: {self.route} attention ({self.why}); --attention sets another."

    def record(self) -> dict[str, str]:
        """JSON values for the records of a run and a store."""
        return {"route": self.route, "why": self.why}

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Within the block, forward passes of the model take this route."""
        name = IMPLEMENTATIONS.get(self.route)
        return contextlib.nullcontext() if name is None else _implementation(self.model, name)


def choose_attention(model: Any, context: int, asked: str = "auto") -> Attention:
    """The route that is asked for; for auto the fastest that this model and device can take.

    Args:
        model: of transformers.
        context: tokens in the contexts to come.
        asked: auto, or a route.

    Raises:
        ConfigError: the model or the device cannot take the route; says why.
        IsolationError: see `choose_isolation`.
    """
    if asked == "padded":
        if not isolates_documents(model, context, "pad"):
            raise ConfigError(f"--attention padded: padding changes what {type(model).__name__} computes; try auto")
        return Attention("padded", "pad", "--attention", model)
    isolation = choose_isolation(model, context)
    default: Route = "padded" if isolation == "pad" else "masked"
    if asked == "masked" and default == "padded":
        raise ConfigError(f"--attention masked: no mask cuts the attention of {type(model).__name__}; try padded")
    if asked == "masked":
        return Attention("masked", isolation, "--attention", model)
    device = next(model.parameters()).device
    if asked in IMPLEMENTATIONS:
        route: Route = asked  # pyright: ignore[reportAssignmentType]
        if reason := refusal(model, context, route, isolation):
            raise ConfigError(f"--attention {asked}: {reason}; try auto, which takes {default} here")
        return Attention(route, isolation, "--attention", model)
    if device.type != "cuda":
        return Attention(default, isolation, f"on a {device.type}", model)
    reasons = []
    for route in ON_GPU:
        reason = refusal(model, context, route, isolation)
        if reason is None:
            return Attention(route, isolation, "; ".join(["the fastest that fits", *reasons]), model)
        reasons.append(f"not {route}: {reason}")
    return Attention(default, isolation, "; ".join(reasons), model)


def refusal(model: Any, context: int, route: Route, isolation: Isolation) -> str | None:
    """Why a model on its device cannot take varlen or flex; None where it can.

    Args:
        isolation: what the model's default implementation needs.
    """
    name = type(model).__name__
    if isolation != "positions":
        return f"{name} does not tell documents apart by their positions"
    if not getattr(model, "_supports_attention_backend", False):
        return f"the layers of {name} have an attention of their own"
    same = compare_isolated(model, context, isolation, lambda: _implementation(model, IMPLEMENTATIONS[route]))
    if same is True:
        return None
    return f"{name}: {same}" if same else f"{name} computes other hidden states that way"


def check_layout(place: object, measured: Mapping[str, Any] | None, attention: Attention) -> None:
    """Refuse to continue a store of packed documents with padded ones, or the other way round.

    Args:
        place: of the store.
        measured: what it records of its harvest; None or without isolation in stores of earlier versions.

    Raises:
        ConfigError: says what the store holds.
    """
    before = (measured or {}).get("isolation")
    if before is None or (before == "pad") == (attention.isolation == "pad"):
        return
    holds, remedy = ("one document a context", "pass") if before == "pad" else ("packed contexts", "leave out")
    raise ConfigError(f"--attention {attention.route}: {place} holds {holds}; {remedy} --attention padded")


@contextlib.contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    """Within the block, all parts of the model use an attention implementation by its name in transformers."""
    parts: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(part): part for part in parts if hasattr(part, "_attn_implementation_internal")}
    before = {number: config._attn_implementation_internal for number, config in configs.items()}
    for config in configs.values():
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for number, config in configs.items():
            config._attn_implementation_internal = before[number]
