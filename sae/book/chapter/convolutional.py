"""The chapter's convolutional variational autoencoder, and what decoders do to spatial frequencies.

Its stages, reconstructions and samples; the checkerboard of transposed convolutions; a VAE's blur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.latent_space import prior_draws
from sae.book.chapter.measure import Spread, ae, fvu, heldout, mean_of, over_seeds, reconstructed, untrained, vae
from sae.book.measures.spectra import Checkerboard, power, radial_spectrum
from sae.book.pictures.grids import draw_rows, draw_tiles
from sae.book.pictures.latents import draw_interpolation
from sae.book.pictures.spectra import checkerboards_of, draw_checkerboards, draw_spectra, spectra_of
from sae.config import VisionConfig
from sae.models.autoencoder import Autoencoder
from sae.models.heads import ConvolutionalHead
from sae.models.stems import ConvolutionalStem
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun, decode_dense, dense_codes

CHAPTER_SHAPE = (3, 64, 64)
LATENTS = 16
SHOWN = 10
STRIDE = 2  # of every stage of the decoders
FLOOR = 1e-8  # share of the largest power at which the picture's colours end
KINDS = {"transposed": False, "upsampled": True}
"""Decoders by whether they double and convolve, in place of a transposed convolution."""
SETS: tuple[str, ...] = ("samples", "reconstructions", "errors")
MEASURES = {"phases": "variance in the 2 x 2 pattern", "lattice": "power on the lattice / off it"}
"""Of a checkerboard, with their names in tables."""
Boards = dict[str, Spread]
"""Every measure over seeds."""


def convolutional_vae(*, upsampling: bool) -> VisionConfig:
    """Convolutions of kernel 4, stride 2 and padding 1 to 32, 64 and 128 channels, a code, and as many back.

    Args:
        upsampling: doubling and a convolution in place of the chapter's transposed convolutions.
    """
    return VisionConfig(variant="vae", width=LATENTS, stem="convolutional", head="convolutional", upsampling=upsampling)


@torch.no_grad()
def stages(model: Autoencoder, shape: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Every stage's name and the shape of its output, for one image.

    Raises:
        ValueError: stem or head is not convolutional.
    """
    stem, head = model.stem, model.head
    if not isinstance(stem, ConvolutionalStem) or not isinstance(head, ConvolutionalHead):
        raise ValueError("model: expected a convolutional stem and head")
    x = torch.zeros(1, model.dim)
    down, outputs = stem.stages(x), model.select(model.embed(x)).values
    decoded = model.dictionary.decode(model.encode(x))
    rows = [("image", list(shape))]
    rows += [(_kind(layer), list(output.shape[1:])) for layer, output in zip(stem.layers, down, strict=True)]
    rows += [("flatten", [stem.dim]), ("linear: μ and log σ²", [outputs.shape[1] // 2, outputs.shape[1] // 2])]
    rows += [("linear, reshaped", list(decoded.view(-1, *head.map).shape[1:]))]
    up = head.stages(decoded)
    return rows + [(_kind(layer), list(output.shape[1:])) for layer, output in zip(head.layers, up, strict=True)]


def _kind(layer: torch.nn.Module) -> str:
    assert isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    return f"{type(layer).__name__}, kernel {kernel}, stride {stride}, padding {padding}"


def room_run(setting: Setting, *, upsampling: bool, epochs: int, size: int, limit: int, seed: int = 0) -> ImageRun:
    """A convolutional VAE of rooms with an object, size x size pixels."""
    name = f"convolutional-{'upsampled' if upsampling else 'transposed'}-{epochs}"
    vision, data = convolutional_vae(upsampling=upsampling), f"shapes3d?size={size}"
    return trained(setting, name, vision, data=data, epochs=epochs, limit=limit, seed=seed)


@experiment("convolutional_vae", rows=(17,), title="A convolutional variational autoencoder", seeds="0")
def convolutional(setting: Setting) -> Finding:
    """The chapter's stages on 64 x 64 colour images, and reconstructions and samples of a trained one."""
    rows = stages(untrained(convolutional_vae(upsampling=False), CHAPTER_SHAPE, 0), CHAPTER_SHAPE)
    table = [{"stage": name, "shape": " x ".join(map(str, shape))} for name, shape in rows]
    epochs, size, limit = setting.pick((10, 64, 2000), (1, 16, 256))
    run = room_run(setting, upsampling=True, epochs=epochs, size=size, limit=limit)
    x = heldout(run, setting.pick(500, 50))
    rebuilt = reconstructed(run, x)
    error = fvu(x, rebuilt)
    samples = decode_dense(run.model, prior_draws(SHOWN, run.model.width, 0))
    images = {"held-out": x[:SHOWN], "reconstructed": rebuilt[:SHOWN], "sampled": samples}
    codes = dense_codes(run.model, x[:2])
    pictures = [
        Picture(draw_rows(images, run.shape), "Held-out images, their reconstructions, and samples of the prior."),
        Picture(draw_interpolation(run.model, run.shape, x[:2], codes), "From one held-out image to another."),
    ]
    text = (
        f"Three convolutions reduce 64 x 64 to 8 x 8 while channels grow from 3 to 128, and three transposed ones lead "
        f"back (see the table). Trained with upsampling in place of the transposed convolutions, on "
        f"{run.record['data']['count']:,} images of {run.shape[1]} x {run.shape[2]} for {run.config.epochs} epochs, "
        f"{LATENTS} latents leave {error:.1%} of the variance of held-out images unexplained."
    )
    return Finding(text, {"stages": table, "fvu": error, "images": run.record["data"]["count"]}, [table], pictures)


@experiment("checkerboards", rows=(18,), title="Checkerboards of transposed convolutions, before and after training")
def checkerboards(setting: Setting) -> Finding:
    """Two decoders, before and during training; the measures see nothing but the stride's lattice."""
    drawn, count = setting.pick(5, 2), setting.pick(100, 30)
    lengths = setting.pick((1, 2, 4, 8), (1, 2))
    size, limit = setting.pick(32, 16), setting.pick(2000, 256)
    runs = {
        (kind, epochs): [
            room_run(setting, upsampling=upsampling, epochs=epochs, size=size, limit=limit, seed=seed)
            for seed in setting.seeds
        ]
        for kind, upsampling in KINDS.items()
        for epochs in lengths
    }
    last = {kind: runs[kind, lengths[-1]][0] for kind in KINDS}
    x, shape = heldout(last["transposed"], setting.pick(500, 100)), last["transposed"].shape
    before = {kind: random_boards(kind, count, drawn) for kind in KINDS}
    after = {key: _boards(of_key, x) for key, of_key in runs.items()}
    tables = {
        measure: [
            _compared("random decoders", {kind: before[kind][measure] for kind in KINDS}),
            *(
                _compared(f"{name} after {n} epochs", {kind: after[kind, n][name][measure] for kind in KINDS})
                for n in lengths
                for name in SETS
            ),
        ]
        for measure in MEASURES
    }
    ends = {measure: dict(zip(SETS, rows[-len(SETS) :], strict=True)) for measure, rows in tables.items()}
    phases = tables["phases"]
    numbers = {
        "untrained": {kind: before[kind]["phases"] for kind in KINDS},
        "untrained_ratio": phases[0]["ratio"],
        "trained_ratio": ends["phases"]["samples"]["ratio"],
        "error_ratio": ends["phases"]["errors"]["ratio"],
        "table": phases,
        "lattice": tables["lattice"],
    }
    data = checkerboards_of({"data": x}, shape, STRIDE)["data"]
    text = (
        f"Of the variance of images from random decoders, {mean_of(phases[0]['transposed']):.3f} is in a pattern of "
        f"2 x 2 pixels with transposed convolutions and {mean_of(phases[0]['upsampled']):.5f} with upsampling, "
        f"{times(phases[0]['ratio'])}. Means of {len(setting.seeds)} seeds after {lengths[-1]} epochs: "
        f"{_ends_said(ends['phases'])}. The data has {data.phases:.1e}, white noise of as many pixels "
        f"{data.phases_of_noise:.1e}. Power on the lattice over power off it, which counts patterns that differ "
        f"between images as well: {_ends_said(ends['lattice'])}; the data has {data.lattice:.1e}, white noise "
        f"{data.lattice_of_noise:.1e}."
    )
    named = [[{"measure": name, **row} for row in tables[measure]] for measure, name in MEASURES.items()]
    curves = {
        f"{kind}, {name}": Curve(lengths, [after[kind, epochs][name]["phases"] for epochs in lengths])
        for kind in KINDS
        for name in SETS[:2]
    }
    images = {f"{kind}, {name}": _images(last[kind], x)[name] for kind in KINDS for name in SETS[:2]}
    boards = {**checkerboards_of(images, shape, STRIDE), "data": data}
    pictures = [
        Picture(draw_checkerboards(boards, STRIDE), "After training, seed 0: samples, reconstructions, and the data."),
        Picture(
            draw_lines(curves, "epochs", "share of variance in the 2 x 2 pattern", log_x=True, log_y=True),
            "Over training: each point is runs of that many epochs, mean and 95% interval over seeds.",
        ),
        Picture(
            draw_planes([_samples(run.model, len(x)) for run in last.values()], shape),
            "Log power of samples by frequency across and down, zero in the middle: transposed left, upsampled right. "
            "A checkerboard is bright at the border.",
        ),
    ]
    return Finding(text, numbers, named, pictures)


def random_boards(kind: str, count: int, decoders: int) -> Boards:
    """Both measures over untrained decoders, each with `count` codes drawn from the prior."""
    vision = convolutional_vae(upsampling=KINDS[kind])
    models = [untrained(vision, CHAPTER_SHAPE, seed) for seed in range(decoders)]
    images = {str(seed): _samples(model, count, seed) for seed, model in enumerate(models)}
    return over_boards(list(checkerboards_of(images, CHAPTER_SHAPE, STRIDE).values()))


def over_boards(boards: Sequence[Checkerboard]) -> Boards:
    """Both measures over seeds."""
    return {measure: over_seeds([getattr(board, measure) for board in boards]) for measure in MEASURES}


def _boards(runs: Sequence[ImageRun], x: Tensor) -> dict[str, Boards]:
    """Both measures over runs of several seeds, for each of `SETS`."""
    by_seed = [checkerboards_of(_images(run, x), run.shape, STRIDE) for run in runs]
    return {name: over_boards([boards[name] for boards in by_seed]) for name in SETS}


def _images(run: ImageRun, x: Tensor) -> dict[str, Tensor]:
    rebuilt = reconstructed(run, x)
    return dict(zip(SETS, (_samples(run.model, len(x)), rebuilt, rebuilt - x), strict=True))


def _samples(model: Autoencoder, count: int, seed: int = 0) -> Tensor:
    return decode_dense(model, prior_draws(count, model.width, seed))


def _compared(images: str, boards: Mapping[str, Spread]) -> dict[str, Any]:
    """A row of a table: both kinds of decoders, and the first over the second."""
    return {"images": images, **boards, "ratio": mean_of(boards["transposed"]) / mean_of(boards["upsampled"])}


def times(ratio: float) -> str:
    """The second number compared with the first, in words, from the first over the second."""
    word, factor = ("less", ratio) if ratio >= 1 else ("more", 1 / ratio)
    return f"{factor:,.0f} times {word}" if factor >= 10 else f"{factor:.1f} times {word}"


def _ends_said(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{name} {mean_of(row['transposed']):.1e} transposed and {mean_of(row['upsampled']):.1e} upsampled, "
        f"{times(row['ratio'])}"
        for name, row in rows.items()
    )


def draw_planes(sets: Sequence[Tensor], shape: Sequence[int]) -> Figure:
    """log10 power of images [n, D] by frequency in both directions, brighter for more, on one scale."""
    planes = [power(images.view(-1, *shape)) for images in sets]
    # at frequency zero the power is 0
    logs = torch.stack([torch.from_numpy(np.log10(plane + plane.max() * FLOOR)) for plane in planes])
    centred = torch.fft.fftshift(logs, dim=(1, 2)).flatten(1)
    low, high = centred.quantile(0.01), centred.max()
    return draw_tiles(((centred - low) / (high - low)).clamp(0, 1), (1, *shape[1:]), len(planes))


def power_beyond(images: Tensor, shape: Sequence[int]) -> float:
    """Power of images [n, D] beyond a quarter of a cycle a pixel, corners included."""
    pictures = images.view(-1, *shape)
    return radial_spectrum(pictures).high_share * float(power(pictures).sum())


@experiment("blur", rows=(26,), title="Blur: how much of the data's high frequencies is left", seeds="0")
def blur(setting: Setting) -> Finding:
    """Power at high spatial frequencies, of data, reconstructions and samples."""
    run, plain = vae(setting), ae(setting)
    x = heldout(run, 1000)
    sets = {
        "data": x,
        "AE, reconstructions": reconstructed(plain, x),
        "VAE, reconstructions": reconstructed(run, x),
        "VAE, samples": _samples(run.model, len(x)),
    }
    spectra = spectra_of(sets, run.shape)
    shares = {name: spectrum.high_share for name, spectrum in spectra.items()}
    total = power_beyond(x, run.shape)
    kept = {name: power_beyond(images, run.shape) / total for name, images in sets.items()}
    table = [
        {"images": name, "share beyond 0.25": shares[name], "power beyond 0.25, data = 1": kept[name]} for name in sets
    ]
    picture = Picture(draw_spectra(spectra), "Power by spatial frequency, mean over directions and images.")
    return Finding(blur_said(kept), {"kept": kept, "high_share": shares}, [table], [picture])


def blur_said(kept: Mapping[str, float]) -> str:
    """Which images are smoother than the data, from the power beyond the cutoff over the data's."""
    by_vae, by_ae, samples = (kept[name] for name in ("VAE, reconstructions", "AE, reconstructions", "VAE, samples"))
    smoother = [name for name, value in kept.items() if value < 1 and name != "data"]
    less = "less" if by_vae < by_ae else "no less"
    return (
        f"Beyond a quarter of a cycle a pixel, reconstructions by the VAE have {by_vae:.0%} of the data's power, "
        f"{less} than by the autoencoder of the same size ({by_ae:.0%}); samples of the VAE have {samples:.0%}. "
        f"Smoother than the data: {'; '.join(smoother) or 'none'}."
    )
