"""What decoders do to spatial frequencies: the checkerboard of transposed convolutions, and a VAE's blur."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sae.chapter.base import Finding, Picture, Setting, experiment
from sae.chapter.convolutional import CHAPTER_SHAPE, convolutional_vae, room_run, untrained
from sae.chapter.latent_space import prior_draws
from sae.chapter.measure import reconstructed
from sae.chapter.variational_models import ae, heldout, vae
from sae.evaluation.spectra import Checkerboard, power
from sae.image_runs import ImageRun, decode_dense
from sae.pictures.grids import draw_tiles
from sae.pictures.lines import Curve, draw_lines
from sae.pictures.spectra import checkerboards_of, draw_checkerboards, draw_spectra, spectra_of

STRIDE = 2  # of every stage of the decoders
FLOOR = 1e-8  # of the largest power, under which the picture shows nothing
KINDS = {"transposed": False, "upsampled": True}
"""Decoders by whether they double and convolve, in place of a transposed convolution."""


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
    seeds, count = setting.pick(5, 2), setting.pick(100, 30)
    before = {
        kind: float(np.mean([checkerboards_of({kind: one}, CHAPTER_SHAPE, STRIDE)[kind].phases for one in images]))
        for kind, images in random_decoders(count, seeds).items()
    }
    lengths = setting.pick((1, 2, 4, 8), (1, 2))
    size, limit = setting.pick(32, 16), setting.pick(2000, 256)
    runs = {
        kind: [room_run(setting, upsampling=up, epochs=n, size=size, limit=limit) for n in lengths]
        for kind, up in KINDS.items()
    }
    x = heldout(runs["transposed"][0], setting.pick(500, 100))
    shape = runs["transposed"][0].shape
    after = {kind: [_boards(run, x) for run in of_kind] for kind, of_kind in runs.items()}
    last = {f"{kind}, {what}": after[kind][-1][what] for what in ("samples", "reconstructions") for kind in KINDS}
    last["data"] = checkerboards_of({"data": x}, shape, STRIDE)["data"]
    table = [
        {"images": "random decoders", **before, "ratio": before["transposed"] / before["upsampled"]},
        *(
            {"images": f"{what} after {n} epochs", **(found := {k: after[k][i][what].phases for k in KINDS}),
             "ratio": found["transposed"] / found["upsampled"]}
            for i, n in enumerate(lengths)
            for what in ("samples", "reconstructions", "errors")
        ),
    ]  # fmt: skip
    curves = {
        f"{kind}, {what}": Curve(list(lengths), [board[what].phases for board in boards])
        for kind, boards in after.items()
        for what in ("samples", "reconstructions")
    }
    errors = {kind: boards[-1]["errors"].phases for kind, boards in after.items()}
    numbers = {
        "untrained": before,
        "untrained_ratio": before["transposed"] / before["upsampled"],
        "trained": {name: board.phases for name, board in last.items()},
        "trained_ratio": last["transposed, samples"].phases / last["upsampled, samples"].phases,
        "errors": errors,
        "error_ratio": errors["transposed"] / errors["upsampled"],
        "table": table,
    }
    text = (
        f"Of the variance of images from random decoders, {before['transposed']:.3f} lies in a pattern of 2 x 2 pixels "
        f"with transposed convolutions and {before['upsampled']:.5f} with upsampling, {numbers['untrained_ratio']:.0f} "
        f"times less. After {lengths[-1]} epochs it is {numbers['trained']['transposed, samples']:.5f} and "
        f"{numbers['trained']['upsampled, samples']:.5f} of samples ({numbers['trained_ratio']:.1f} times), and "
        f"{errors['transposed']:.6f} and {errors['upsampled']:.6f} of what "
        f"reconstructions get wrong ({numbers['error_ratio']:.1f} times)."
    )
    shown = [
        Picture(
            draw_checkerboards(last, STRIDE), "After training: samples, reconstructions, and the data.", vector=True
        ),
        Picture(
            draw_lines(curves, "epochs", "share of variance in the 2 x 2 pattern", log_x=True, log_y=True),
            "While training goes on: each point is a run of that many epochs.",
            vector=True,
        ),
        Picture(
            draw_planes({kind: runs[kind][-1] for kind in KINDS}, len(x)),
            "Log power of samples by frequency across and down, zero in the middle: transposed left, upsampled right. "
            "A checkerboard is what is bright at the border.",
        ),
    ]
    return Finding(text, numbers, [table], shown)


def _boards(run: ImageRun, x: Tensor) -> dict[str, Checkerboard]:
    rebuilt = reconstructed(run, x)
    sets = {"samples": _samples(run, len(x)), "reconstructions": rebuilt, "errors": rebuilt - x}
    return checkerboards_of(sets, run.shape, STRIDE)


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
