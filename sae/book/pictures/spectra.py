"""Spatial frequencies of several sets of images: blur lacks high frequencies; the checkerboard is a lattice.

draw_spectra(spectra_of({"originals": x, "reconstructions": x_hat}, [1, 28, 28]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sae.book.measures.spectra import Checkerboard, RadialSpectrum, checkerboard, radial_spectrum
from sae.pictures.charts import draw_bars
from sae.pictures.lines import Curve, draw_lines


def spectra_of(images: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, RadialSpectrum]:
    """The radial spectrum of every set of images [n, C·H·W] (at most its first 2,000)."""
    return {name: radial_spectrum(x[:2000].view(-1, *shape)) for name, x in images.items()}


def draw_spectra(spectra: Mapping[str, RadialSpectrum]) -> Figure:
    """log10 power by spatial frequency, a line a set."""
    curves = {}
    for name, spectrum in spectra.items():
        finite = np.isfinite(spectrum.log_power)
        curves[name] = Curve(spectrum.frequency[finite].tolist(), spectrum.log_power[finite].tolist())
    return draw_lines(curves, "Spatial frequency (cycles a pixel)", "Power (log10)")


def checkerboards_of(images: Mapping[str, Tensor], shape: Sequence[int], stride: int) -> dict[str, Checkerboard]:
    """The checkerboard of every set of images [n, C·H·W] (at most its first 2,000)."""
    return {name: checkerboard(x[:2000].view(-1, *shape), stride) for name, x in images.items()}


def draw_checkerboards(boards: Mapping[str, Checkerboard], stride: int) -> Figure:
    """Share of the variance in a pattern that all images share, one bar a set, beside that of noise."""
    floor = max(board.phases_of_noise for board in boards.values())
    return draw_bars(
        {name: board.phases for name, board in boards.items()},
        label=f"Variance of the {stride} x {stride} phases' means over total variance",
        log=all(board.phases > 0 for board in boards.values()),
        reference=("white noise", floor),
    )
