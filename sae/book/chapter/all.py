"""Imports every module of experiments, which registers them; a new module needs a name here."""

from sae.book.chapter import (  # noqa: F401
    anomaly,
    collapse,
    convolutional,
    convolutional_spectra,
    denoising,
    family_tree,
    generative,
    latent_space,
    latent_space_arithmetic,
    overcomplete,
    quantised,
    reduction,
    sparse,
    undercomplete,
    variational,
    variational_beta,
    variational_bounds,
)
