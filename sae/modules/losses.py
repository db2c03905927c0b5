"""Loss terms: plain functions that return one value a sample, summed over dimensions; the loss is their weighted mean.

    @term
    def l1(entries: Entries) -> Tensor:
        return entries.codes.per_token(entries.codes.values)

    loss, parts = total_loss([Term("squared_error"), Term("l1", 0.1)], everything)

The annotation of a term's first parameter is its view (`sae.modules.views`): what the term may read, and with that
which routes can train it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sae.config import ConfigError, unknown_choice
from sae.modules.views import VIEWS, DeadRows, Entries, Everything, Reconstructions, SquaredError


class Term(NamedTuple):
    """One weighted term of a loss."""

    name: str
    """In `TERMS`."""
    weight: float = 1.0
    settings: Mapping[str, Any] = {}
    """Further arguments of the term's function."""
    warmup: float = 0.0
    """Share of the steps over which its weight rises from zero."""

    @property
    def view(self) -> type:
        """The class of what it reads, one of `VIEWS`."""
        return find_term(self.name).view

    def of(self, view: object) -> Any:
        """What the term's function returns for its view."""
        return find_term(self.name).function(view, **self.settings)

    def values(self, everything: Everything) -> Tensor:
        """The term, unweighted [N]; terms that return a value a row are summed over the rows of a sample.

        Terms of dead rows are zero where no latent is dead.
        """
        samples = len(everything.output.target)
        if self.view is DeadRows and not everything.any_dead:
            return everything.x.new_zeros(samples)
        values = self.of(everything.view(self.view))
        if isinstance(values, SquaredError):
            return everything.error(values)
        return values if len(values) == samples else values.view(samples, -1).sum(1)

    def at(self, progress: float) -> Term:
        """The term with the weight it has when this share of the steps is done."""
        return self if progress >= self.warmup else self._replace(weight=self.weight * progress / self.warmup)


class Entry(NamedTuple):
    """What `TERMS` holds under a name."""

    function: Callable[..., Tensor | SquaredError]
    view: type
    """The class of its first parameter."""


TERMS: dict[str, Entry] = {}
Function = TypeVar("Function", bound=Callable[..., Tensor | SquaredError])


def term(function: Function) -> Function:
    """Decorator: registers a function as a loss term under its own name, with the view that its first parameter names.

    Raises:
        ConfigError: the name is taken, or the first parameter's annotation is missing or no view.
    """
    name = function.__name__
    if name in TERMS:
        raise ConfigError(f"loss term {name!r} is registered already")
    first = next(iter(function.__code__.co_varnames[: function.__code__.co_argcount]), None)
    try:
        view = typing.get_type_hints(function).get(first or "")
    except NameError as error:
        raise ConfigError(f"loss term {name!r}: {error}; import the classes of its annotations") from error
    if view is None or view not in VIEWS.values():
        got = "no annotation" if view is None else getattr(view, "__name__", repr(view))
        raise ConfigError(
            f"loss term {name!r}: the annotation of its first parameter says what it reads; expected one of "
            f"{', '.join(VIEWS)} (sae.modules.views), got {got}"
        )
    TERMS[name] = Entry(function, view)
    return function


def find_term(name: str) -> Entry:
    """The registered term.

    Raises:
        ConfigError: no term has that name; lists those that exist.
    """
    if name not in TERMS:
        raise unknown_choice("loss term", name, TERMS)
    return TERMS[name]


def total_loss(terms: Sequence[Term], everything: Everything) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms' means over samples, and each unweighted mean (detached, 0-dim)."""
    parts: dict[str, Tensor] = {}
    loss = torch.zeros((), device=everything.x.device)
    for entry in terms:
        mean = entry.values(everything).mean()
        parts[entry.name] = mean.detach()
        loss = loss + entry.weight * mean
    return loss, parts


@term
def squared_error(_: Reconstructions) -> SquaredError:
    """||x - x̂||², summed over dimensions [N]."""
    return SquaredError()


@term
def nested_error(_: Reconstructions, prefixes: Sequence[int]) -> SquaredError:
    """Mean over the prefixes m of ||x - b - Σ_{j<m} f_j w_j||² (Matryoshka SAE: Bussmann et al. 2025, eq. 4), [N].

    `prefixes` are rising numbers of latents, the last of them F.
    """
    return SquaredError(prefixes)


@term
def gate_error(entries: Entries) -> Tensor:
    """||x - x̂(relu(π))||² with the dictionary frozen (Gated SAE: Rajamanoharan et al. 2024a, eq. 8), [N]."""
    return entries.frozen_error(entries.listed.with_values(torch.relu(entries.listed.values)))


@term
def auxk(dead: DeadRows) -> Tensor:
    """||e - ê||² / Var(e), ê from the top `auxk` dead latents (Gao et al. 2024, appendix A.2), [N].

    e is the residual, ê its reconstruction from the dead latents' largest pre-activations, without the decoder bias.
    Var(e) is the mean over samples of ||e - mean(e)||². Zero where the quotient is not a number (a residual that is
    exactly constant). Dense on the rows of the dead latents: the gradient reaches their rows of W_enc, b_enc and W_dec.
    """
    estimate = dead.decoded(dead.strongest()).float()
    error = dead.residual
    return torch.nan_to_num((error - estimate).pow(2).sum(-1) / dead.variance(), nan=0.0, posinf=0.0)


@term
def pre_activation(dead: DeadRows) -> Tensor:
    """Σ over dead latents of relu(θ_j - pre_j) ||w_j||, which lifts them until they fire (Conerly et al. 2025), [N]."""
    below = dead.thresholds - dead.pre
    return (torch.relu(below.float()) * (1.0 if dead.norms is None else dead.norms)).sum(-1)
