"""What decoders do to spatial frequencies: the checkerboard of transposed convolutions, and a VAE's blur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.chapter.base import Finding, Picture, Setting, experiment
from sae.chapter.convolutional import CHAPTER_SHAPE, convolutional_vae, room_run, untrained
from sae.chapter.latent_space import prior_draws
from sae.chapter.measure import Spread, mean_of, over_seeds, reconstructed
from sae.chapter.variational_models import ae, heldout, vae
from sae.evaluation.spectra import power
from sae.image_runs import ImageRun, decode_dense
from sae.pictures.grids import draw_tiles
from sae.pictures.lines import Curve, draw_lines
from sae.pictures.spectra import checkerboards_of, draw_checkerboards, draw_spectra, spectra_of

STRIDE = 2  # of every stage of the decoders
FLOOR = 1e-8  # of the largest power, under which the picture shows nothing
KINDS = {"transposed": False, "upsampled": True}
"""Decoders by whether they double and convolve, in place of a transposed convolution."""
WHAT = ("samples", "reconstructions", "errors")


def random_decoders(count: int, seeds: int) -> dict[str, Tensor]:
    """Images [seeds, count, D] of decoders that have learnt nothing, from codes of the prior, by kind."""
    found = {}
    for kind, upsampling in KINDS.items():
        models = [untrained(convolutional_vae(upsampling=upsampling), CHAPTER_SHAPE, seed) for seed in range(seeds)]
        images = [decode_dense(model, prior_draws(count, model.width, i)) for i, model in enumerate(models)]
        found[kind] = torch.stack(images)
    return found


@experiment("checkerboards", rows=(18,), title="Transposed convolutions leave checkerboards, upsampling does not")
def checkerboards(setting: Setting) -> Finding:
    """Two decoders, before training and while it goes on; the measure is blind to anything but the stride's lattice."""
    drawn, count = setting.pick(5, 2), setting.pick(100, 30)
    before = {
        kind: over_seeds([checkerboards_of({kind: one}, CHAPTER_SHAPE, STRIDE)[kind].phases for one in images])
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
        kind: {epochs: _phases(of_length, x) for epochs, of_length in of_kind.items()} for kind, of_kind in runs.items()
    }
    table = [
        _compared("random decoders", before),
        *(
            _compared(f"{what} after {epochs} epochs", {kind: after[kind][epochs][what] for kind in KINDS})
            for epochs in lengths
            for what in WHAT
        ),
    ]
    ends = {what: _compared(what, {kind: after[kind][lengths[-1]][what] for kind in KINDS}) for what in WHAT}
    numbers = {
        "untrained": before,
        "untrained_ratio": table[0]["ratio"],
        "trained_ratio": ends["samples"]["ratio"],
        "error_ratio": ends["errors"]["ratio"],
        "table": table,
    }
    data = checkerboards_of({"data": x}, shape, STRIDE)["data"]
    text = (
        f"Of the variance of images from random decoders, {mean_of(before['transposed']):.3f} lies in a pattern of 2 x "
        f"2 pixels with transposed convolutions and {mean_of(before['upsampled']):.5f} with upsampling, "
        f"{numbers['untrained_ratio']:.0f} times less. Means of {len(setting.seeds)} seeds after {lengths[-1]} epochs: "
        + "; ".join(
            f"of {what} {mean_of(row['transposed']):.1e} and {mean_of(row['upsampled']):.1e} ({row['ratio']:.1f} times)"
            for what, row in ends.items()
        )
        + f". White noise of as many pixels has {data.phases_of_noise:.1e}."
    )
    curves = {
        f"{kind}, {what}": Curve(list(lengths), [after[kind][epochs][what] for epochs in lengths])
        for kind in KINDS
        for what in ("samples", "reconstructions")
    }
    boards = {
        f"{kind}, {what}": images
        for kind, of_kind in last.items()
        for what, images in _images(of_kind[0], x).items()
        if what != "errors"
    }
    shown = [
        Picture(
            draw_checkerboards({**checkerboards_of(boards, shape, STRIDE), "data": data}, STRIDE),
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
    return Finding(text, numbers, [table], shown)


def _compared(images: str, phases: Mapping[str, Spread]) -> dict[str, Any]:
    """A row of the table: both kinds of decoders, and how many times less the second has."""
    ratio = mean_of(phases["transposed"]) / mean_of(phases["upsampled"])
    return {"images": images, **phases, "ratio": ratio}


def _phases(runs: Sequence[ImageRun], x: Tensor) -> dict[str, Spread]:
    """Over runs of several seeds: the share of variance in the lattice's pattern, by what is looked at."""
    found = [checkerboards_of(_images(run, x), run.shape, STRIDE) for run in runs]
    return {what: over_seeds([boards[what].phases for boards in found]) for what in WHAT}


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


@experiment("blur", rows=(26,), title="Reconstructions of a variational autoencoder are blurred")
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
    # power above the cutoff of the share, in the units of the data's
    high = {name: float(s.power[s.frequency > 0.25].mean()) for name, s in found.items()}
    table = [
        {
            "images": name,
            "share beyond 0.25": s.high_share,
            "power beyond 0.25, data = 1": high[name] / high["data"],
        }
        for name, s in found.items()
    ]
    kept = {row["images"]: row["power beyond 0.25, data = 1"] for row in table}
    text = (
        f"Beyond a quarter of a cycle a pixel, reconstructions keep {kept['VAE, reconstructions']:.0%} of the data's "
        f"power by the VAE and {kept['AE, reconstructions']:.0%} by the autoencoder of the same size; samples of the "
        f"VAE have {kept['VAE, samples']:.0%}. What is not certain from the code is averaged, and an average is smooth."
    )
    picture = Picture(draw_spectra(found), "Power by spatial frequency, mean over directions and images.", vector=True)
    return Finding(text, {"kept": kept, "high_share": {n: s.high_share for n, s in found.items()}}, [table], [picture])
