"""One autoencoder at its sites in a running model: it reads its codes, and changes the activations at its targets.

At every token that is changed, the activation t of the target becomes, with inputs x, atoms w_j and codes f(x),

    splice          x̂(x)                            the reconstruction alone
    splice, error   x̂(x) + (t - x̂(x))               the same value; the error is a constant for gradients, which pass
                                                    through the latents alone (Marks et al. 2024)
    add             t + s_j w_j                     (Turner et al. 2023)
    set             t + (s_j - f_j(x)) w_j          the latent gets the value s_j; the reconstruction error stays
    ablate          t - f_j(x) w_j

summed over the latents j that are changed, with s_j in the activation's units. Under per-token layer norm, codes are in
units of the normalised input, and an atom's contribution is multiplied by the token's deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sae.config import ConfigError
from sae.harvest.hooks import check_replaceable
from sae.harvest.places import KINDS
from sae.harvest.sites import Site, SiteError
from sae.models.autoencoder import Autoencoder
from sae.modules.normalise import layer_norm
from sae_kernels import SparseCodes

Change = Literal["add", "set", "ablate"]
CHANGES = ("add", "set", "ablate")
ORDER = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
"""The kinds of site in the order in which a block computes them."""
assert sorted(ORDER) == sorted(KINDS)


class TooStrongError(ConfigError):
    """A change makes the activations overflow."""


class Effect(NamedTuple):
    """What is done to one latent."""

    latent: int
    change: Change
    value: float = 0.0
    """s_j above, in the activation's units; `ablate` does not read it."""


class Intervention:
    """An autoencoder, where it reads and writes, and what it changes there.

    Args:
        name: for messages.
        model: its inputs are `inputs` side by side, its outputs belong to `targets`.
        inputs: sites that it reads.
        targets: sites that it changes.
        splice: put the reconstruction in place of the activation.
        error: with `splice`, add the reconstruction error back, as a constant.
        effects: latents to change, each at most once.

    Raises:
        ConfigError: an autoencoder of images, other widths than the sites', a latent that does not exist or is named
            twice, or a target that the model computes before all inputs are known.
        SiteError: a target that can only be read.
    """

    def __init__(
        self,
        name: str,
        model: Autoencoder,
        inputs: Sequence[Site],
        targets: Sequence[Site],
        *,
        splice: bool = False,
        error: bool = False,
        effects: Sequence[Effect] = (),
    ) -> None:
        self.name, self.model, self.inputs, self.targets = name, model, list(inputs), list(targets)
        self.splice, self.error, self.effects = splice, error, list(effects)
        self.writes = splice or bool(effects)
        self.needs_codes = splice or model.per_token_norm or any(e.change != "add" for e in self.effects)
        self._check()
        like = model.dictionary.W
        self._latents = torch.tensor([e.latent for e in self.effects], device=like.device, dtype=torch.int64)
        self._values = torch.tensor([e.value for e in self.effects], device=like.device, dtype=like.dtype)
        self._replaces = torch.tensor([e.change != "add" for e in self.effects], device=like.device, dtype=torch.bool)
        self._parts: dict[Site, Tensor] = {}
        self._x: Tensor | None = None
        self._codes: SparseCodes | None = None
        self._reconstruction: Tensor | None = None

    def begin(self) -> None:
        """A new forward: nothing is read yet."""
        self._parts, self._x, self._codes, self._reconstruction = {}, None, None, None

    def read(self, site: Site, rows: Tensor) -> SparseCodes | None:
        """Take the activations [n, d] at one of the inputs; the codes of the n tokens once all inputs are there."""
        self._parts[site] = rows.to(self.model.dictionary.W)
        if len(self._parts) < len(self.inputs):
            return None
        self._x = torch.cat([self._parts[i] for i in self.inputs], dim=1)
        if self._x.shape[1] != self.model.dim:
            raise SiteError(f"{self.name}: it is {self._x.shape[1]} wide, the autoencoder reads width {self.model.dim}")
        self._codes = self.model.encode(self._x)
        if self.splice:
            self._reconstruction = self.model.decode(self._codes, self._x)
        return self._codes

    def write(self, site: Site, rows: Tensor, tokens: Tensor) -> Tensor:
        """What takes the place of the activations [n, d] at one of the targets.

        Args:
            site: one of the targets.
            rows: activations of the tokens that are changed.
            tokens: which of the tokens last read they are, int64 [n].
        """
        columns = self._columns(site)
        if rows.shape[1] != columns.stop - columns.start:
            raise SiteError(
                f"{self.name}: {site.name} is {rows.shape[1]} wide, the autoencoder writes width {self.model.dim_out}"
            )
        if self.needs_codes and self._codes is None:
            names = ", ".join(i.name for i in self.inputs)
            raise SiteError(f"{self.name}: {site.name} is computed before {names} is known, so it cannot be changed")
        if self.splice:
            assert self._reconstruction is not None
            spliced = self._reconstruction[tokens.to(self._reconstruction.device)][:, columns]
            spliced = spliced.to(rows.device)
            return spliced + (rows - spliced).detach() if self.error else spliced
        wanted = self._values.expand(len(tokens), -1)
        if self.needs_codes:
            assert self._codes is not None
            assert self._x is not None
            at = tokens.to(self._x.device)
            wanted = wanted - self._codes.at(self._latents)[at] * self._replaces
            if self.model.per_token_norm:
                wanted = wanted * layer_norm(self._x)[1].deviation[at]
        moved = wanted @ self.model.dictionary.W[self._latents][:, columns]
        changed = (rows + moved.to(rows)).to(rows.dtype)
        # a norm squares its input: an infinite square would become an output of zeros, unnoticed
        if not bool(torch.isfinite(changed.detach().float().square().sum())):
            raise TooStrongError(f"{self.name}: the activations at {site.name} overflow with this strength; lower it")
        return changed

    def _columns(self, site: Site) -> slice:
        """The part of the autoencoder's output that belongs to one target."""
        widths = [target.width or self.model.dim_out for target in self.targets]
        place = self.targets.index(site)
        return slice(sum(widths[:place]), sum(widths[: place + 1]))

    def _check(self) -> None:
        model = self.model
        if model.stem is not None or model.head is not None:
            raise ConfigError(f"{self.name}: an autoencoder of images has no place in a language model's forward")
        for does, sites, width in (("reads", self.inputs, model.dim), ("writes", self.targets, model.dim_out)):
            widths = [site.width for site in sites]
            if len(sites) > 1 and None in widths:
                unknown = next(site.name for site in sites if site.width is None)
                raise ConfigError(f"{self.name}: the width of {unknown} cannot be told without running the model")
            if None not in widths and sum(w or 0 for w in widths) != width:
                names = ", ".join(f"{site.name} {site.width}" for site in sites)
                raise ConfigError(f"{self.name}: the autoencoder {does} width {width}, expected that of {names}")
        seen: set[int] = set()
        for latent, change, value in self.effects:
            if not 0 <= latent < model.width:
                raise ConfigError(f"{self.name}: latent {latent}: expected 0 to {model.width - 1}")
            if latent in seen:
                raise ConfigError(f"{self.name}: latent {latent}: given twice")
            if change not in CHANGES:
                raise ConfigError(f"{self.name}: change {change!r}: expected one of {', '.join(CHANGES)}")
            if not math.isfinite(value) or (change == "set" and value < 0):
                expected = "a value of 0 or more" if change == "set" else "a finite strength"
                raise ConfigError(f"{self.name}: latent {latent}: {value}: expected {expected}")
            seen.add(latent)
        if self.writes:
            for target in self.targets:
                check_replaceable(target)
            self._check_order()

    def _check_order(self) -> None:
        """Refuse to write a target before the last input is read, as far as the sites' names tell the order."""
        if not self.needs_codes:
            return
        for target in self.targets:
            late = [site.name for site in self.inputs if _place(site) > _place(target) > (-1, 0)]
            if late:
                raise ConfigError(
                    f"{self.name}: the autoencoder reads {', '.join(late)}, which the model computes after "
                    f"{target.name}: the codes are not known in time to change that; strengths can still be added"
                )


def _place(site: Site) -> tuple[int, int]:
    """Layer and place in the block, growing in the order of computation; (-1, 0) where the name does not tell it."""
    if site.layer is None or site.kind is None:
        return (-1, 0)
    return (site.layer, ORDER.index(site.kind))
