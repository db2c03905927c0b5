"""Draw the README's picture from an evaluated run: training curve, firing rates, and what FVU is compared with.

python scripts/picture.py runs/demo docs/demo.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

BLUE, ORANGE, INK = "#0072B2", "#f16913", "#111827"


def draw(run: Path, target: Path) -> None:
    """Write the picture of `run` to `target` (.svg or .png)."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    report = json.loads((run / "eval.json").read_text())
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})
    figure, (curve, rates, bars) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")

    curve.plot([line["tokens"] / 1e6 for line in log], [line["fvu"] for line in log], color=BLUE)
    curve.axhline(report["fvu"]["value"], color=ORANGE, linestyle="--")
    curve.annotate(
        f"held out: {report['fvu']['value']:.3f}", (1, report["fvu"]["value"]), xycoords=("axes fraction", "data"),
        ha="right", va="top", color=ORANGE,
    )  # fmt: skip
    curve.set(xlabel="million training tokens", ylabel="FVU", title="Training", ylim=(0, None))

    edges, counts = report["densities"]["log10_edges"], report["densities"]["latents"]
    rates.bar(edges[:-1], counts, width=0.45, align="edge", color=BLUE)
    never = report["densities"]["never"]
    rates.set(xlabel="log10 share of tokens on which a latent fires", ylabel="latents", title=f"{never} never fire")

    baselines = report["baselines"]
    names = ["mean", f"PCA, {baselines['pca_components']}", f"SAE, L0 {report['l0']['value']:.0f}"]
    parts = [baselines["mean_fvu"], baselines["pca_fvu"], report["fvu"]]
    values = [part["value"] for part in parts]
    spread = [[p["value"] - p["low"] for p in parts], [p["high"] - p["value"] for p in parts]]
    drawn = bars.barh(names, values, xerr=spread, color=["#9ca3af", "#9ca3af", ORANGE], ecolor=INK, capsize=3)
    bars.bar_label(drawn, [f" {value:.3f}" for value in values], padding=4)
    bars.set(xlabel="FVU on held-out documents, 95% interval", title="What is left unexplained", xlim=(0, 1.2))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/picture.py RUN TARGET.svg")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
