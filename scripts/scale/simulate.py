"""Steps on 64 and 1,024 ranks, simulated: where does communication bound a 2B and a 70B model's autoencoder?

python -m scripts.scale.simulate                               # measures two ranks here first, some 40 s
python -m scripts.scale.simulate --measured measured.json --svg docs/scale.svg

The step-time model (model.py) is fitted to one rank's steps and to the link between two on this machine, and has to
foretell steps of the two together; both are printed. Then it runs with a GPU's rates. Prints tables, then a JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.scale.model import PARTS, Job, Machine, costs, fit_link, fit_rank, simulate
from scripts.scale.settings import CASES, SPLITS, Case, memory_of, on_gpus

COMMUNICATION = ("data", "latent")
NAMES = {
    "harvest": "harvest",
    "sae": "autoencoder",
    "data": "data axis",
    "latent": "latent axis",
    "waiting": "waiting for the slowest",
}
COLOURS = {"harvest": "#4477aa", "sae": "#66ccee", "data": "#ee6677", "latent": "#ccbb44", "waiting": "#bbbbbb"}


def measure() -> dict[str, Any]:
    """Two ranks on this machine; see measure.py."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*launcher, "-m", "scripts.scale.measure", str(path)], check=True)
        return json.loads(path.read_text())


def foretold(measured: dict[str, Any]) -> tuple[Machine, list[dict[str, Any]]]:
    """The machine that was fitted to single ranks and the link, and the steps of all ranks beside what it says."""
    d, k, ranks = measured["d"], measured["k"], measured["ranks"]
    spread = statistics.median(step["spread"] for step in measured["alone"])
    alone = [(step["rows"], step["latents"], step["seconds"]) for step in measured["alone"]]
    link = fit_link([(size["bytes"], size["seconds"]) for size in measured["link"]], ranks)
    machine = Machine(fit_rank(alone, d, k, spread), link, link, link)
    rows = []
    for step in measured["together"]:
        job = Job(d, step["latents"], k, step["rows"], step["data"], step["latent"])
        seconds = simulate(job, machine, steps=400, seed=0)["step"]
        rows.append(
            {
                "mesh": f"{step['data']}x{step['latent']}",
                "rows": step["rows"],
                "latents": step["latents"],
                "measured ms": 1e3 * step["seconds"],
                "simulated ms": 1e3 * seconds,
                "error": seconds / step["seconds"] - 1,
            }
        )
    return machine, rows


def scaled(case: Case, data: int, latent: int, *, steps: int, seed: int) -> dict[str, Any]:
    """One row of the table: a case on a mesh of GPUs."""
    job = Job(case.d, case.latents, case.k, case.rows, data, latent, harvest=2 * case.parameters)
    parts = simulate(job, on_gpus(data, latent, case.gpu), steps=steps, seed=seed)
    single = costs(job._replace(data=1, latent=1), on_gpus(1, 1, case.gpu))
    memory = memory_of(case, data, latent)
    alone = single.harvest + single.forward + single.backward
    communication = sum(parts[name] for name in COMMUNICATION)
    return {
        "model": case.name,
        "ranks": data * latent,
        "mesh": f"{data}x{latent}",
        "GB a GPU": memory / 1e9,
        "step ms": 1e3 * parts["step"],
        **{f"{name} ms": 1e3 * parts[name] for name in PARTS},
        "tokens/s": case.rows / parts["step"],
        "efficiency": alone / (parts["step"] * data * latent),
        "communication": communication / parts["step"],
        "bound by": "does not fit" if memory > case.gpu.capacity else NAMES[max(PARTS, key=lambda name: parts[name])],
    }


def all_scaled(*, steps: int, seed: int) -> list[dict[str, Any]]:
    """Every case on every mesh."""
    splits = [split for ranks in SPLITS for split in SPLITS[ranks]]
    return [scaled(case, *split, steps=steps, seed=seed) for case in CASES for split in splits]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar a mesh: what the time of a step goes to."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "scale"  # the same file from the same numbers
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((row["model"], row["ranks"]) for row in rows))
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.4), layout="constrained")
    for axis, group in zip(axes, groups, strict=True):
        bars = [row for row in rows if (row["model"], row["ranks"]) == group]
        bottom = [0.0] * len(bars)
        for name in PARTS:
            heights = [row[f"{name} ms"] for row in bars]
            axis.bar([row["mesh"] for row in bars], heights, bottom=bottom, color=COLOURS[name], label=NAMES[name])
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        axis.set_title(f"{group[0]} model, {group[1]:,} GPUs", fontsize=10)
        axis.tick_params(axis="x", labelrotation=45)
    axes[0].set_ylabel("ms a step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table for a document."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_shown(name, row[name]) for name in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name in ("error", "efficiency", "communication"):
        return f"{100 * value:.0f}%"
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="the file of scripts.scale.measure; by default it is run now")
    parser.add_argument("--steps", type=int, default=200, help="simulated steps a mesh")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    parser.add_argument("--svg", type=Path, help="where to draw the figure")
    given = parser.parse_args(arguments)
    measured = measure() if given.measured is None else json.loads(given.measured.read_text())
    machine, two = foretold(measured)
    rank, link = machine.rank, machine.data
    where = f"{measured['machine']['processor']}, load {measured['machine']['load']}"
    print(
        f"Two ranks here ({where}): a rank takes {1e3 * rank.overhead:.2f} ms + FLOPs / {rank.rate / 1e9:.1f} GFLOP/s\n"
        f"+ bytes / {rank.memory / 1e9:.2f} GB/s, spread {rank.spread:.1%}; the link has {1e6 * link.latency:.0f} us "
        f"and {link.bandwidth / 1e9:.2f} GB/s.\n"
    )
    print(markdown(two))
    rows = all_scaled(steps=given.steps, seed=given.seed)
    print(markdown(rows))
    if given.svg is not None:
        draw(rows, given.svg)
    fitted = {**rank._asdict(), "latency": link.latency, "bandwidth": link.bandwidth}
    print(json.dumps({"fitted": fitted, "two_ranks": two, "simulated": rows, "seed": given.seed}))


if __name__ == "__main__":
    main()
