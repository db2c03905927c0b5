"""What every code offers, and the names under which codes are saved.

A code works in two halves. `select` is given the encoder's weights and not its output, so that it can call a fused
kernel that never writes the N x F pre-activations; it lists the pre-activations that matter. `activate` turns the
listed ones into values. All that a latent learns passes through its listed entries, so a training step needs the
gradient of `activate` alone, on as many numbers as there are entries.

Codes register themselves under a name, by which `make_code` builds one from its saved description.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sae.config import ConfigError, built
from sae.modules.dictionary import Dictionary
from sae_kernels import SparseCodes, threshold_encode

DENSE_ABOVE = 0.1
"""Share of entries listed above which a threshold's codes are kept dense: the products are then the faster way."""
SAMPLE = 64  # tokens by which that share is judged


class Code(nn.Module):
    """What every code offers; a module, because some have parameters."""

    name: str
    """Under which it is saved."""
    tied = False
    """Whether the encoder's rows are the atoms themselves (one matrix, no encoder bias)."""
    rows = 1
    """Encoder rows a latent: more where a latent is read off several numbers (a mean and a variance)."""
    biased = True
    """Whether the dictionary adds a bias that is learnt."""
    rate = 1.0
    """Learning rate of the code's own parameters, in multiples of the others'."""
    settles = False
    """Whether the form that is saved is another, settled on inputs."""
    learns = False
    """Whether `learn` does anything."""
    stochastic = False
    """Whether `sample` draws."""
    plain = False
    """Whether `activate` is the relu that the sparse ops apply by themselves."""

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """x [N, d], W_enc [F, d], b_enc [F], b_pre [d] or None (subtracted from x first) -> listed pre-activations."""
        raise NotImplementedError

    def activate(self, listed: SparseCodes) -> SparseCodes:
        """Listed pre-activations -> the latents' values, entry by entry; differentiable."""
        return listed.with_values(torch.relu(listed.values))

    def sample(self, listed: SparseCodes, generator: torch.Generator) -> SparseCodes:
        """The values that a training step decodes: a draw where the code is a distribution, else `activate`'s."""
        del generator
        return self.activate(listed)

    def pass_through(self, decoded: Tensor, x: Tensor) -> Tensor:
        """What goes on behind the dictionary [N, d]: `decoded`, with another gradient where the code has one."""
        del x
        return decoded

    def begin(self, x: Tensor, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Set what is set by the first inputs x [n, d]."""

    def learn(self, x: Tensor, codes: SparseCodes, dictionary: Dictionary, generator: torch.Generator) -> None:
        """What is learnt after a step by other means than its gradient, from inputs x [N, d] and their codes."""

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Codes of N tokens."""
        return self.activate(self.select(x, W_enc, b_enc, b_pre))

    def describe(self) -> dict[str, Any]:
        """What `make_code` needs to build this code again, as JSON values; its tensors are in its state_dict."""
        return {"name": self.name}

    def rescaled(self, factors: Tensor) -> Code | None:
        """The code of pre-activations multiplied by `factors` [F] > 0, whose values are multiplied by them as well.

        None where there is no such code (a selection among latents changes when each is scaled by its own factor).
        """
        raise NotImplementedError

    def restart(self, latents: Tensor) -> None:
        """Set the code's own parameters of some latents back to what they were at first."""

    def constrain(self) -> None:
        """Bring the code's own parameters back to where they make sense, after a step."""

    def settled(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> Code:
        """The form that is saved, which looks at one token at a time; x [N, d] are inputs to settle it on."""
        del x, W_enc, b_enc, b_pre
        return self


CODES: dict[str, Callable[..., Code]] = {}
AnyCode = TypeVar("AnyCode", bound=type[Code])


def register(cls: AnyCode) -> AnyCode:
    """Class decorator: makes a code known under its `name`.

    Raises:
        ConfigError: the name is taken.
    """
    if cls.name in CODES:
        raise ConfigError(f"code {cls.name!r} is registered already, by {CODES[cls.name]}")
    CODES[cls.name] = cls
    return cls


def make_code(description: dict[str, Any]) -> Code:
    """Build a code from what its `describe` gave.

    Raises:
        ConfigError: the name is unknown.
    """
    return built("code", CODES, description)


def dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
    """W_enc (x - b_pre) + b_enc with every latent of every token listed."""
    centred = x if b_pre is None else x - b_pre
    return SparseCodes.dense(nn.functional.linear(centred, W_enc, b_enc.to(W_enc.dtype)))


def above(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_pre: Tensor | None,
    theta: Tensor | float,
    margin: float = 0.0,
    most: float = DENSE_ABOVE,
) -> SparseCodes:
    """Pre-activations over theta - margin, as CSR; all, dense, where a sample says that their share is over `most`."""
    with torch.no_grad():
        every = max(1, x.shape[0] // SAMPLE)
        sample = dense(x[::every], W_enc, b_enc, b_pre).values
        many = (sample > theta - margin).float().mean() > most
    if many:
        return dense(x, W_enc, b_enc, b_pre)
    return threshold_encode(x, W_enc, b_enc, theta, margin=margin, b_pre=b_pre)


def per_entry(table: Tensor, listed: SparseCodes) -> Tensor:
    """table[j] of every entry, j its latent; `table` is [F], the result of the shape of the entries.

    Its gradient sums each latent's entries in their order, so that two runs agree bit for bit on a CPU: the backward of
    `table[indices]` adds atomically there, in whatever order the threads arrive.
    """
    if listed.in_order:
        return table.expand_as(listed.values)
    return table.index_select(0, listed.indices.flatten()).view_as(listed.indices)


def same(factors: Tensor) -> bool:
    """Whether all factors are one number, up to rounding."""
    return bool((factors.max() - factors.min()) <= 1e-5 * factors.max())
