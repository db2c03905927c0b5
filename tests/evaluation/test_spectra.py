"""Checkerboards and spectra against closed forms: lattices, white noise, single waves, Parseval, random decoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sae.book.measures.spectra import checkerboard, power, radial_spectrum
from sae.config import ConfigError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tiles(stride: int, n: int = 3, channels: int = 2, size: int = 24) -> np.ndarray:
    """One random tile of stride x stride pixels, repeated over all of every image."""
    return np.tile(noise(1, channels, stride, stride, seed=stride), (n, 1, size // stride, size // stride))


def decoder(upsample: bool, seed: int) -> nn.Sequential:
    """The chapter's decoder with random weights: 128x8x8 -> 64x16x16 -> 32x32x32 -> 3x64x64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(64, 128 * 64), nn.Unflatten(1, (128, 8, 8))]
    for before, after in ((128, 64), (64, 32), (32, 3)):
        if upsample:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        else:
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("stride", [2, 3, 4, 8])
def test_a_repeated_tile_is_all_checkerboard(stride: int) -> None:
    result = checkerboard(tiles(stride), stride)
    assert result.phases == pytest.approx(1)
    assert result.lattice == float("inf")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_phases_are_the_share_of_variance_of_a_checkerboard_under_noise(share: float) -> None:
    rows, columns = np.indices((32, 32))
    board = np.where((rows + columns) % 2, 1.0, -1.0)
    grain = noise(100, 1, 32, 32)
    # with every grain's negative, board and grain are uncorrelated to the last digit
    result = checkerboard(np.sqrt(share) * board + np.sqrt(1 - share) * np.concatenate([grain, -grain]), 2)
    assert result.phases == pytest.approx(share, abs=0.005)
    # in power the noise's own part on the lattice, three of 1024 frequencies, adds to it
    assert result.lattice == pytest.approx((share + (1 - share) * 3 / 1024) / ((1 - share) * 1020 / 1024), rel=0.02)


@pytest.mark.parametrize(("shape", "stride"), [((4, 1, 8, 8), 2), ((2, 3, 12, 6), 3)])
def test_white_noise_gives_the_value_it_is_said_to_give(shape: tuple[int, ...], stride: int) -> None:
    draws = [checkerboard(noise(*shape, seed=seed), stride) for seed in range(400)]
    wanted = draws[0].phases_of_noise
    assert wanted == pytest.approx((stride**2 - 1) / (shape[0] * shape[2] * shape[3] - 1))
    values = np.array([draw.phases for draw in draws])
    assert values.mean() == pytest.approx(wanted, abs=4 * values.std() / 20)
    ratio = checkerboard(noise(2000, shape[1], *shape[2:]), stride)
    assert ratio.lattice == pytest.approx(ratio.lattice_of_noise, rel=0.05)


def test_both_measures_agree_on_one_image_and_part_where_images_differ_in_their_pattern() -> None:
    one = checkerboard(noise(1, 1, 16, 16), 4)
    assert one.phases == pytest.approx(one.lattice / (1 + one.lattice))
    opposite = np.concatenate([tiles(2, n=1), -tiles(2, n=1)])
    assert checkerboard(opposite, 2).phases == pytest.approx(0, abs=1e-12)
    assert checkerboard(opposite, 2).lattice == float("inf")


def test_checkerboard_ignores_shift_scale_offset_and_the_order_of_images() -> None:
    images = tiles(4) + noise(3, 2, 24, 24)
    plain = checkerboard(images, 4)
    offset = np.array([5.0, -3.0])[None, :, None, None]
    for other in (np.roll(images, (3, 5), axis=(2, 3)), 7 * images, images + offset, images[::-1]):
        assert checkerboard(other, 4) == pytest.approx(plain)
    assert checkerboard(torch.from_numpy(images).requires_grad_(), 4) == plain


def test_a_multiple_of_the_stride_sees_the_pattern_too_and_another_stride_does_not() -> None:
    assert checkerboard(tiles(2), 4).phases == pytest.approx(1)
    assert checkerboard(tiles(2), 3).phases == pytest.approx(0, abs=1e-12)


def test_random_transposed_convolutions_show_a_checkerboard_and_upsampling_does_not() -> None:
    with torch.no_grad():
        latents = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
        shared = {
            upsample: [checkerboard(decoder(upsample, seed)(latents), 2).phases for seed in range(4)]
            for upsample in (False, True)
        }
    assert min(shared[False]) > 0.1
    assert max(shared[True]) < 0.001


def test_power_of_a_wave_stands_at_its_frequency_and_the_mean_over_frequencies_is_the_variance() -> None:
    rows = np.arange(20)[:, None]
    wave = np.broadcast_to(3 * np.cos(2 * np.pi * 4 * rows / 20), (20, 30))[None, None]
    spectrum = power(wave + 2)
    assert spectrum.shape == (20, 30)
    assert np.argwhere(spectrum > 1e-9).tolist() == [[4, 0], [16, 0]]
    images = noise(5, 2, 9, 14)
    assert power(images).mean() == pytest.approx(images.var(axis=(2, 3)).mean())
    radial = radial_spectrum(wave)
    assert radial.frequency[radial.power.argmax()] == pytest.approx(4 / 20, abs=0.01)


@pytest.mark.parametrize("cutoff", [0.1, 0.25, 0.4])
def test_white_noise_has_a_flat_spectrum_and_its_share_of_high_frequencies(cutoff: float) -> None:
    result = radial_spectrum(3 * noise(300, 1, 32, 32), cutoff=cutoff)
    # an image's mean is taken off before, which costs a frequency in 1024 at (0, 0) alone
    np.testing.assert_allclose(result.power, 9, rtol=0.1)
    assert len(result.frequency) == 16
    assert result.frequency[-1] == pytest.approx(0.5, abs=0.01)
    assert result.high_share == pytest.approx(result.high_share_of_noise, abs=0.005)
    # the frequencies of a fine grid fill the square of area 1, of which a disc of this radius is low
    assert result.high_share_of_noise == pytest.approx(1 - np.pi * cutoff**2, abs=0.015)
    np.testing.assert_allclose(result.log_power, np.log10(result.power))


def test_blur_takes_power_from_high_frequencies_and_scale_does_not() -> None:
    images = noise(20, 1, 32, 32)
    blurred = sum(np.roll(images, (i, j), axis=(2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    sharp, soft = radial_spectrum(images), radial_spectrum(blurred)
    assert soft.high_share < sharp.high_share / 3
    assert soft.power[-1] < soft.power[0] / 5
    assert radial_spectrum(10 * blurred).high_share == pytest.approx(soft.high_share)


def test_a_power_law_is_a_straight_line_in_the_logarithm() -> None:
    size, slope = 64, 2.0
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    radius[0, 0] = np.inf
    images = np.fft.ifft2(np.fft.fft2(noise(40, 1, size, size)) * radius ** (-slope / 2)).real
    result = radial_spectrum(images)
    fit = np.polyfit(np.log10(result.frequency), result.log_power, 1)
    assert -fit[0] == pytest.approx(slope, abs=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: checkerboard(noise(2, 1, 9, 8), 2), "stride 2.*9x8.*crop"),
        (lambda: checkerboard(noise(2, 1, 8, 8), 1), "stride 1"),
        (lambda: checkerboard(noise(2, 1, 4, 4), 4), "stride 4.*several tiles"),
        (lambda: checkerboard(np.ones((2, 1, 4, 4)), 2), "no power"),
        (lambda: checkerboard(np.full((3, 1, 6, 6), 0.1), 2), "no power"),
        (lambda: radial_spectrum(np.full((3, 1, 6, 6), 0.1)), "no power"),
        (lambda: checkerboard(noise(8, 8), 2), r"images.*4 axes.*\(8, 8\)"),
        (lambda: radial_spectrum(noise(2, 1, 8, 8), cutoff=0.5), "cutoff 0.5"),
        (lambda: radial_spectrum(np.full((2, 1, 8, 8), np.nan)), "images: 128 of 128 values are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
