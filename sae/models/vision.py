"""The variants for images: from a name and settings to an autoencoder and its loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sae.config import SPARSE, ConfigError, VisionConfig, unknown_choice
from sae.models import language
from sae.models.autoencoder import Autoencoder
from sae.models.heads import ConvolutionalHead, Head, MLPHead, TwoLevelHead
from sae.models.recipe import Corruption, Recipe
from sae.models.stems import ConvolutionalStem, MLPStem, Stem, TwoLevelStem
from sae.models.variants.images import (
    AE,
    BETA_TCVAE,
    BETA_VAE,
    CAPACITY_VAE,
    DENOISING,
    KL_SPARSE,
    LINEAR,
    VAE,
    VQ_VAE,
    VQ_VAE_2,
    ImageVariant,
    share_for,
)
from sae.modules.codes import Identity
from sae.modules.corruption import USUAL_LEVEL
from sae.modules.losses import Term

OWN: dict[str, ImageVariant] = {
    "ae": AE,
    "linear": LINEAR,
    "denoising": DENOISING,
    "kl_sparse": KL_SPARSE,
    "vae": VAE,
    "beta_vae": BETA_VAE,
    "capacity_vae": CAPACITY_VAE,
    "beta_tcvae": BETA_TCVAE,
    "vqvae": VQ_VAE,
    "vqvae2": VQ_VAE_2,
}
NAMES = (*OWN, *SPARSE)
PLAIN = ImageVariant(code=lambda config: Identity(), stem="none", head="none", output="linear")
"""What `auto` stands for in the settings of sparse variants."""
USUAL_CHANNELS = (32, 64, 128)
SMALLEST_MAP = 4  # sides of the last feature map, unless --channels is given
DECODES_ITSELF = {"nested_error", "gate_error"}  # terms that use the dictionary and bypass the head
USUAL_GAMMA = 100.0  # for images of 784 pixels or more
USUAL_LR = 1e-3  # of Adam, for sparse codes with a stem or head


def completed(config: VisionConfig, shape: Sequence[int]) -> VisionConfig:
    """The settings with every `auto` and default written out, for images of shape [C, H, W].

    Raises:
        ConfigError: an unknown variant, or settings that do not go together.
    """
    if config.variant not in NAMES:
        raise unknown_choice("--variant", config.variant, NAMES)
    row = OWN.get(config.variant, PLAIN)
    stem, head = _or_usual(config.stem, row.stem), _or_usual(config.head, row.head)
    pixels = math.prod(shape)
    whole = dataclasses.replace(
        config,
        stem=stem,
        head=head,
        channels=_channels(config, shape, stem, head),
        output=_or_usual(config.output, "linear" if head == "none" else row.output),
        likelihood=_or_usual(config.likelihood, row.likelihood),
        corruption=_or_usual(config.corruption, row.corruption),
        beta=config.beta if config.beta is not None else row.beta(pixels),
        gamma=config.gamma if config.gamma is not None else USUAL_GAMMA * share_for(pixels),
        rate_weight=config.rate_weight if config.rate_weight is not None else 0.01 * pixels,
    )
    plain = row is PLAIN and stem == head == "none" and whole.likelihood != "gaussian"
    whole = dataclasses.replace(whole, normalise=_or_usual(config.normalise, "scale" if plain else "none"))
    _check(whole, OWN.get(config.variant))
    level = None if whole.corruption == "none" else whole.corruption_level or USUAL_LEVEL[whole.corruption]
    return dataclasses.replace(whole, corruption_level=level)


def recipe_of(config: VisionConfig, shape: Sequence[int], samples: int) -> Recipe:
    """The configured variant for images of shape [C, H, W], `samples` of them in the training set.

    Raises:
        ConfigError: as `completed`.
    """
    config = completed(config, shape)
    pixels = math.prod(shape)
    stem, head = _stem(config, shape), _head(config, shape)
    if (1 if stem is None else stem.positions) != (1 if head is None else head.positions):
        raise ConfigError(f"--head {config.head}: reads another number of places than --stem {config.stem} outputs")
    row = OWN.get(config.variant)
    sparse = language.find_variant(config) if row is None else None
    if sparse is not None:
        code = sparse.code(config, pixels)
        # the term that revives dead latents reconstructs the residual from atoms, without the head
        terms = language.terms_of(config, sparse) if head is None else list(sparse.terms(config))
        terms = [_reconstruction(config) if term.name == "squared_error" else term for term in terms]
    else:
        assert row is not None
        code = row.code(config)
        terms = [_reconstruction(config), *row.terms(config, pixels, samples)]
    model = Autoencoder(
        pixels,
        config.width,
        code,
        stem=stem,
        head=head,
        unit_atoms=row is None or row.unit_atoms,
        per_token_norm=config.normalise == "layer_norm",
    )
    return Recipe(
        config=config,
        model=model,
        terms=terms,
        site_widths=[pixels],
        target_widths=[pixels],
        penalty=None if sparse is None else sparse.penalty(config),
        revival="none" if sparse is None or head is not None else language.revival_of(config, sparse),
        lr=row.lr if row is not None else None if stem is None and head is None else USUAL_LR,
        corruption=None if config.corruption_level is None else Corruption(config.corruption, config.corruption_level),
        rate_momentum=config.rate_momentum if config.variant == "kl_sparse" else None,
    )


def _or_usual(given: str, usual: str) -> str:
    return usual if given == "auto" else given


def _channels(config: VisionConfig, shape: Sequence[int], stem: str, head: str) -> tuple[int, ...]:
    """As given; else the usual ones, one for each time the sides can be halved (one less before a second level)."""
    kinds = {stem, head} & {"convolutional", "two_level"}
    if config.channels or not kinds:
        return config.channels
    halvings = 0
    while all(side % 2 ** (halvings + 1) == 0 and side >> (halvings + 1) >= SMALLEST_MAP for side in shape[1:]):
        halvings += 1
    odd = any((side >> halvings) % 2 for side in shape[1:])
    room = halvings - ("two_level" in kinds and odd)
    if room < 1:
        raise ConfigError(f"--stem {stem}: sides of {shape[1]} and {shape[2]} cannot be halved often enough")
    return USUAL_CHANNELS[:room]


def _check(config: VisionConfig, row: ImageVariant | None) -> None:
    """Refuse settings that do not go together."""
    variant = config.variant
    if variant in ("vqvae", "vqvae2") and config.stem not in ("convolutional", "two_level"):
        expected = "a codebook quantises the places of a feature map; expected convolutional or two_level"
        raise ConfigError(f"--stem {config.stem}: {expected}")
    for flag, part in (("--stem", config.stem), ("--head", config.head)):
        if part == "two_level" and variant not in ("vqvae", "vqvae2"):
            raise ConfigError(f"{flag} two_level: arranges the rows of a codebook; expected --variant vqvae or vqvae2")
    if config.likelihood == "bernoulli" and config.output != "sigmoid":
        raise ConfigError(f"--likelihood bernoulli: needs --output sigmoid, not {config.output}")
    if config.output == "sigmoid" and config.head == "none":
        raise ConfigError("--output sigmoid: needs a head (--head mlp), whose outputs it squashes")
    if (config.stem, config.head) != ("none", "none") and config.normalise != "none":
        raise ConfigError(f"--normalise {config.normalise}: cannot be folded through a stem or head; expected none")
    # training would compute it in normalised units, evaluation in pixels: two different densities
    density = config.likelihood == "gaussian" or (row is not None and row.code(config).stochastic)
    if density and config.normalise != "none":
        raise ConfigError(f"--normalise {config.normalise}: a likelihood is of the pixels themselves; expected none")
    if config.corrupted_only and config.corruption in ("none", "gaussian"):
        raise ConfigError(f"--corrupted-only: --corruption {config.corruption} does not single out pixels")
    if config.corrupted_only and config.likelihood != "squared_error":
        raise ConfigError(f"--corrupted-only: counts squared error, not --likelihood {config.likelihood}")
    if row is None:
        _check_sparse(config)


def _check_sparse(config: VisionConfig) -> None:
    sparse = language.find_variant(config)
    terms = {term.name for term in sparse.terms(config)} & DECODES_ITSELF
    if terms and config.head != "none":
        does = f"scores the dictionary's own output ({', '.join(sorted(terms))})"
        raise ConfigError(f"--head {config.head}: --variant {config.variant} {does}; expected none")
    if terms and config.likelihood != "squared_error":
        raise ConfigError(f"--likelihood {config.likelihood}: --variant {config.variant} has squared errors of its own")
    if config.stem != "none" and sparse.code(config, 1).tied:
        raise ConfigError(f"--stem {config.stem}: the encoder of {config.variant} is its dictionary; expected none")
    if config.revival == "resample" and (config.stem, config.head) != ("none", "none"):
        raise ConfigError("--revival resample: points dead latents at inputs, which needs --stem none and --head none")


def _reconstruction(config: VisionConfig) -> Term:
    if config.corrupted_only:
        return Term("squared_error_where_corrupted")
    return Term(config.likelihood, 1.0, {"variance": config.variance} if config.likelihood == "gaussian" else {})


def _stem(config: VisionConfig, shape: Sequence[int]) -> Stem | None:
    rows = config.code_dim if config.variant in ("vqvae", "vqvae2") else 0
    if config.stem == "mlp":
        return MLPStem(math.prod(shape), config.hidden)
    if config.stem == "convolutional":
        return ConvolutionalStem(shape, config.channels, rows)
    return TwoLevelStem(shape, config.channels, rows) if config.stem == "two_level" else None


def _head(config: VisionConfig, shape: Sequence[int]) -> Head | None:
    rows, squash = config.code_dim if config.variant in ("vqvae", "vqvae2") else 0, config.output == "sigmoid"
    if config.head == "mlp":
        return MLPHead(math.prod(shape), config.hidden[::-1], squash)
    if config.head == "convolutional":
        return ConvolutionalHead(shape, config.channels, squash, config.upsampling, rows)
    return TwoLevelHead(shape, config.channels, squash, config.upsampling, rows) if config.head == "two_level" else None
