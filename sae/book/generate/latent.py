"""Samples through the decoder of a trained autoencoder: of its prior, of diffusion among its latents, of a code prior.

A code prior gives the code indices of a VQ-VAE one position after the other, coarse level first.

run = open_image_run("runs/vae")
from_prior(run).sample(64, generator)
train_latent_diffusion(run, DiffusionConfig(), seed=0).sample(64, generator)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sae.book.generate.base import Sampler, StepsConfig, count, fit, minibatches, seeded
from sae.book.generate.denoisers import MLPDenoiser
from sae.book.generate.diffusion import Diffusion, DiffusionConfig, train_diffusion
from sae.config import ConfigError, check
from sae.models.autoencoder import Autoencoder
from sae.models.stems import ConvolutionalStem, Stem, TwoLevelStem
from sae.modules.codes import Gaussian, Quantised
from sae.runs.images import ImageRun, decode_dense, dense_codes
from sae_kernels import SparseCodes

CHUNK = 1024  # samples encoded at a time
CLIP = 1.0  # norm to which gradients are cut: those of recurrent networks can explode


@dataclass(frozen=True, eq=False, kw_only=True)
class VAESampler(Sampler):
    """A VAE: z ~ N(0, 1), decoded (Kingma & Welling 2014). Samples are means of pixels, not draws of them."""

    model: Autoencoder
    encodes: bool = True

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        return decode_dense(self.model, torch.randn(n, self.model.width, generator=generator))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Samples [N, D], encoded and decoded at the means of their codes."""
        return decode_dense(self.model, dense_codes(self.model, x))


def from_prior(run: ImageRun) -> VAESampler:
    """A run's VAE as a generative model.

    Raises:
        ConfigError: the run has no Gaussian code, so no prior to draw from.
    """
    if not isinstance(run.model.code, Gaussian):
        raise ConfigError(f"{run.folder}: --variant {run.vision.variant} has no prior; expected a VAE")
    return VAESampler(model=run.model, seconds=seconds_of(run), parameters=decoder_parameters(run.model))


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentDiffusion(Sampler):
    """Diffusion among the standardised means of a frozen autoencoder, decoded by it (Rombach et al. 2022)."""

    model: Autoencoder
    diffusion: Diffusion
    encodes: bool = True

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        return decode_dense(self.model, self.diffusion.sample(n, generator))


def train_latent_diffusion(run: ImageRun, config: DiffusionConfig, *, seed: int, hidden: int = 256) -> LatentDiffusion:
    """Train diffusion on the means of the run's training images; `hidden` is the width of its network.

    Raises:
        ConfigError: fewer images than a batch.
    """
    codes = dense_codes(run.model, run.images("train").all())
    width = codes.shape[1]
    diffusion = train_diffusion(codes, lambda: MLPDenoiser(width, hidden), config, seed=seed, pixels=False)
    return LatentDiffusion(
        model=run.model,
        diffusion=diffusion,
        seconds=diffusion.seconds + seconds_of(run),
        parameters=diffusion.parameters + decoder_parameters(run.model),
        evaluations=diffusion.evaluations + 1,  # the decoder once
    )


def decoder_parameters(model: Autoencoder) -> int:
    """Numbers in a model's dictionary and head."""
    return count(model.dictionary, *([] if model.head is None else [model.head]))


def seconds_of(run: ImageRun) -> float:
    """Wall time of the run's training in its last process."""
    return run.record["training"]["seconds"]


@dataclass(frozen=True, kw_only=True)
class PriorConfig(StepsConfig):
    """How a prior over codes is trained."""

    hidden: int = 128
    """Width of the recurrent state."""
    embedding: int = 32
    """Width of the embedding of each code read."""
    steps: int = 1000
    lr: float = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        check(self.embedding >= 1, "embedding", self.embedding, "at least 1")


class CodePrior(nn.Module):
    """p(c) = Π_p p(c_p | c_1 ... c_(p-1)): a GRU (Cho et al. 2014) along the positions.

    A position reads the code before it, the one above it, and the one over it in the coarser level. The papers' priors
    are larger, with the same order and conditions: VQ-VAE's is a PixelCNN, VQ-VAE-2's a PixelCNN with attention for
    every level (van den Oord et al. 2017, section 4.2; Razavi et al. 2019, section 3.2).

    Args:
        atoms: number of atoms K.
        table: positions of the codes that each position reads, int64 [P, R], all of them earlier; P for none.
        config: with the widths.
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
        """The GRU's input at some places [N, p, R·e + e]; `padded` int64 [N, P + 1] ends in K, for "none"."""
        table = self.table[places]
        read = [embedding(padded[:, table[:, i]]) for i, embedding in enumerate(self.embeddings)]
        here = self.places.weight[places].expand(len(padded), -1, -1)
        return torch.cat([*read, here], 2)


def earlier(stem: Stem) -> Tensor:
    """The codes that every position reads: the one before, the one above, the coarser level's over it, int64 [P, 3].

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


@dataclass(frozen=True, eq=False, kw_only=True)
class CodeSampler(Sampler):
    """A VQ-VAE and the prior of its codes."""

    model: Autoencoder
    prior: CodePrior
    encodes: bool = True

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples [n, D], pixels."""
        return decode_indices(self.model, self.prior.draw(n, generator))


def train_prior(run: ImageRun, config: PriorConfig, *, seed: int) -> CodeSampler:
    """Fit a prior to the codes of the run's training images.

    Raises:
        ConfigError: the run has no codebook, or fewer images than a batch.
    """
    model = run.model
    if not isinstance(model.code, Quantised) or model.stem is None:
        raise ConfigError(f"{run.folder}: --variant {run.vision.variant} has no codebook; expected vqvae or vqvae2")
    codes, table = code_indices(model, run.images("train").all()), earlier(model.stem)
    prior = seeded(lambda: CodePrior(model.width, table, config), seed)
    losses = (prior.nats(rows).mean() for rows, _ in minibatches(codes, config, seed=seed))
    return CodeSampler(
        model=model,
        prior=prior,
        seconds=fit(prior, losses, config, clip=CLIP) + seconds_of(run),
        parameters=count(prior) + decoder_parameters(model),
        evaluations=prior.positions + 1,  # the decoder once
    )


@torch.no_grad()
def code_indices(model: Autoencoder, x: Tensor) -> Tensor:
    """Samples [N, D] -> indices of their atoms, int64 [N, P]."""
    return torch.cat([model.encode(rows).indices.view(len(rows), -1) for rows in x.split(CHUNK)])


@torch.no_grad()
def decode_indices(model: Autoencoder, indices: Tensor) -> Tensor:
    """Indices of atoms int64 [N, P] -> samples [N, D]."""
    rows = [part.reshape(-1, 1) for part in indices.split(CHUNK)]
    return torch.cat([model.decode(SparseCodes(torch.ones(part.shape), part, model.width)) for part in rows])
