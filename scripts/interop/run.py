"""`make interop`: other tools' files read by us, ours read by them, codes and reconstructions compared in float32.

    python scripts/interop/run.py                # prints a table, then a JSON line; fills the tables of docs/interop.md
    python scripts/interop/run.py --samples      # writes the small files of tests/interop/samples anew

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

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import torch  # noqa: E402
from exchange import of_layer  # noqa: E402
from report import Pair, Row, document, joined, shown  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from made_runs import NORMALISE, SETTINGS, activations, allowed, made_run  # noqa: E402
from sae.base.files import CorruptError, publish_json, read_json  # noqa: E402
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
UNITS = {("llamascopium", case): BY_NORM for case in ("topk", "topk-inference", "topk-folded")}
"""Tool and case -> why a latent's values differ by a factor of its own; reconstructions are equal nevertheless."""
PAIRS = {
    ("saelens/topk", "sparsify/topk"): "",
    ("saelens/topk", "dictionary_learning/AutoEncoderTopK"): "",
    ("saelens/gated", "dictionary_learning/GatedAutoEncoder"): "",
    ("saelens/standard-no_b_dec", "dictionary_learning/AutoEncoderNew"): "",
    ("saelens/transcoder", "circuit-tracer/relu"): "",
    ("saelens/jumprelu_transcoder", "circuit-tracer/jumprelu"): "",
    ("saelens/jumprelu_skip_transcoder", "circuit-tracer/jumprelu-skip"): "",
    ("saelens/jumprelu_transcoder-below_zero", "circuit-tracer/jumprelu-below_zero"): (
        "thresholds below 0: circuit-tracer has z 1[z > θ] to the letter (Rajamanoharan et al. 2024, eq. 3), SAELens a "
        "relu before it; the paper's θ is positive, where both agree"
    ),
    ("saelens/standard", "dictionary_learning/AutoEncoder-norms"): (
        "reconstructions agree; load_dictionary rescales atoms to unit norm (normalize_decoder), so its values are "
        "lengths of contributions, as its authors want them for comparisons; SAELens counts by the atoms of the file"
    ),
    ("saelens/topk-by_norm-no_b_dec", "llamascopium/topk-inference"): (
        "reconstructions agree; both select by pre ||w||, which SAELens returns as the value and llamascopium divides "
        "by ||w|| again: two units of one quantity"
    ),
    ("llamascopium/topk", "llamascopium/topk-folded"): (
        "reconstructions agree; values of the folded file are in units of the raw activations, as its authors say"
    ),
    ("llamascopium/jumprelu", "llamascopium/jumprelu-folded"): (
        "the file before folding is right: its authors say that folding changes no reconstruction, but it leaves θ in "
        "normalised units while pre ||w|| is in raw ones, so other latents fire"
    ),
}
"""Two cases with the same weights and inputs -> why they differ and which is right; "" where they are to be equal."""
SAMPLES = ROOT / "tests" / "interop" / "samples"


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

    Raises:
        SystemExit: nearly all of theirs are zero: nothing would be compared.
    """
    if not (share := (theirs != 0).float().mean().item()) > 0.005:
        raise SystemExit(f"only {share:.3%} of the values are not zero: nothing to compare")
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
            codes, reconstruction = in_our_code(inner(folder / case), expected["inputs"])
        except (ConfigError, CorruptError) as error:
            yield Row(tool, case, direction, None, None, str(error).replace(str(folder), "").strip("/"))
            continue
        unit = UNITS.get((tool, case))
        gap = difference(codes, expected["codes"], up_to_units=unit is not None)
        yield Row(tool, case, direction, gap, difference(reconstruction, expected["reconstruction"]), unit or "")


def in_our_code(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, F] and reconstruction [N, d]; of a cross-layer transcoder those of all layers side by side."""
    layers = len(list(folder.glob("W_enc_*.safetensors")))
    if not layers:
        codes, reconstruction = read(folder).model(x)
        return codes.to_dense(), reconstruction
    parts = [read(f"{folder}:{layer}").model(of_layer(x, layer)) for layer in range(layers)]
    # what is read at layer i is written to i and later ones
    padded = [torch.cat([x.new_zeros(len(x), i * x.shape[1]), part.reconstruction], 1) for i, part in enumerate(parts)]
    return torch.cat([part.codes.to_dense() for part in parts], 1), torch.stack(padded).sum(0)


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
        record = read_json(copy / "config.json")
        paths = {"mlp_in": "model.layers.{}.mlp:in", "mlp_out": "model.layers.{}.mlp", "resid_post": "model.layers.{}"}
        for end in ("sites", "targets"):
            parts = [name.split(".") for name in record["imported"][end]]
            record["imported"][end] = [paths[kind].format(layer) for kind, layer in parts]
        publish_json(copy / "config.json", record)
    return copy


def compared_with_each_other(folder: Path) -> Iterator[Pair]:
    """The cases of `PAIRS`, by the tools' own results.

    Raises:
        SystemExit: two differ that are to be equal, or the other way round.
    """
    for (one, other), verdict in PAIRS.items():
        a, b = (load_file(folder / f"{case}.expected.safetensors") for case in (one, other))
        gaps = [difference(a[part], b[part]) for part in ("codes", "reconstruction")]
        if (max(gaps) <= TOLERANCE) == bool(verdict):
            raise SystemExit(f"{one} and {other} differ by {max(gaps):.1e}; expected: {verdict or 'equal'}")
        yield Pair(one, other, *gaps, verdict or "equal")


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


def write_samples() -> None:
    """Files of every architecture at the width of the tests' tiny model, a few KB each."""
    for tool in ENVIRONMENTS:
        shutil.rmtree(SAMPLES / tool, ignore_errors=True)
        their(tool, "make", SAMPLES / tool, 32, 40, 8)
    for path in SAMPLES.glob("*/clt-*"):  # several layers, too large to keep
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", action="store_true", help="write tests/interop/samples anew, compare nothing")
    if parser.parse_args().samples:
        return write_samples()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        theirs: list[Row] = []
        for tool in ENVIRONMENTS:
            their(tool, "make", work / "theirs" / tool)
            theirs += read_theirs(tool, work / "theirs" / tool)
            print("\n".join(shown(row) for row in theirs if row.tool == tool), flush=True)
        pairs = list(compared_with_each_other(work / "theirs"))
        print("\n".join(["", *map(shown, pairs), ""]), flush=True)
        ours = list(write_ours(work / "ours"))
        print("\n".join(map(shown, joined(ours))), flush=True)
        used_by_their_user(work)
    compared = [row for row in (*theirs, *ours) if row.codes is not None]
    wrong = [row for row in compared if row.largest > TOLERANCE]
    summary = {
        "compared": len(compared),
        "refused": len(theirs) + len(ours) - len(compared),
        "over_tolerance": len(wrong),
        "largest_difference": max(row.largest for row in compared),
        "tolerance": TOLERANCE,
    }
    if not wrong:
        document(ROOT / "docs" / "interop.md", theirs, pairs, joined(ours), summary)
    print(json.dumps(summary))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
