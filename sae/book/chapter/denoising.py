"""Denoising autoencoders: trained to undo a corruption, measured at levels they were and were not trained at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sae.base import draws
from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.measure import Images, Spread, enumerated, mean_of, over_seeds, reconstructed, split_images
from sae.book.chapter.networks import HIDDEN, OPTIM
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.lines import Curve, draw_lines
from sae.config import VisionConfig
from sae.evaluation.images import psnr
from sae.modules.corruption import USUAL_LEVEL, corrupt
from sae.runs.images import ImageRun

LATENTS = 64
LEVELS = {
    "gaussian": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "masking": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "salt_and_pepper": (0.05, 0.1, 0.2, 0.3, 0.4),
}
"""Of which one of each kind was trained at."""
SHOWN = 10


@experiment("denoising", rows=(5,), title="Denoising autoencoders at the level they were trained at, and at others")
def denoising(setting: Setting) -> Finding:
    """PSNR of clean images against corrupted and denoised ones, over the strength of the corruption."""
    _, held = split_images(setting.data)
    plain = [_run(setting, "denoising-none", seed, corruption="none") for seed in setting.seeds]
    numbers: dict[str, Any] = {}
    rows, pictures = [], []
    for kind, level in USUAL_LEVEL.items():
        runs = [_run(setting, f"denoising-{kind}", seed, corruption=kind) for seed in setting.seeds]
        curves = {
            "corrupted input": [psnr(held.x, corrupted(held.x, kind, at)) for at in LEVELS[kind]],
            "plain autoencoder": [_cleaned(plain, held.x, kind, at) for at in LEVELS[kind]],
            f"trained at {level}": [_cleaned(runs, held.x, kind, at) for at in LEVELS[kind]],
        }
        gains = [
            mean_of(after) - before
            for before, after in zip(curves["corrupted input"], curves[f"trained at {level}"], strict=True)
        ]
        place = LEVELS[kind].index(level)
        over_plain = mean_of(curves[f"trained at {level}"][place]) - mean_of(curves["plain autoencoder"][place])
        numbers[kind] = {
            "levels": LEVELS[kind],
            "trained_at": level,
            "psnr": curves,
            "gains": gains,
            "over_plain": over_plain,
        }
        for place, at in enumerate(LEVELS[kind]):
            values = {name: curve[place] for name, curve in curves.items()}
            known = {"corruption": kind, "level": at, "seen": at == level}
            own = values.pop(f"trained at {level}")
            rows.append({**known, **values, "denoising": own, "gain (dB)": gains[place]})
        pictures += [_curve_picture(curves, kind, level), _grid(runs[0], held, kind)]
    only, table = only_where_corrupted(setting, held)
    numbers["corrupted_only"] = only
    gains = {
        kind.replace("_", " "): Gains(
            level,
            numbers[kind]["gains"][LEVELS[kind].index(level)],
            (LEVELS[kind][0], numbers[kind]["gains"][0]),
            (LEVELS[kind][-1], numbers[kind]["gains"][-1]),
            numbers[kind]["over_plain"],
        )
        for kind, level in USUAL_LEVEL.items()
    }
    masked = {name: mean_of(values["masked pixels"]) for name, values in only.items()}
    return Finding(
        text=f"{gains_said(gains)} With the error counted at masked pixels alone, those are restored to "
        f"{masked['only corrupted pixels']:.1f} dB, with all pixels counted to {masked['all pixels']:.1f} dB.",
        numbers=numbers,
        tables=[rows, table],
        pictures=pictures,
    )


class Gains(NamedTuple):
    """Of one kind of corruption, dB of PSNR over the corrupted input."""

    trained_at: float
    known: float
    """At the level trained at."""
    weakest: tuple[float, float]
    """The weakest level, which was not trained at, and the gain there."""
    strongest: tuple[float, float]
    over_plain: float
    """At the level trained at, over the autoencoder that was trained without corruption."""


def gains_said(gains: Mapping[str, Gains]) -> str:
    """Gains by kind of corruption, and where there are none."""
    each = "; ".join(
        f"{kind} {g.known:+.1f} at {g.trained_at:g} (trained at), {g.weakest[1]:+.1f} at {g.weakest[0]:g}, "
        f"{g.strongest[1]:+.1f} at {g.strongest[0]:g}, and {g.over_plain:+.1f} over the plain autoencoder where trained"
        for kind, g in gains.items()
    )
    losses = {
        "at the level trained at": [kind for kind, g in gains.items() if g.known <= 0],
        "at the weakest unseen level": [kind for kind, g in gains.items() if g.weakest[1] <= 0],
        "at the strongest unseen level": [kind for kind, g in gains.items() if g.strongest[1] <= 0],
        "over the plain autoencoder": [kind for kind, g in gains.items() if g.over_plain <= 0],
    }
    none = "; ".join(f"{where} for {enumerated(kinds)}" for where, kinds in losses.items() if kinds)
    return f"Gains in PSNR over the corrupted input, in dB: {each}. " + (
        f"There is no gain {none}." if none else "There is a gain at every one of these levels, seen or not."
    )


def _run(setting: Setting, name: str, seed: int, **settings: Any) -> ImageRun:
    vision = VisionConfig(variant="denoising", width=LATENTS, hidden=HIDDEN, **settings)
    return trained(setting, name, vision, epochs=setting.pick(40, 15), optim=OPTIM, seed=seed)


def corrupted(x: Tensor, kind: str, level: float) -> Tensor:
    """Images [n, D], the same noise whenever it is asked for."""
    return corrupt(kind, level, x, draws.generator(0, round(1000 * level))).x


def _cleaned(runs: list[ImageRun], x: Tensor, kind: str, level: float) -> Spread:
    noisy = corrupted(x, kind, level)
    return over_seeds([psnr(x, reconstructed(run, noisy)) for run in runs])


def only_where_corrupted(setting: Setting, held: Images) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Masking with the error counted everywhere, and at masked pixels alone: PSNR there and elsewhere."""
    found: dict[str, Any] = {}
    kind, level = "masking", USUAL_LEVEL["masking"]
    noisy, where = corrupt(kind, level, held.x, draws.generator(0, round(1000 * level)))
    for name, only in (("all pixels", False), ("only corrupted pixels", True)):
        folder = f"denoising-{kind}{'-only' if only else ''}"
        settings = {"corruption": kind, "corrupted_only": only}
        outs = [reconstructed(_run(setting, folder, seed, **settings), noisy) for seed in setting.seeds]
        found[name] = {
            "masked pixels": over_seeds([psnr(held.x[where], out[where]) for out in outs]),
            "other pixels": over_seeds([psnr(held.x[~where], out[~where]) for out in outs]),
        }
    return found, [{"error counted at": name, **values} for name, values in found.items()]


def _curve_picture(curves: dict[str, list[Any]], kind: str, level: float) -> Picture:
    lines = {name: Curve(LEVELS[kind], values) for name, values in curves.items()}
    unit = "standard deviation" if kind == "gaussian" else "share of pixels"
    said = kind.replace("_", " ")
    figure = draw_lines(lines, f"{said}: {unit}", "PSNR (dB)", at={"trained at": level})
    return Picture(figure, f"PSNR against clean held-out images over the strength of {said} corruption.", vector=True)


def _grid(run: ImageRun, held: Images, kind: str) -> Picture:
    level, unseen = USUAL_LEVEL[kind], LEVELS[kind][-1]
    shown = held.x[:SHOWN]
    rows: dict[str, Tensor] = {"clean": shown}
    for at in (level, unseen):
        noisy = corrupted(held.x, kind, at)[:SHOWN]
        rows |= {f"corrupted, {at}": noisy, f"denoised, {at}": reconstructed(run, noisy)}
    said = kind.replace("_", " ")
    return Picture(draw_rows(rows, held.shape), f"Held-out images, {said}: at the level trained at, and at {unseen}.")
