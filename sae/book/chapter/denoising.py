"""Denoising autoencoders: trained to undo a corruption, measured at the level of training and at others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained_by_seed
from sae.book.chapter.measure import (
    HIDDEN,
    OPTIM,
    Images,
    Spread,
    enumerated,
    mean_of,
    over_seeds,
    reconstructed,
    split_images,
)
from sae.book.pictures.grids import draw_rows
from sae.config import VisionConfig
from sae.evaluation.images import psnr
from sae.modules.corruption import USUAL_LEVEL, corrupt
from sae.pictures.lines import Curve, draw_lines
from sae.runs.images import ImageRun

LATENTS = 64
LEVELS = {
    "gaussian": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "masking": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "salt_and_pepper": (0.05, 0.1, 0.2, 0.3, 0.4),
}
"""Levels of test by kind of corruption; one of each is the level of training."""
PLAIN = "plain autoencoder"
SHOWN = 10


class Gains(NamedTuple):
    """Gains of PSNR over the corrupted input for one kind of corruption, dB."""

    trained_at: float
    """The level of training."""
    known: float
    """Gain at that level."""
    weakest: tuple[float, float]
    """The weakest level, which was not trained at, and the gain there."""
    strongest: tuple[float, float]
    """The same of the strongest level."""
    over_plain: float
    """At the level of training, over the autoencoder trained without corruption."""


@experiment("denoising", rows=(5,), title="Denoising autoencoders at the level they were trained at, and at others")
def denoising(setting: Setting) -> Finding:
    """PSNR of clean images against corrupted and denoised ones, over the strength of the corruption."""
    _, heldout = split_images(setting.data)
    plain = _runs(setting, "denoising-none", corruption="none")
    numbers: dict[str, Any] = {}
    gains: dict[str, Gains] = {}
    rows, pictures = [], []
    for kind, level in USUAL_LEVEL.items():
        runs, levels = _runs(setting, f"denoising-{kind}", corruption=kind), LEVELS[kind]
        before = [psnr(heldout.x, corrupted(heldout.x, kind, at)) for at in levels]
        without = [_denoised(plain, heldout.x, kind, at) for at in levels]
        after = [_denoised(runs, heldout.x, kind, at) for at in levels]
        gain = [mean_of(b) - a for a, b in zip(before, after, strict=True)]
        known = levels.index(level)
        over_plain = mean_of(after[known]) - mean_of(without[known])
        curves = {"corrupted input": before, PLAIN: without, f"trained at {level}": after}
        ends = ((levels[0], gain[0]), (levels[-1], gain[-1]))
        gains[kind.replace("_", " ")] = Gains(level, gain[known], *ends, over_plain)
        numbers[kind] = {"levels": levels, "trained_at": level, "psnr": curves, "gains": gain, "over_plain": over_plain}
        for i, at in enumerate(levels):
            row = {"corruption": kind, "level": at, "seen": at == level, "corrupted input": before[i]}
            rows.append({**row, PLAIN: without[i], "denoising": after[i], "gain (dB)": gain[i]})
        pictures += [_curve_picture(curves, kind, level), _grid(runs[0], heldout, kind)]
    only = only_where_corrupted(setting, heldout)
    numbers["corrupted_only"] = only
    masked = {name: mean_of(values["masked pixels"]) for name, values in only.items()}
    text = (
        f"{gains_said(gains)} If only masked pixels count in the loss, they are restored to "
        f"{masked['only corrupted pixels']:.1f} dB, if all pixels count, to {masked['all pixels']:.1f} dB."
    )
    table = [{"error counted at": name, **values} for name, values in only.items()]
    return Finding(text, numbers, [rows, table], pictures)


def gains_said(gains: Mapping[str, Gains]) -> str:
    """Gains by kind of corruption, and where there are none."""
    each = "; ".join(
        f"{kind} {g.known:+.1f} at {g.trained_at:g} (level of training), {g.weakest[1]:+.1f} at {g.weakest[0]:g}, "
        f"{g.strongest[1]:+.1f} at {g.strongest[0]:g}, and at the level of training {g.over_plain:+.1f} over the plain "
        "autoencoder"
        for kind, g in gains.items()
    )
    losses = {
        "at the level of training": [kind for kind, g in gains.items() if g.known <= 0],
        "at the weakest unseen level": [kind for kind, g in gains.items() if g.weakest[1] <= 0],
        "at the strongest unseen level": [kind for kind, g in gains.items() if g.strongest[1] <= 0],
        "over the plain autoencoder": [kind for kind, g in gains.items() if g.over_plain <= 0],
    }
    none = "; ".join(f"{where} for {enumerated(kinds)}" for where, kinds in losses.items() if kinds)
    return f"Gains in PSNR over the corrupted input, in dB: {each}. " + (
        f"There is no gain {none}." if none else "There is a gain at every one of these levels, seen or not."
    )


def _runs(setting: Setting, name: str, **settings: Any) -> list[ImageRun]:
    vision = VisionConfig(variant="denoising", width=LATENTS, hidden=HIDDEN, **settings)
    return trained_by_seed(setting, name, vision, epochs=setting.pick(40, 15), optim=OPTIM)


def corrupted(x: Tensor, kind: str, level: float) -> Tensor:
    """Corrupted images [n, D], with the same noise in every call."""
    return corrupt(kind, level, x, draws.generator(0, round(1000 * level))).x


def _denoised(runs: list[ImageRun], x: Tensor, kind: str, level: float) -> Spread:
    noisy = corrupted(x, kind, level)
    return over_seeds([psnr(x, reconstructed(run, noisy)) for run in runs])


def only_where_corrupted(setting: Setting, heldout: Images) -> dict[str, dict[str, Spread]]:
    """PSNR at masked and at other pixels, with the loss over all pixels, and over masked pixels alone."""
    kind, level = "masking", USUAL_LEVEL["masking"]
    noisy, masked = corrupt(kind, level, heldout.x, draws.generator(0, round(1000 * level)))
    results = {}
    for name, only in (("all pixels", False), ("only corrupted pixels", True)):
        folder = f"denoising-{kind}{'-only' if only else ''}"
        runs = _runs(setting, folder, corruption=kind, corrupted_only=only)
        outputs = [reconstructed(run, noisy) for run in runs]
        results[name] = {
            which: over_seeds([psnr(heldout.x[where], output[where]) for output in outputs])
            for which, where in (("masked pixels", masked), ("other pixels", ~masked))
        }
    return results


def _curve_picture(curves: dict[str, list[Any]], kind: str, level: float) -> Picture:
    lines = {name: Curve(LEVELS[kind], values) for name, values in curves.items()}
    unit = "standard deviation" if kind == "gaussian" else "share of pixels"
    words = kind.replace("_", " ")
    figure = draw_lines(lines, f"{words}: {unit}", "PSNR (dB)", at={"trained at": level})
    return Picture(figure, f"PSNR against clean held-out images over the strength of {words} corruption.")


def _grid(run: ImageRun, heldout: Images, kind: str) -> Picture:
    level, unseen = USUAL_LEVEL[kind], LEVELS[kind][-1]
    rows = {"clean": heldout.x[:SHOWN]}
    for at in (level, unseen):
        noisy = corrupted(heldout.x, kind, at)[:SHOWN]
        rows |= {f"corrupted, {at}": noisy, f"denoised, {at}": reconstructed(run, noisy)}
    caption = f"Held-out images, {kind.replace('_', ' ')}: at the level of training, and at {unseen}."
    return Picture(draw_rows(rows, heldout.shape), caption)
