"""`make interop`: other tools' files read by us, ours read by them, codes and reconstructions compared in float32.

    python scripts/interop/run.py                  # a row for each tool, architecture and direction; a JSON line last
    python scripts/interop/run.py --samples        # writes the small files of tests/interop/samples anew

Each tool has a script, `with_TOOL.py`, that runs in an environment of its own with nothing of ours. A difference is the
largest one over the largest value, of codes and of reconstructions. What one side cannot hold is a row with the reason.
The command fails where a difference is over 1e-5 and not explained in `EXPLAINED`.
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
EXPLAINED: dict[tuple[str, str], str] = {}
"""Tool and case -> why its difference is more than rounding."""
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

    @property
    def equal(self) -> bool:
        """Whether both are within rounding."""
        return self.codes is not None and self.reconstruction is not None and max(self[3:5]) <= TOLERANCE  # type: ignore[type-var]


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


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value of theirs; infinite where one is not a number."""
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
        gaps = difference(codes.to_dense(), expected["codes"]), difference(reconstruction, expected["reconstruction"])
        yield Row(tool, case, direction, *gaps, EXPLAINED.get((tool, case), ""))


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
            run = made_run(folder / "runs" / case.replace(", ", "-"), name, normalise, dim=64, width=256, layer=0)
            model = load(run)
            x = activations(256, model.dim, seed=3)
            codes, reconstruction = model(x)
            results = {"inputs": x, "codes": codes.to_dense(), "reconstruction": reconstruction}
            for tool in WRITERS:
                place = folder / tool / run.name
                try:
                    export(run, tool, place)
                except ConfigError as error:
                    yield Row(tool, case, direction, None, None, str(error).split(";")[0])
                    continue
                save_file({key: t.contiguous() for key, t in results.items()}, f"{place}.expected.safetensors")
    for tool in WRITERS:
        their(tool, "load", folder / tool)
        failures = json.loads((folder / tool / "failures.json").read_text())
        for path in sorted((folder / tool).glob("*.expected.safetensors")):
            case = path.name.removesuffix(".expected.safetensors")
            if case in failures:
                yield Row(tool, case, direction, float("inf"), float("inf"), failures[case])
                continue
            expected, result = load_file(path), load_file(folder / tool / f"{case}.result.safetensors")
            gaps = (difference(expected[part], result[part]) for part in ("codes", "reconstruction"))
            yield Row(tool, case, direction, *gaps, EXPLAINED.get((tool, case), ""))


def shown(row: Row) -> str:
    """A line of the table."""
    gaps = [f"{'refused' if gap is None else f'{gap:.1e}':>9}" for gap in (row.codes, row.reconstruction)]
    return f"{row.tool:20} {row.case:28} {row.direction:19} {' '.join(gaps)}  {row.note}".rstrip()


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
    print(f"{'tool':20} {'case':28} {'direction':19} {'codes':>9} {'x̂':>9}  note")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for tool in ENVIRONMENTS:
            their(tool, "make", work / "theirs" / tool)
            for row in read_theirs(tool, work / "theirs" / tool):
                rows.append(row)
                print(shown(row), flush=True)
        for row in write_ours(work / "ours"):
            rows.append(row)
            print(shown(row), flush=True)
    compared = [row for row in rows if row.codes is not None]
    wrong = [row for row in compared if not row.equal and not row.note]
    largest = max((max(row.codes or 0, row.reconstruction or 0) for row in compared if row.equal), default=0)
    summary = {"compared": len(compared), "refused": len(rows) - len(compared), "over_tolerance": len(wrong)}
    print(json.dumps({**summary, "largest_difference": largest, "tolerance": TOLERANCE}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
