"""The generative models that the chapter compares, trained on one set of images, and how samples are measured."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Setting, trained
from sae.book.chapter.latent_space_judge import Judge
from sae.book.generate.base import Sampler
from sae.book.generate.denoisers import ConvolutionalDenoiser, MLPDenoiser
from sae.book.generate.diffusion import DiffusionConfig, train_diffusion
from sae.book.generate.gan import GANConfig, train_gan
from sae.book.generate.latent import from_prior, train_latent_diffusion
from sae.book.generate.prior import PriorConfig, train_prior
from sae.book.generate.vaegan import VAEGANConfig, train_vaegan
from sae.book.measures.generation import GeneratorScore, score_generator
from sae.book.measures.spectra import radial_spectrum
from sae.config import VisionConfig
from sae.models.heads import ConvolutionalHead, Head, MLPHead
from sae.models.stems import ConvolutionalStem, MLPStem, Stem
from sae.models.vision import recipe_of
from sae.runs.images import ImageRun

SAMPLED = 0  # what random draws are for
WARM = 16  # samples drawn before time is taken


class Sizes(NamedTuple):
    """How large everything is; passes and steps."""

    limit: int | None
    """Training images."""
    hidden: tuple[int, ...]
    """Of stem and head of VAE, GAN and VAE-GAN, which have one and the same decoder; none for convolutional ones."""
    channels: tuple[int, ...]
    """Of convolutional stems and heads."""
    latents: int
    atoms: int
    vae_epochs: int
    vqvae_epochs: int
    gan: GANConfig
    vaegan: VAEGANConfig
    diffusion: DiffusionConfig
    latent: DiffusionConfig
    prior: PriorConfig


QUICK = Sizes(
    limit=256,
    hidden=(),
    channels=(8, 16),
    latents=8,
    atoms=16,
    vae_epochs=3,
    vqvae_epochs=3,
    gan=GANConfig(steps=20, lr=1e-3),
    vaegan=VAEGANConfig(steps=20),
    diffusion=DiffusionConfig(steps=30, times=100, sampling=10),
    latent=DiffusionConfig(steps=30, times=100, sampling=10),
    prior=PriorConfig(hidden=32, embedding=8, steps=30),
)
SMALL = Sizes(
    limit=None,
    hidden=(),
    channels=(16, 32),
    latents=16,
    atoms=64,
    vae_epochs=100,
    vqvae_epochs=60,
    gan=GANConfig(steps=2000, lr=1e-3),
    vaegan=VAEGANConfig(steps=1500, lr=1e-3),
    diffusion=DiffusionConfig(steps=1500),
    latent=DiffusionConfig(steps=1000),
    prior=PriorConfig(steps=400),
)
"""For images of up to 16 x 16."""
FULL = SMALL._replace(
    hidden=(256,),
    vae_epochs=60,
    vqvae_epochs=15,
    gan=GANConfig(steps=3000),
    vaegan=VAEGANConfig(steps=2500),
    diffusion=DiffusionConfig(steps=1200, batch=64, sampling=25),
    latent=DiffusionConfig(steps=1200),
)
SMALL_SIDE = 16  # up to which a diffusion's network is an MLP


class Measured(NamedTuple):
    """What one seed of one family gave."""

    score: GeneratorScore
    sharpness: float | None
    """Share of power at high spatial frequencies, over the same share of held-out images: below 1 is blur, above 1
    noise; None for samples that are not finite, or without any contrast."""
    seconds: float
    """Of training, all parts."""
    per_second: float
    """Samples."""
    evaluations: int
    parameters: int
    encodes: bool


def score(judge: Judge, samples: Tensor) -> GeneratorScore:
    """All measures of samples [n, D] against the held-out images, in the judge's features."""
    real = judge.held
    # what is not finite has no class; the score says so
    classes = judge.classes(samples) if samples.isfinite().all() else real.labels
    return score_generator(judge.features(real.x), judge.features(samples), real.labels, classes)


def measure(judge: Judge, model: Sampler, seed: int) -> Measured:
    """Score as many samples as there are held-out images, and how fast they come."""
    count = len(judge.held.x)
    model.sample(WARM, draws.generator(seed, SAMPLED))
    begun = time.perf_counter()
    samples = model.sample(count, draws.generator(seed, SAMPLED))
    seconds = time.perf_counter() - begun
    facts = (model.seconds, count / seconds, model.evaluations, model.parameters, model.encodes)
    return Measured(score(judge, samples), sharpness(judge, samples), *facts)


def sharpness(judge: Judge, samples: Tensor) -> float | None:
    """See `Measured`."""
    if not samples.isfinite().all() or not samples.std() > 0:
        return None
    held, made = (radial_spectrum(x.view(-1, *judge.held.shape)).high_share for x in (judge.held.x, samples))
    return made / held


def sizes_of(setting: Setting, shape: tuple[int, int, int]) -> Sizes:
    """The sizes for images of a shape."""
    if setting.quick:
        return QUICK
    return SMALL if max(shape[1:]) <= SMALL_SIDE else FULL


def variational(setting: Setting, data: str, shape: tuple[int, int, int], seed: int) -> ImageRun:
    """The VAE's run."""
    sizes = sizes_of(setting, shape)
    return trained(
        setting,
        "generative-vae",
        variational_settings(sizes),
        data=data,
        epochs=sizes.vae_epochs,
        limit=sizes.limit,
        seed=seed,
    )


def variational_settings(sizes: Sizes) -> VisionConfig:
    """Of the VAE, and of the VAE inside a VAE-GAN."""
    if sizes.hidden:
        return VisionConfig(variant="vae", width=sizes.latents, hidden=sizes.hidden)
    kind = "convolutional"
    return VisionConfig(variant="vae", width=sizes.latents, stem=kind, head=kind, channels=sizes.channels)


def make_stem(sizes: Sizes, shape: tuple[int, int, int]) -> Stem:
    """A discriminator's stem, as the VAE has it."""
    return MLPStem(math.prod(shape), sizes.hidden) if sizes.hidden else ConvolutionalStem(shape, sizes.channels)


def make_head(sizes: Sizes, shape: tuple[int, int, int]) -> Head:
    """The GAN's head, as the VAE has it."""
    if sizes.hidden:
        return MLPHead(math.prod(shape), sizes.hidden[::-1], True)
    return ConvolutionalHead(shape, sizes.channels, True, True)


def families(setting: Setting, data: str, shape: tuple[int, int, int], seed: int) -> dict[str, Sampler]:
    """Every family's model of one seed, trained on the same images."""
    sizes = sizes_of(setting, shape)
    run = variational(setting, data, shape, seed)
    x = run.images("train").all()

    small = max(shape[1:]) <= SMALL_SIDE
    found: dict[str, Sampler] = {"VAE": from_prior(run)}
    setting.tell(f"GAN, seed {seed}")
    found["GAN"] = train_gan(
        x, make_stem(sizes, shape), make_head(sizes, shape), replace(sizes.gan, latents=sizes.latents), seed=seed
    )
    setting.tell(f"diffusion, seed {seed}")
    network = (lambda: MLPDenoiser(x.shape[1])) if small else (lambda: ConvolutionalDenoiser(shape, 24))
    found["diffusion"] = train_diffusion(x, network, sizes.diffusion, seed=seed)
    setting.tell(f"latent diffusion, seed {seed}")
    found["latent diffusion"] = train_latent_diffusion(run, sizes.latent, seed=seed, hidden=128)
    setting.tell(f"VAE-GAN, seed {seed}")
    model = recipe_of(variational_settings(sizes), shape, len(x)).model
    found["VAE-GAN"] = train_vaegan(x, model, make_stem(sizes, shape), sizes.vaegan, seed=seed)
    channels = sizes.channels[:1] if small else sizes.channels
    quantised = trained(
        setting,
        "generative-vqvae",
        VisionConfig(variant="vqvae", width=sizes.atoms, code_dim=16, channels=channels),
        data=data,
        epochs=sizes.vqvae_epochs,
        limit=sizes.limit,
        seed=seed,
    )
    setting.tell(f"prior of codes, seed {seed}")
    found["VQ-VAE + prior"] = train_prior(quantised, sizes.prior, seed=seed)
    return found


def images_seen(sizes: Sizes, count: int) -> dict[str, int]:
    """Training images that every family sees, each as often as it sees it; `count` is one epoch's."""
    vae, vqvae = sizes.vae_epochs * count, sizes.vqvae_epochs * count
    own = {
        name: config.steps * config.batch
        for name, config in {
            "GAN": sizes.gan,
            "diffusion": sizes.diffusion,
            "latent diffusion": sizes.latent,
            "VAE-GAN": sizes.vaegan,
            "VQ-VAE + prior": sizes.prior,
        }.items()
    }
    before = {"latent diffusion": vae, "VQ-VAE + prior": vqvae}
    return {"VAE": vae, **{name: seen + before.get(name, 0) for name, seen in own.items()}}


def drawn(model: Sampler, n: int) -> Tensor:
    """Samples for a picture: the first ones, not the best."""
    return model.sample(n, torch.Generator().manual_seed(0))
