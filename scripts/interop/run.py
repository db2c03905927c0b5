"""`make interop`: other tools' files read by us, ours read by them, codes and reconstructions compared in float32.

    python scripts/interop/run.py                  # a row for each tool, architecture and direction; a JSON line last
    python scripts/interop/run.py --samples        # writes the small files of tests/interop/samples anew

Each tool has a script, `with_TOOL.py`, that runs in an environment of its own with nothing of ours. A difference is the
largest one over the largest value, of codes and of reconstructions. What one side cannot hold is a row with the reason.
Tools that count a latent's value in another unit are in `UNITS`; their codes are compared up to a factor a latent. The
command fails where any difference is over 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from made_runs import NORMALISE, SETTINGS, activations, allowed, made_run  # noqa: E402
from sae.base.files import CorruptError  # noqa: E402
from sae.config import ConfigError  # noqa: E402
from sae.interop import read  # noqa: E402
from sae.interop.export import WRITERS, export  # noqa: E402
from sae.models.saved import load  # noqa: E402

TOLERANCE = 1e-5
ENVIRONMENTS = {
    "saelens": "tools",
    "sparsify": "tools",
    "dictionary_learning": "tools",
    "circuit-tracer": "circuit",
    "llamascopium": "llamascopium",
}
"""Tool -> the environment `.venv-interop-NAME` that `make interop` builds."""
BY_NORM = "it divides values by ||w|| after the selection; ours are the lengths of contributions, over unit atoms"
UNITS = {("llamascopium", "topk"): BY_NORM, ("llamascopium", "topk-inference"): BY_NORM}
"""Tool and case -> why a latent's values differ by a factor of its own; reconstructions are equal nevertheless."""
SAMPLES = ROOT / "tests" / "interop" / "samples"


class Row(NamedTuple):
    """One cell of the table."""

    tool: str
    case: str
    direction: str
    """"theirs, read by us" or "ours, read by them"."""
    codes: float | None
    """Largest difference of codes over the largest code; None where one side refuses."""
    reconstruction: float | None
    note: str = ""
    """Why it is refused, or what else is to know."""

    @property
    def largest(self) -> float:
        """The larger one of both differences."""
        return max(self.codes or 0.0, self.reconstruction or 0.0)


def their(tool: str, command: str, folder: Path, *more: object) -> None:
    """Run a tool's script in its environment."""
    script = Path(__file__).parent / f"with_{tool.replace('-', '_')}.py"
    python = ROOT / f".venv-interop-{ENVIRONMENTS[tool]}" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        [python, script, command, folder, *map(str, more)],
        env={**environment, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{script.name} {command} failed:\n{result.stderr[-4000:]}")


def difference(ours: torch.Tensor, theirs: torch.Tensor, *, up_to_units: bool = False) -> float:
    """Largest absolute difference over the largest absolute value of theirs; infinite where one is not a number.

    Args:
        ours: [N, F] or [N, d].
        theirs: likewise.
        up_to_units: whether each column of theirs is first multiplied by the factor that its largest value asks for.
    """
    if up_to_units:
        theirs = theirs * (ours.max(0).values / theirs.max(0).values).nan_to_num(1.0, 1.0)
    gap = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()
    return gap if gap == gap else float("inf")


@torch.no_grad()
def read_theirs(tool: str, folder: Path) -> Iterator[Row]:
    """Their files in our code, against their own results."""
    direction = "theirs, read by us"
    for path in sorted(folder.glob("*.expected.safetensors")):
        case, expected = path.name.removesuffix(".expected.safetensors"), load_file(path)
        try:
            model = read(inner(folder / case)).model
        except (ConfigError, CorruptError) as error:
            yield Row(tool, case, direction, None, None, str(error).replace(str(folder), "").strip("/"))
            continue
        codes, reconstruction = model(expected["inputs"])
        unit = UNITS.get((tool, case))
        gap = difference(codes.to_dense(), expected["codes"], up_to_units=unit is not None)
        yield Row(tool, case, direction, gap, difference(reconstruction, expected["reconstruction"]), unit or "")


def inner(folder: Path) -> Path:
    """The folder that holds files, below folders that hold one folder alone."""
    entries = list(folder.iterdir())
    return inner(entries[0]) if len(entries) == 1 and entries[0].is_dir() else folder


@torch.no_grad()
def write_ours(folder: Path) -> Iterator[Row]:
    """Runs of every variant in every tool's own code; yields what is refused, and then what differs by how much."""
    direction = "ours, read by them"
    for name in SETTINGS:
        for normalise in NORMALISE:
            if not allowed(name, normalise):
                continue
            case = f"{name}, {normalise}"
            run = made_run(folder / "runs" / case.replace(", ", "@"), name, normalise, dim=64, width=256, layer=0)
            model = load(run)
            x = activations(256, model.dim, seed=3)
            codes, reconstruction = model(x)
            results = {"inputs": x, "codes": codes.to_dense(), "reconstruction": reconstruction}
            for tool in WRITERS:
                # sparsify knows modules, circuit-tracer hooks; a run without its language model has one spelling
                place = folder / tool / run.name
                try:
                    export(spelled_as_modules(run) if tool == "sparsify" else run, tool, place)
                except ConfigError as error:
                    yield Row(tool, case, direction, None, None, str(error).split(": ", 1)[1].split("; /")[0])
                    continue
                save_file({key: t.contiguous() for key, t in results.items()}, f"{place}.expected.safetensors")
    for tool in WRITERS:
        their(tool, "load", folder / tool)
        failures = json.loads((folder / tool / "failures.json").read_text())
        for path in sorted((folder / tool).glob("*.expected.safetensors")):
            name = path.name.removesuffix(".expected.safetensors")
            case = name.replace("@", ", ")
            if name in failures:
                yield Row(tool, case, direction, float("inf"), float("inf"), failures[name])
                continue
            expected, result = load_file(path), load_file(folder / tool / f"{name}.result.safetensors")
            gaps = (difference(expected[part], result[part]) for part in ("codes", "reconstruction"))
            yield Row(tool, case, direction, *gaps)


def spelled_as_modules(run: Path) -> Path:
    """A copy of the run with paths of modules in place of our names."""
    copy = run.with_name(f"{run.name}-modules")
    if not copy.exists():
        shutil.copytree(run, copy)
        record = json.loads((copy / "config.json").read_text())
        paths = {"mlp_in": "model.layers.{}.mlp:in", "mlp_out": "model.layers.{}.mlp", "resid_post": "model.layers.{}"}
        for end in ("sites", "targets"):
            parts = [name.split(".") for name in record["imported"][end]]
            record["imported"][end] = [paths[kind].format(layer) for kind, layer in parts]
        (copy / "config.json").write_text(json.dumps(record))
    return copy


def joined(rows: list[Row]) -> list[Row]:
    """Rows of one variant, tool and reason as one, with the normalisations in brackets and the largest difference."""
    groups: dict[tuple[str, str, str, bool, str], list[Row]] = {}
    for row in rows:
        variant = row.case.partition(", ")[0]
        groups.setdefault((row.tool, variant, row.direction, row.codes is None, row.note), []).append(row)
    result = []
    for (tool, variant, direction, refused, note), group in groups.items():
        settings = [row.case.partition(", ")[2] for row in group if ", " in row.case]
        case = f"{variant} ({', '.join(settings)})" if settings else variant
        gaps = (
            (None, None)
            if refused
            else (max(r.codes or 0.0 for r in group), max(r.reconstruction or 0.0 for r in group))
        )
        result.append(Row(tool, case, direction, *gaps, note))
    return sorted(result, key=lambda row: list(ENVIRONMENTS).index(row.tool))


def used_by_their_user(folder: Path) -> None:
    """A script that a user of SAELens has, without a change, on our export.

    Raises:
        SystemExit: it fails.
    """
    out = folder / "for_a_user"
    export(made_run(folder / "run", "topk"), "saelens", out)
    script = Path(__file__).parent / "user_of_saelens.py"
    result = subprocess.run(
        [ROOT / ".venv-interop-tools" / "bin" / "python", script, out], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{script.name} failed:\n{result.stderr[-4000:]}")
    print(f"{script.name} on our export: {result.stdout.strip()}")


def shown(row: Row) -> str:
    """A line of the table."""
    gaps = [f"{'refused' if gap is None else f'{gap:.1e}':>9}" for gap in (row.codes, row.reconstruction)]
    return f"{row.tool:20} {row.case:54} {row.direction:19} {' '.join(gaps)}  {row.note}".rstrip()


def write_samples() -> None:
    """Files of every architecture at the width of the tests' tiny model, a few KB each."""
    for tool in ENVIRONMENTS:
        shutil.rmtree(SAMPLES / tool, ignore_errors=True)
        their(tool, "make", SAMPLES / tool, 32, 40, 8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", action="store_true", help="write tests/interop/samples anew, compare nothing")
    if parser.parse_args().samples:
        return write_samples()
    torch.set_num_threads(1)
    rows: list[Row] = []
    print(f"{'tool':20} {'case':54} {'direction':19} {'codes':>9} {'x̂':>9}  note")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for tool in ENVIRONMENTS:
            their(tool, "make", work / "theirs" / tool)
            rows += (theirs := list(read_theirs(tool, work / "theirs" / tool)))
            print("\n".join(map(shown, theirs)), flush=True)
        rows += (ours := list(write_ours(work / "ours")))
        print("\n".join(map(shown, joined(ours))), flush=True)
        used_by_their_user(work)
    compared = [row for row in rows if row.codes is not None]
    wrong = [row for row in compared if row.largest > TOLERANCE]
    summary = {"compared": len(compared), "refused": len(rows) - len(compared), "over_tolerance": len(wrong)}
    largest = max(row.largest for row in compared)
    print(json.dumps({**summary, "largest_difference": largest, "tolerance": TOLERANCE}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
