"""What decoders do to spatial frequencies: the checkerboard of transposed convolutions, and a VAE's blur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.book.chapter.base import Finding, Picture, Setting, experiment
from sae.book.chapter.convolutional import CHAPTER_SHAPE, convolutional_vae, room_run
from sae.book.chapter.latent_space import prior_draws
from sae.book.chapter.measure import Spread, mean_of, over_seeds, reconstructed
from sae.book.chapter.networks import untrained
from sae.book.chapter.variational_models import ae, heldout, vae
from sae.book.measures.spectra import Checkerboard, power, radial_spectrum
from sae.book.pictures.grids import draw_tiles
from sae.book.pictures.lines import Curve, draw_lines
from sae.book.pictures.spectra import checkerboards_of, draw_checkerboards, draw_spectra, spectra_of
from sae.runs.images import ImageRun, decode_dense

STRIDE = 2  # of every stage of the decoders
FLOOR = 1e-8  # of the largest power, under which the picture shows nothing
KINDS = {"transposed": False, "upsampled": True}
"""Decoders by whether they double and convolve, in place of a transposed convolution."""
WHAT: tuple[str, ...] = ("samples", "reconstructions", "errors")
MEASURES = {"phases": "variance in the 2 x 2 pattern", "lattice": "power on the lattice / off it"}
"""Of a checkerboard, as tables call them."""
Boards = dict[str, Spread]
"""Every measure over seeds."""
Rows = list[dict[str, Any]]


def random_decoders(count: int, seeds: int) -> dict[str, Tensor]:
    """Images [seeds, count, D] of decoders that have learnt nothing, from codes of the prior, by kind."""
    found = {}
    for kind, upsampling in KINDS.items():
        models = [untrained(convolutional_vae(upsampling=upsampling), CHAPTER_SHAPE, seed) for seed in range(seeds)]
        images = [decode_dense(model, prior_draws(count, model.width, i)) for i, model in enumerate(models)]
        found[kind] = torch.stack(images)
    return found


@experiment("checkerboards", rows=(18,), title="Checkerboards of transposed convolutions, before and after training")
def checkerboards(setting: Setting) -> Finding:
    """Two decoders, before training and while it goes on; the measures are blind to all but the stride's lattice."""
    drawn, count = setting.pick(5, 2), setting.pick(100, 30)
    before = {
        kind: over_boards([checkerboards_of({kind: one}, CHAPTER_SHAPE, STRIDE)[kind] for one in images])
        for kind, images in random_decoders(count, drawn).items()
    }
    lengths = setting.pick((1, 2, 4, 8), (1, 2))
    size, limit = setting.pick(32, 16), setting.pick(2000, 256)
    runs = {
        kind: {
            epochs: [
                room_run(setting, upsampling=up, epochs=epochs, size=size, limit=limit, seed=seed)
                for seed in setting.seeds
            ]
            for epochs in lengths
        }
        for kind, up in KINDS.items()
    }
    last = {kind: of_kind[lengths[-1]] for kind, of_kind in runs.items()}
    x, shape = heldout(last["transposed"][0], setting.pick(500, 100)), last["transposed"][0].shape
    after = {
        kind: {epochs: _boards(of_length, x) for epochs, of_length in of_kind.items()} for kind, of_kind in runs.items()
    }

    tables = {measure: _rows(before, after, measure) for measure in MEASURES}
    ends = {measure: dict(zip(WHAT, rows[-len(WHAT) :], strict=True)) for measure, rows in tables.items()}
    phases, lattice = tables.values()
    numbers = {
        "untrained": {kind: before[kind]["phases"] for kind in KINDS},
        "untrained_ratio": phases[0]["ratio"],
        "trained_ratio": ends["phases"]["samples"]["ratio"],
        "error_ratio": ends["phases"]["errors"]["ratio"],
        "table": phases,
        "lattice": lattice,
    }
    data = checkerboards_of({"data": x}, shape, STRIDE)["data"]
    text = (
        f"Of the variance of images from random decoders, {mean_of(phases[0]['transposed']):.3f} lies in a pattern of "
        f"2 x 2 pixels with transposed convolutions and {mean_of(phases[0]['upsampled']):.5f} with upsampling, "
        f"{times(phases[0]['ratio'])}. Means of {len(setting.seeds)} seeds after {lengths[-1]} epochs: "
        f"{_ends_said(ends['phases'])}. The data has {data.phases:.1e}, white noise of as many pixels "
        f"{data.phases_of_noise:.1e}. Power on the lattice over power off it, which counts patterns that differ "
        f"between images as well: {_ends_said(ends['lattice'])}; the data has {data.lattice:.1e}, white noise "
        f"{data.lattice_of_noise:.1e}."
    )
    named = [
        [{"measure": name, **row} for row in rows]
        for name, rows in zip(MEASURES.values(), tables.values(), strict=True)
    ]
    return Finding(text, numbers, named, _pictures(last, after, x, data))


def _rows(before: Mapping[str, Boards], after: Mapping[str, Mapping[int, Mapping[str, Boards]]], measure: str) -> Rows:
    """The table of one measure: random decoders, then all that is looked at by rising epochs."""
    rows = [_compared("random decoders", {kind: before[kind][measure] for kind in KINDS})]
    for epochs in after["transposed"]:
        for what in WHAT:
            found = {kind: after[kind][epochs][what][measure] for kind in KINDS}
            rows.append(_compared(f"{what} after {epochs} epochs", found))
    return rows


def _pictures(
    last: Mapping[str, Sequence[ImageRun]],
    after: Mapping[str, Mapping[int, Mapping[str, Boards]]],
    x: Tensor,
    data: Checkerboard,
) -> list[Picture]:
    """Bars and power of the longest runs of seed 0, and the measure over training; x are held-out images [n, D]."""
    curves = {
        f"{kind}, {what}": Curve(list(after[kind]), [found[what]["phases"] for found in after[kind].values()])
        for kind in KINDS
        for what in ("samples", "reconstructions")
    }
    boards = {
        f"{kind}, {what}": images
        for kind, of_kind in last.items()
        for what, images in _images(of_kind[0], x).items()
        if what != "errors"
    }
    return [
        Picture(
            draw_checkerboards({**checkerboards_of(boards, last["transposed"][0].shape, STRIDE), "data": data}, STRIDE),
            "After training, seed 0: samples, reconstructions, and the data.",
            vector=True,
        ),
        Picture(
            draw_lines(curves, "epochs", "share of variance in the 2 x 2 pattern", log_x=True, log_y=True),
            "While training goes on: each point is runs of that many epochs, mean and 95% interval over seeds.",
            vector=True,
        ),
        Picture(
            draw_planes({kind: of_kind[0] for kind, of_kind in last.items()}, len(x)),
            "Log power of samples by frequency across and down, zero in the middle: transposed left, upsampled right. "
            "A checkerboard is what is bright at the border.",
        ),
    ]


def _compared(images: str, found: Mapping[str, Spread]) -> dict[str, Any]:
    """A row of a table: both kinds of decoders, and how many times less the second has."""
    ratio = mean_of(found["transposed"]) / mean_of(found["upsampled"])
    return {"images": images, **found, "ratio": ratio}


def times(ratio: float) -> str:
    """How the second number is beside the first, from the first over the second."""
    word, factor = ("less", ratio) if ratio >= 1 else ("more", 1 / ratio)
    return f"{factor:,.0f} times {word}" if factor >= 10 else f"{factor:.1f} times {word}"


def _ends_said(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{what} {mean_of(row['transposed']):.1e} transposed and {mean_of(row['upsampled']):.1e} upsampled, "
        f"{times(row['ratio'])}"
        for what, row in rows.items()
    )


def over_boards(boards: Sequence[Checkerboard]) -> Boards:
    """Both measures over seeds."""
    return {measure: over_seeds([getattr(board, measure) for board in boards]) for measure in MEASURES}


def _boards(runs: Sequence[ImageRun], x: Tensor) -> dict[str, Boards]:
    """Both measures over runs of several seeds, by what is looked at."""
    found = [checkerboards_of(_images(run, x), run.shape, STRIDE) for run in runs]
    return {what: over_boards([boards[what] for boards in found]) for what in WHAT}


def _images(run: ImageRun, x: Tensor) -> dict[str, Tensor]:
    rebuilt = reconstructed(run, x)
    return {"samples": _samples(run, len(x)), "reconstructions": rebuilt, "errors": rebuilt - x}


def _samples(run: ImageRun, count: int) -> Tensor:
    return decode_dense(run.model, prior_draws(count, run.model.width, 0))


def draw_planes(runs: dict[str, ImageRun], count: int) -> Figure:
    """log10 power of samples by frequency in both directions, brighter for more, on one scale."""
    shape = next(iter(runs.values())).shape
    planes = [power(_samples(run, count).view(-1, *shape)) for run in runs.values()]
    # an image's own mean, at zero, has no power
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
        "VAE, samples": decode_dense(run.model, prior_draws(len(x), run.model.width, 0)),
    }
    found = spectra_of(sets, run.shape)
    high = {name: power_beyond(images, run.shape) for name, images in sets.items()}
    table = [
        {
            "images": name,
            "share beyond 0.25": s.high_share,
            "power beyond 0.25, data = 1": high[name] / high["data"],
        }
        for name, s in found.items()
    ]
    kept = {name: value / high["data"] for name, value in high.items()}
    picture = Picture(draw_spectra(found), "Power by spatial frequency, mean over directions and images.", vector=True)
    shares = {name: s.high_share for name, s in found.items()}
    return Finding(blur_said(kept), {"kept": kept, "high_share": shares}, [table], [picture])


def blur_said(kept: Mapping[str, float]) -> str:
    """From the power beyond the cutoff over the data's: who is smoother than the data, and than the other."""
    own, plain, samples = (kept[name] for name in ("VAE, reconstructions", "AE, reconstructions", "VAE, samples"))
    smoother = [name for name, value in kept.items() if value < 1 and name != "data"]
    beside = "less" if own < plain else "no less"
    return (
        f"Beyond a quarter of a cycle a pixel, reconstructions have {own:.0%} of the data's power by the VAE, {beside} "
        f"than by the autoencoder of the same size ({plain:.0%}); samples of the VAE have {samples:.0%}. Smoother than "
        f"the data: {'; '.join(smoother) or 'none'}."
    )
