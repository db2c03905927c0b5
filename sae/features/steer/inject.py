"""The hooks of steering: which tokens of a generation are steered, and what is added to their activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sae.harvest.hooks import splice
from sae.harvest.sites import Site
from sae.runs.text import Run, joined
from sae_kernels import SparseCodes

OVERFLOW = "--scale: the model's activations overflow with this strength; lower it"


class SteerError(ValueError):
    """These latents, this model or this run cannot be steered; the message says why, and names the remedy."""


def steered_tokens(
    where: Literal["every", "generated"] | Sequence[int], *, prompt: int, skip_first: bool, total: int
) -> Tensor:
    """Whether each token of prompt and generation is steered, bool [total].

    Args:
        where: "every", "generated", or positions.
        prompt: number of tokens of the prompt.
        skip_first: leave BOS alone, unless its position is given.
        total: number of tokens of prompt and generation.

    Raises:
        SteerError: another word, or a position outside.
    """
    steered = torch.zeros(total, dtype=torch.bool)
    if isinstance(where, str):
        if where not in ("every", "generated"):
            raise SteerError(f"--where {where}: expected every, generated or positions")
        steered[prompt if where == "generated" else 0 :] = True
        if skip_first:
            steered[0] = False
        return steered
    for position in where:
        if not 0 <= position < total:
            raise SteerError(f"--where {position}: the prompt and its continuation have tokens 0 to {total - 1}")
        steered[position] = True
    return steered


class Steering:
    """x <- x + Σ_j δ_j w_j at the run's target sites, with δ_j of `sae.features.steer.steer`.

    Args:
        run: the latents' run.
        model: the language model in which the run's sites are.
        effects: (latent, mode, value) with the value in the activation's units.
        steered: which tokens of prompt and generation, bool [total], from `steered_tokens`.

    Raises:
        SteerError: `set` or `ablate` where the latents cannot be known in time; within a generation, activations that
            overflow.
    """

    def __init__(self, run: Run, model: nn.Module, effects: Sequence[tuple[int, str, float]], steered: Tensor) -> None:
        self.run, self.model, self.steered = run, model, steered
        weights = run.model.dictionary.W.detach()
        self.latents = torch.tensor([latent for latent, _, _ in effects], device=weights.device)
        self.atoms = weights[self.latents].float()
        self.value = torch.tensor([value for _, _, value in effects], device=weights.device)
        self.replaces = torch.tensor([mode != "add" for _, mode, _ in effects], device=weights.device)
        self.reads = bool(self.replaces.any())
        if self.reads and len(run.inputs) > 1:
            names = ", ".join(site.name for site in run.inputs)
            raise SteerError(
                f"--mode: set and ablate need the latent's value before any of its sites is written, and this "
                f"autoencoder reads several ({names}); use --mode add"
            )
        self.note: str | None = None
        if run.inputs != run.targets:
            read, written = (", ".join(s.name for s in sites) for sites in (run.inputs, run.targets))
            self.note = f"this run predicts {written} from {read}: the atoms are added at {written}"
        self._seen: dict[str, int] = {}
        self._inputs: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, generations of the model are steered; one generation a block."""
        self._seen, self._inputs = {}, {}
        # one hook a site, so that a site is read before it is written
        replacements = {site: partial(self._visit, site) for site in self.run.sites}
        with splice(self.model, replacements):
            yield

    def _visit(self, site: Site, x: Tensor) -> Tensor:
        """The replacement at one site, [1, S, d]: the whole prompt first, then one token a call."""
        if self.reads and site in self.run.inputs:
            self._inputs[site.name] = x
        if site not in self.run.targets:
            return x
        # a model without a cache gets the whole text at every step
        start = 0 if x.shape[1] > 1 else self._seen.get(site.name, 0)
        self._seen[site.name] = start + x.shape[1]
        tokens = self.steered[start : start + x.shape[1]].nonzero().squeeze(1).to(x.device)
        if not len(tokens):
            return x
        delta = self._delta(tokens) @ self._columns(site)
        rows = x[0].index_add(0, tokens, delta.to(x.device, x.dtype))
        # a norm squares its input: an infinite square would become an output of zeros, unnoticed
        if not bool(torch.isfinite(rows[tokens].float().square().sum())):
            raise SteerError(OVERFLOW)
        return rows[None]

    def _delta(self, tokens: Tensor) -> Tensor:
        """δ [n, latents] of n tokens."""
        wanted = self.value.expand(len(tokens), -1)
        if not self.reads:
            return wanted
        x = joined({name: a[0][tokens] for name, a in self._inputs.items()}, self.run.inputs)
        codes = self.run.model.encode(x.to(self.atoms.device))
        return wanted - _values_of(codes, self.latents) * self.replaces

    def _columns(self, site: Site) -> Tensor:
        """The atoms' part that belongs to one site, [latents, d]."""
        start = 0
        for other in self.run.targets:
            width = other.width or 0
            if other == site:
                return self.atoms[:, start : start + width]
            start += width
        raise AssertionError(f"{site.name} is no target")


def _values_of(codes: SparseCodes, latents: Tensor) -> Tensor:
    """Activations [N, n] of n latents, without the dense codes."""
    column = torch.full((codes.width,), -1, device=latents.device)
    column[latents] = torch.arange(len(latents), device=latents.device)
    at = column[codes.indices.flatten()]
    kept = at >= 0
    values = codes.values.new_zeros(codes.tokens, len(latents))
    values[codes.rows().flatten()[kept], at[kept]] = codes.values.flatten()[kept]
    return values
