"""What a decoder does to spatial frequencies: the checkerboard of strided upsampling, and blur.

    checkerboard(images, stride=2).phases     # 0 without a lattice, 1 if there is nothing else
    radial_spectrum(images).high_share        # falls as images blur

With random weights the decoder 128x8x8 -> 64 -> 32 -> 3x64x64 has `phases` .32 (standard deviation .10 over 32 seeds)
with transposed convolutions of kernel 4 and stride 2, .0002 with nearest upsampling and convolutions. Every output sums
as many kernel taps, but each phase has other weights, and after a ReLU all inputs are positive: without the ReLU
it is .06.

Frequencies are in cycles a pixel, 0 to 1/2 along an axis. Every channel counts as a separate image. Images are
not windowed: differences between opposite borders leak along the two axes, in generated images and data alike, so
compare spectra only with those of images of the same size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from einops import reduce

from sae.config import ConfigError
from sae.evaluation.arrays import table


class Checkerboard(NamedTuple):
    """How much of the images' variance is a pattern that repeats every `stride` pixels."""

    phases: float
    """Variance of the means of the stride² phases (i mod s, j mod s) over total variance, in [0, 1]. A phase's mean is
    over images and positions, so this is the pattern that all images share (Pearson's correlation ratio η²)."""
    lattice: float
    """Power at the frequencies (u/s, v/s), u and v in 0..s-1 but for (0, 0), over the power at all others, from 0 up;
    infinite if there is no other. Power adds up over images, so patterns that differ between images count."""
    phases_of_noise: float
    """Mean of `phases` for white Gaussian noise of these shapes, (s² - 1)/(nHW - 1)."""
    lattice_of_noise: float
    """`lattice` of white noise, (s² - 1)/(HW - s²): the ratio of the numbers of frequencies."""


class RadialSpectrum(NamedTuple):
    """Power by spatial frequency, averaged over directions, images and channels."""

    frequency: np.ndarray
    """Cycles a pixel, mean over the ring, [B], rising; rings are 1/min(H, W) wide and go up to 1/2."""
    power: np.ndarray
    """Mean power of the ring's frequencies, [B]; σ² everywhere for white noise of variance σ²."""
    high_share: float
    """Power at frequencies beyond the cutoff, corners included, over all power except that of the images' means."""
    high_share_of_noise: float
    """The same of white noise: the share of the frequencies that lie beyond the cutoff."""

    @property
    def log_power(self) -> np.ndarray:
        """log10 of the power, -inf for a ring without any, [B]."""
        with np.errstate(divide="ignore"):
            return np.log10(self.power)


def checkerboard(images: Any, stride: int) -> Checkerboard:
    """The checkerboard of strided upsampling (Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003), two ways.

    For one image with one channel the two are equivalent: phases = lattice / (1 + lattice), by Parseval. Neither
    changes if images are shifted cyclically, scaled by one factor, or get a constant added to a channel.

    Args:
        images: [n, C, H, W], H and W multiples of the stride.
        stride: pixels from a point of the pattern to the next, 2 or more: a decoder's last stride, or the product of
            its strides for the patterns of all its layers.

    Raises:
        ConfigError: wrong shapes, a stride that does not divide them, or images without any contrast.
    """
    x = table(images, "images", ndim=4)
    n, _, height, width = x.shape
    if stride < 2 or height % stride or width % stride or height * width == stride**2:
        raise ConfigError(
            f"stride {stride}: expected 2 or more, dividing images of {height}x{width} into several tiles; "
            "crop the images to a multiple of the stride"
        )
    square = (x**2).mean()
    x = x - reduce(x, "n c h w -> 1 c 1 1", "mean")
    _need_contrast((x**2).mean(), square)
    total = reduce(x**2, "n c h w -> c", "mean").sum()
    phase = reduce(x, "n c (h i) (w j) -> c i j", "mean", i=stride, j=stride)
    spectrum = power(x)
    # frequency (0, 0) is among them and has no power
    on_lattice = spectrum[:: height // stride, :: width // stride].sum()
    off_lattice = spectrum.sum() - on_lattice
    # an exact cancellation leaves rounding errors, and no power
    exact = off_lattice <= 1e-12 * spectrum.sum()
    return Checkerboard(
        phases=float(reduce(phase**2, "c i j -> c", "mean").sum() / total),
        lattice=float("inf") if exact else float(on_lattice / off_lattice),
        phases_of_noise=(stride**2 - 1) / (n * height * width - 1),
        lattice_of_noise=(stride**2 - 1) / (height * width - stride**2),
    )


def power(images: Any) -> np.ndarray:
    """Power |FFT|²/(HW), mean over images and channels [n, C, H, W]: [H, W], frequency (0, 0) first and zero.

    Every image's mean is subtracted. The mean over frequencies is the images' variance (Parseval).
    """
    x = table(images, "images", ndim=4)
    x = x - reduce(x, "n c h w -> n c 1 1", "mean")
    squares = np.abs(np.fft.fft2(x)) ** 2 / (x.shape[2] * x.shape[3])
    return reduce(squares, "n c h w -> h w", "mean")


def radial_spectrum(images: Any, *, cutoff: float = 0.25) -> RadialSpectrum:
    """Radially averaged power spectrum (van der Schaaf and van Hateren 1996), and the share of high frequencies.

    Args:
        images: [n, C, H, W].
        cutoff: cycles a pixel beyond which a frequency is high, between 0 and 1/2.

    Raises:
        ConfigError: wrong shapes, a cutoff out of range, or images without any contrast.
    """
    if not 0 < cutoff < 0.5:
        raise ConfigError(f"cutoff {cutoff}: expected cycles a pixel between 0 and 0.5, the highest along an axis")
    x = table(images, "images", ndim=4)
    spectrum = power(x)
    _need_contrast(spectrum.mean(), (x**2).mean())
    height, width = spectrum.shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    ring = np.rint(radius * min(height, width)).astype(int)
    inside = (ring > 0) & (radius <= 0.5)
    count = np.bincount(ring[inside])[1:]
    frequency = np.bincount(ring[inside], weights=radius[inside])[1:] / count
    mean = np.bincount(ring[inside], weights=spectrum[inside])[1:] / count
    high = radius > cutoff
    return RadialSpectrum(
        frequency=frequency,
        power=mean,
        high_share=float(spectrum[high].sum() / spectrum.sum()),
        high_share_of_noise=float(high.sum() / (spectrum.size - 1)),
    )


def _need_contrast(variance: float, square: float) -> None:
    """Refuse images whose variance is rounding error, relative to their mean square before any subtraction."""
    if not variance > 1e-12 * square:
        raise ConfigError("images: every pixel of a channel has one value, so there is no power to share out")
