"""Spatial frequencies of several sets of images: blur as lost high ones, a checkerboard as a lattice of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sae.book.measures.spectra import Checkerboard, RadialSpectrum, checkerboard, radial_spectrum
from sae.book.pictures.bars import draw_bars
from sae.book.pictures.lines import Curve, draw_lines


def spectra_of(images: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, RadialSpectrum]:
    """The radial spectrum of every set of images [n, C·H·W] (at most its first 2,000)."""
    return {name: radial_spectrum(x[:2000].view(-1, *shape)) for name, x in images.items()}


def draw_spectra(spectra: Mapping[str, RadialSpectrum]) -> Figure:
    """log10 power by spatial frequency, a line a set."""
    curves = {}
    for name, spectrum in spectra.items():
        there = np.isfinite(spectrum.log_power)
        curves[name] = Curve(spectrum.frequency[there].tolist(), spectrum.log_power[there].tolist(), "-o")
    return draw_lines(curves, "Spatial frequency (cycles a pixel)", "Power (log10)")


def checkerboards_of(images: Mapping[str, Tensor], shape: Sequence[int], stride: int) -> dict[str, Checkerboard]:
    """The checkerboard of every set of images [n, C·H·W] (at most its first 2,000)."""
    return {name: checkerboard(x[:2000].view(-1, *shape), stride) for name, x in images.items()}


def draw_checkerboards(found: Mapping[str, Checkerboard], stride: int) -> Figure:
    """Share of the variance in a pattern that all images share, a bar a set, beside that of noise."""
    floor = max(board.phases_of_noise for board in found.values())
    return draw_bars(
        {name: board.phases for name, board in found.items()},
        label=f"Variance of the {stride} x {stride} phases' means over total variance",
        log=all(board.phases > 0 for board in found.values()),
        reference=("white noise", floor),
    )
