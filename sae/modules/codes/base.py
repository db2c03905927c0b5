"""The interface of codes, and the table of names under which they are saved.

A code works in two halves. `select` receives the encoder's weights and not its output, so that it can call a fused
kernel that never writes the N x F pre-activations; it lists the pre-activations that matter. `activate` turns the
listed ones into values. Everything a latent learns passes through its listed entries, so a training step needs only the
gradient of `activate`, for as many numbers as there are entries.

Codes register themselves under a name, from which `make_code` rebuilds a saved one.
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
    """From pre-activations to latent values; a module, because some codes have parameters."""

    name: str
    """The name it is saved under."""
    tied = False
    """Whether the encoder's rows are the atoms themselves (one matrix, no encoder bias)."""
    rows = 1
    """Encoder rows for each latent: more than one where a latent needs several numbers (a mean and a variance)."""
    biased = True
    """Whether the dictionary's bias is learnt."""
    rate = 1.0
    """Learning rate of the code's own parameters, as a multiple of the model's."""
    settles = False
    """Whether a code of another form is saved, fitted to inputs at the end (`settled`)."""
    learns = False
    """Whether `learn` does anything."""
    stochastic = False
    """Whether `sample` draws."""
    sparse = True
    """Whether it lists few of the latents once it is trained."""
    plain = False
    """Whether `activate` is a relu, which the sparse ops apply by themselves."""
    steady = False
    """Whether it lists equally many latents of every token, so that no memory depends on the batch's values."""
    shares = 1
    """Equal parts of a batch, of which this process has one."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean of all values of a batch, 0-dim; other processes may have some of them."""
        return values.mean()

    @property
    def fused(self) -> bool:
        """Whether the fused step can train it.

        That step updates one encoder row for each latent by itself, and decodes exactly what `activate` returns.
        """
        straight = type(self).pass_through is Code.pass_through
        return self.sparse and straight and self.rows == 1 and not self.tied and not self.stochastic

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
        """The head's input [N, d]: `decoded`, with a different gradient where the code defines one."""
        del x
        return decoded

    def begin(self, x: Tensor, dictionary: Dictionary, generator: torch.Generator) -> None:
        """Initialise from the first inputs x [n, d] whatever depends on them."""

    def learn(self, x: Tensor, codes: SparseCodes, dictionary: Dictionary, generator: torch.Generator) -> None:
        """After a step, learn what is not learnt by gradient, from inputs x [N, d] and their codes."""

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Codes of N tokens."""
        return self.activate(self.select(x, W_enc, b_enc, b_pre))

    def describe(self) -> dict[str, Any]:
        """The JSON values from which `make_code` rebuilds this code; its tensors are in its state_dict."""
        return {"name": self.name}

    def rescaled(self, factors: Tensor) -> Code | None:
        """The code for which scaling the pre-activations by `factors` [F] > 0 scales the values by the same factors.

        None where no such code exists (a selection among latents changes when each is scaled by its own factor).
        """
        raise NotImplementedError

    def restart(self, latents: Tensor) -> None:
        """Reset the code's own parameters of some latents to their initial values."""

    def constrain(self) -> None:
        """After a step, bring the code's own parameters back into their range."""

    def threshold(self, latents: Tensor) -> Tensor:
        """Pre-activation above which each of these latents [n] fires [n], without gradient; 0 unless it is learnt."""
        return torch.zeros(latents.shape, device=latents.device)

    def set_k(self, k: int) -> None:
        """Keep k latents from now on; no effect on codes without such a number."""

    def settled(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> Code:
        """The code to save, which encodes each token by itself; x [N, d] are inputs to fit it to."""
        del x, W_enc, b_enc, b_pre
        return self


class FixedK(Code):
    """A code that keeps k latents, and whose k may change over a run."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def set_k(self, k: int) -> None:
        self.k = k

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "k": self.k}

    def rescaled(self, factors: Tensor) -> Code | None:
        """Itself, if all factors are equal: a common factor leaves the order of the pre-activations as it is."""
        return self if same(factors) else None


CODES: dict[str, Callable[..., Code]] = {}
AnyCode = TypeVar("AnyCode", bound=type[Code])


def register(cls: AnyCode) -> AnyCode:
    """Class decorator: registers a code under its `name`.

    Raises:
        ConfigError: the name is taken.
    """
    if cls.name in CODES:
        raise ConfigError(f"code {cls.name!r} is registered already, by {CODES[cls.name]}")
    CODES[cls.name] = cls
    return cls


def make_code(description: dict[str, Any]) -> Code:
    """Build a code from what its `describe` returned.

    Raises:
        ConfigError: the name is unknown.
    """
    return built("code", CODES, description)


def dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
    """W_enc (x - b_pre) + b_enc with every latent of every token listed."""
    centred = x if b_pre is None else x - b_pre
    return SparseCodes.dense(nn.functional.linear(centred, W_enc, b_enc.to(W_enc.dtype)))


def above(
    code: Code,
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_pre: Tensor | None,
    theta: Tensor | float,
    margin: float = 0.0,
    most: float = DENSE_ABOVE,
) -> SparseCodes:
    """Pre-activations over theta - margin, as CSR; dense, if in a sample of the batch their share exceeds `most`."""
    with torch.no_grad():
        every = max(1, code.shares * x.shape[0] // SAMPLE)
        sample = dense(x[::every], W_enc, b_enc, b_pre).values
        many = code.mean((sample > theta - margin).float()) > most
    if many:
        return dense(x, W_enc, b_enc, b_pre)
    return threshold_encode(x, W_enc, b_enc, theta, margin=margin, b_pre=b_pre)


def per_entry(table: Tensor, listed: SparseCodes) -> Tensor:
    """table[j] for every entry, j being its latent; `table` is [F], the result has the shape of the entries.

    Its gradient sums each latent's entries in their order, so that two runs agree bit for bit on a CPU: the backward of
    `table[indices]` adds atomically there, in the order in which threads finish.
    """
    if listed.in_order:
        return table.expand_as(listed.values)
    return table.index_select(0, listed.indices.flatten()).view_as(listed.indices)


def same(factors: Tensor) -> bool:
    """Whether all factors are equal, up to rounding."""
    return bool((factors.max() - factors.min()) <= 1e-5 * factors.max())
