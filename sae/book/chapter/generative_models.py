"""The generative models that the chapter compares, trained on the same images, and the measures of their samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Setting, trained
from sae.book.chapter.measure import Judge
from sae.book.generate.base import Sampler
from sae.book.generate.denoisers import ConvolutionalDenoiser, MLPDenoiser
from sae.book.generate.diffusion import DiffusionConfig, train_diffusion
from sae.book.generate.gan import GANConfig, VAEGANConfig, train_gan, train_vaegan
from sae.book.generate.latent import PriorConfig, from_prior, train_latent_diffusion, train_prior
from sae.book.measures.generation import GeneratorScore, score_generator
from sae.book.measures.spectra import radial_spectrum
from sae.config import VisionConfig
from sae.models.heads import ConvolutionalHead, Head, MLPHead
from sae.models.stems import ConvolutionalStem, MLPStem, Stem
from sae.models.vision import recipe_of
from sae.runs.images import ImageRun

SAMPLED = 0  # key of the random stream
WARM = 16  # samples drawn before timing


class Sizes(NamedTuple):
    """Sizes of all models, and how long they are trained."""

    limit: int | None
    """Training images."""
    hidden: tuple[int, ...]
    """Of stem and head of VAE, GAN and VAE-GAN, whose decoders are the same; empty for convolutional ones."""
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
    gan=GANConfig(steps=20, lr=1e-3, latents=8),
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
    gan=GANConfig(steps=2000, lr=1e-3, latents=16),
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
    gan=GANConfig(steps=3000, latents=16),
    vaegan=VAEGANConfig(steps=2500),
    diffusion=DiffusionConfig(steps=1200, batch=64, sampling=25),
    latent=DiffusionConfig(steps=1200),
)
SMALL_SIDE = 16  # up to which a diffusion's network is an MLP


class Measured(NamedTuple):
    """The measures of one seed of one family."""

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

    def numbers(self) -> dict[str, Any]:
        """All of it as JSON values; None for measures of samples that are not finite."""
        distance, manifolds, modes, failure = self.score
        return {
            "frechet": None if distance is None else distance.distance,
            "precision": None if manifolds is None else manifolds.precision,
            "recall": None if manifolds is None else manifolds.recall,
            "classes": None if modes is None else modes.hit,
            "failure": failure,
            **{name: value for name, value in self._asdict().items() if name != "score"},
        }


def score(judge: Judge, samples: Tensor) -> GeneratorScore:
    """All measures of samples [n, D] against the held-out images, in the judge's features."""
    real, classifier = judge.heldout, judge.classifier
    # samples that are not finite have no class; the score reports them
    classes = classifier.classes(samples) if samples.isfinite().all() else real.labels
    return score_generator(classifier.features(real.x), classifier.features(samples), real.labels, classes)


def measure(judge: Judge, model: Sampler, seed: int) -> Measured:
    """Score as many samples as there are held-out images, and time their sampling."""
    count = len(judge.heldout.x)
    model.sample(WARM, draws.generator(seed, SAMPLED))
    begun = time.perf_counter()
    samples = model.sample(count, draws.generator(seed, SAMPLED))
    rate = count / (time.perf_counter() - begun)
    facts = (model.seconds, rate, model.evaluations, model.parameters, model.encodes)
    return Measured(score(judge, samples), sharpness(judge, samples), *facts)


def sharpness(judge: Judge, samples: Tensor) -> float | None:
    """`Measured.sharpness` of samples [n, D]."""
    if not samples.isfinite().all() or not samples.std() > 0:
        return None
    real, generated = (radial_spectrum(x.view(-1, *judge.heldout.shape)).high_share for x in (judge.heldout.x, samples))
    return generated / real


def sizes_of(setting: Setting, shape: tuple[int, int, int]) -> Sizes:
    """The sizes for images of a shape."""
    if setting.quick:
        return QUICK
    return SMALL if max(shape[1:]) <= SMALL_SIDE else FULL


def variational_settings(sizes: Sizes) -> VisionConfig:
    """Of the VAE, and of the VAE inside a VAE-GAN."""
    if sizes.hidden:
        return VisionConfig(variant="vae", width=sizes.latents, hidden=sizes.hidden)
    kind = "convolutional"
    return VisionConfig(variant="vae", width=sizes.latents, stem=kind, head=kind, channels=sizes.channels)


def make_stem(sizes: Sizes, shape: tuple[int, int, int]) -> Stem:
    """A discriminator's stem, the same as the VAE's."""
    return MLPStem(math.prod(shape), sizes.hidden) if sizes.hidden else ConvolutionalStem(shape, sizes.channels)


def make_head(sizes: Sizes, shape: tuple[int, int, int]) -> Head:
    """The GAN's head, the same as the VAE's."""
    if sizes.hidden:
        return MLPHead(math.prod(shape), sizes.hidden[::-1], True)
    return ConvolutionalHead(shape, sizes.channels, True, True)


def quantised(
    setting: Setting, variant: str, data: str, sizes: Sizes, channels: tuple[int, ...], seed: int
) -> ImageRun:
    """The run of a VQ-VAE or VQ-VAE-2."""
    vision = VisionConfig(variant=variant, width=sizes.atoms, code_dim=16, channels=channels)
    options = {"data": data, "epochs": sizes.vqvae_epochs, "limit": sizes.limit, "seed": seed}
    return trained(setting, f"generative-{variant}", vision, **options)


def families(setting: Setting, data: str, shape: tuple[int, int, int], seed: int) -> dict[str, Sampler]:
    """Every family's model of one seed, trained on the same images."""
    sizes, small = sizes_of(setting, shape), max(shape[1:]) <= SMALL_SIDE
    options = {"data": data, "epochs": sizes.vae_epochs, "limit": sizes.limit, "seed": seed}
    run = trained(setting, "generative-vae", variational_settings(sizes), **options)
    x = run.images("train").all()

    def latent_diffusion() -> Sampler:
        return train_latent_diffusion(run, sizes.latent, seed=seed, hidden=128)

    def vaegan() -> Sampler:
        model = recipe_of(variational_settings(sizes), shape, len(x)).model
        return train_vaegan(x, model, make_stem(sizes, shape), sizes.vaegan, seed=seed)

    def prior() -> Sampler:
        channels = sizes.channels[:1] if small else sizes.channels
        return train_prior(quantised(setting, "vqvae", data, sizes, channels, seed), sizes.prior, seed=seed)

    network = (lambda: MLPDenoiser(x.shape[1])) if small else (lambda: ConvolutionalDenoiser(shape, 24))
    makers: dict[str, Callable[[], Sampler]] = {
        "VAE": lambda: from_prior(run),
        "GAN": lambda: train_gan(x, make_stem(sizes, shape), make_head(sizes, shape), sizes.gan, seed=seed),
        "diffusion": lambda: train_diffusion(x, network, sizes.diffusion, seed=seed),
        "latent diffusion": latent_diffusion,
        "VAE-GAN": vaegan,
        "VQ-VAE + prior": prior,
    }
    models = {}
    for name, make in makers.items():
        setting.tell(f"{name}, seed {seed}")
        models[name] = make()
    return models


def images_seen(sizes: Sizes, count: int) -> dict[str, int]:
    """Training images that every family sees, with repetitions; `count` is one epoch's."""
    vae, vqvae = sizes.vae_epochs * count, sizes.vqvae_epochs * count
    return {
        "VAE": vae,
        "GAN": sizes.gan.steps * sizes.gan.batch,
        "diffusion": sizes.diffusion.steps * sizes.diffusion.batch,
        "latent diffusion": sizes.latent.steps * sizes.latent.batch + vae,
        "VAE-GAN": sizes.vaegan.steps * sizes.vaegan.batch,
        "VQ-VAE + prior": sizes.prior.steps * sizes.prior.batch + vqvae,
    }
