"""A prior over the code indices of a VQ-VAE, one position after the other, coarse level first.

prior = train_prior(open_image_run("runs/vqvae"), PriorConfig(), seed=0)
prior.sample(64, torch.Generator().manual_seed(0))
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sae.book.generate.base import count, minibatches, seeded, set_rate
from sae.book.generate.latent import decoder_parameters, seconds_of
from sae.config import ConfigError, check
from sae.models.autoencoder import Autoencoder
from sae.models.stems import ConvolutionalStem, Stem, TwoLevelStem
from sae.modules.codes import Quantised
from sae.runs.images import ImageRun
from sae.training.schedules import course
from sae_kernels import SparseCodes

CHUNK = 1024  # samples encoded at a time
CLIP = 1.0  # norm that gradients are cut to: recurrent ones burst


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """How a prior over codes is trained."""

    hidden: int = 128
    """Width of the recurrent state."""
    embedding: int = 32
    """Width of the embedding of each code read."""
    steps: int = 1000
    batch: int = 64
    lr: float = 3e-3
    """Adam's, falling to zero over the second half."""

    def __post_init__(self) -> None:
        for name in ("hidden", "embedding", "steps", "batch"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.lr > 0, "lr", self.lr, "more than 0")


class CodePrior(nn.Module):
    """p(c) = Π_p p(c_p | c_1 ... c_(p-1)): a GRU (Cho et al. 2014) along the positions.

    VQ-VAE's prior is a PixelCNN, VQ-VAE-2's one with attention and a level each (van den Oord et al. 2017, section 4.2;
    Razavi et al. 2019, section 3.2); this is a small one with the same order and the same conditions: beside the code
    before it, a position reads the one above it and the one over it in the coarser level.

    Args:
        atoms: number of atoms K.
        table: positions of the codes read at each position, int64 [P, R], all of them earlier; P for none.
        config: its widths.
    """

    table: Tensor

    def __init__(self, atoms: int, table: Tensor, config: PriorConfig) -> None:
        super().__init__()
        positions, reads = table.shape
        self.register_buffer("table", table)
        self.atoms, self.positions = atoms, positions
        self.embeddings = nn.ModuleList(nn.Embedding(atoms + 1, config.embedding) for _ in range(reads))
        self.places = nn.Embedding(positions, config.embedding)
        self.gru = nn.GRU((reads + 1) * config.embedding, config.hidden, batch_first=True)
        self.out = nn.Linear(config.hidden, atoms)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes int64 [N, P] -> logits of each [N, P, K], given those before it."""
        padded = torch.cat([codes, codes.new_full((len(codes), 1), self.atoms)], 1)
        return self.out(self.gru(self._read(padded, slice(None)))[0])

    def nats(self, codes: Tensor) -> Tensor:
        """-log p(c) of codes int64 [N, P], nats a sample [N]."""
        return cross_entropy(self(codes).transpose(1, 2), codes, reduction="none").sum(1)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws, int64 [n, P]."""
        padded = torch.full((n, self.positions + 1), self.atoms)
        state = None
        for place in range(self.positions):
            output, state = self.gru(self._read(padded, slice(place, place + 1)), state)
            odds = torch.softmax(self.out(output[:, 0]), 1)
            padded[:, place] = torch.multinomial(odds, 1, generator=generator)[:, 0]
        return padded[:, :-1]

    def _read(self, padded: Tensor, places: slice) -> Tensor:
        """What the GRU reads at some places [N, p, R·e + e]; `padded` int64 [N, P + 1] has K for "none" at its end."""
        table = self.table[places]
        read = [embedding(padded[:, table[:, i]]) for i, embedding in enumerate(self.embeddings)]
        here = self.places.weight[places].expand(len(padded), -1, -1)
        return torch.cat([*read, here], 2)


def earlier(stem: Stem) -> Tensor:
    """Which codes every position reads: the one before, the one above, the coarser level's over it, int64 [P, 3].

    Raises:
        ConfigError: a stem without a map.
    """
    if isinstance(stem, TwoLevelStem):
        maps = [stem.coarse.map[1:], stem.fine.map[1:]]
    elif isinstance(stem, ConvolutionalStem):
        maps = [stem.map[1:]]
    else:
        raise ConfigError(f"stem {stem.name}: expected one of codes in a map (convolutional or two_level)")
    none, first = stem.positions, 0
    coarser: tuple[int, list[int]] | None = None
    table = []
    for rows, columns in maps:
        for row in range(rows):
            for column in range(columns):
                place = first + row * columns + column
                above = place - columns if row else none
                over = none
                if coarser is not None:
                    start, (height, width) = coarser
                    over = start + (row * height // rows) * width + column * width // columns
                table.append([place - 1 if place else none, above, over])
        coarser, first = (first, [rows, columns]), first + rows * columns
    return torch.tensor(table)


@dataclass(frozen=True, eq=False)
class PriorOfCodes:
    """A VQ-VAE and the prior of its codes; see `sae.book.generate.base.Sampler`."""

    run: ImageRun
    prior: CodePrior
    prior_seconds: float
    encodes: bool = True

    @property
    def evaluations(self) -> int:
        """See `Sampler`: the prior for every position, the decoder once."""
        return self.prior.positions + 1

    @property
    def parameters(self) -> int:
        """See `Sampler`."""
        return count(self.prior) + decoder_parameters(self.run.model)

    @property
    def seconds(self) -> float:
        """See `Sampler`."""
        return self.prior_seconds + seconds_of(self.run)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See `Sampler`."""
        return decode_indices(self.run.model, self.prior.draw(n, generator))


def train_prior(run: ImageRun, config: PriorConfig, *, seed: int) -> PriorOfCodes:
    """Fit a prior to the codes of the run's training images.

    Raises:
        ConfigError: the run has no codebook, or fewer images than a batch.
    """
    if not isinstance(run.model.code, Quantised) or run.model.stem is None:
        raise ConfigError(f"{run.folder}: --variant {run.vision.variant} has no codebook; expected vqvae or vqvae2")
    codes, table = code_indices(run.model, run.images("train").all()), earlier(run.model.stem)
    prior = seeded(lambda: CodePrior(run.model.width, table, config), seed)
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.lr)
    begun = time.perf_counter()
    for step, (rows, _) in enumerate(minibatches(codes, batch=config.batch, steps=config.steps, seed=seed)):
        loss = prior.nats(rows).mean()
        set_rate(optimizer, config.lr * course(step, config.steps, warmup=0.05, decay=0.5))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), CLIP)
        optimizer.step()
    return PriorOfCodes(run, prior, time.perf_counter() - begun)


@torch.no_grad()
def code_indices(model: Autoencoder, x: Tensor) -> Tensor:
    """Samples [N, D] -> the atoms they are written with, int64 [N, P]."""
    return torch.cat([model.encode(rows).indices.view(len(rows), -1) for rows in x.split(CHUNK)])


@torch.no_grad()
def decode_indices(model: Autoencoder, indices: Tensor) -> Tensor:
    """Atoms int64 [N, P] -> samples [N, D]."""
    rows = [part.reshape(-1, 1) for part in indices.split(CHUNK)]
    return torch.cat([model.decode(SparseCodes(torch.ones(part.shape), part, model.width)) for part in rows])
