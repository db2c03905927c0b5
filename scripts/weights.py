"""Train every variant for a moment and print the SHA-256 of its saved weights: what a refactor must not change.

    python scripts/weights.py before.json     # then change the code
    python scripts/weights.py after.json --against before.json

Hashes hold on one machine and one number of threads: another processor sums in another order. Two trainings run at a
time, with one thread each. The language model is a tiny Llama with random weights, the text is the tests' corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from conftest import save_tiny_model
from sae.base.files import sha256_of
from sae.selftest.world import corpus_texts

TEXT: dict[str, tuple[str, ...]] = {
    **{
        name: ("--variant", name)
        for name in ("relu", "p_anneal", "gated", "topk", "batchtopk", "matryoshka", "jumprelu")
    },
    "relu, tanh": ("--variant", "relu", "--penalty", "tanh"),
    "jumprelu, anthropic": ("--variant", "jumprelu", "--recipe", "anthropic"),
    "jumprelu, target": ("--variant", "jumprelu", "--recipe", "target"),
    "transcoder": ("--variant", "transcoder", "--site", "mlp_in", "--target-site", "mlp_out"),
    "skip_transcoder": ("--variant", "skip_transcoder", "--site", "mlp_in", "--target-site", "mlp_out"),
    "crosscoder": ("--variant", "crosscoder", "--site", "resid_pre,resid_post"),
    "crosscoder, gated": ("--variant", "crosscoder", "--base", "gated", "--site", "resid_pre,resid_post"),
    "matching_pursuit": ("--variant", "matching_pursuit"),
    "temporal": ("--variant", "temporal"),
    "topk, k annealed": ("--k-start", "16", "--k-anneal", "0.5"),
    "topk, whiten": ("--normalise", "whiten"),
    "topk, layer norm": ("--normalise", "layer_norm"),
    "relu, resample": ("--variant", "relu", "--revival", "resample"),
    "topk, muon": ("--optimizer", "muon"),
    "topk, signsgd": ("--optimizer", "signsgd"),
    "topk, bfloat16": ("--compute", "bfloat16"),
    "gated, bfloat16": ("--variant", "gated", "--compute", "bfloat16"),
    "topk, epochs": ("--epochs", "2"),
    "topk, a store": ("--store", "{folder}/store"),
}
IMAGES = (
    *("ae", "denoising", "kl_sparse", "vae", "beta_vae", "capacity_vae", "beta_tcvae", "vqvae", "vqvae2"),
    *("relu", "p_anneal", "gated", "topk", "batchtopk", "matryoshka", "jumprelu", "matching_pursuit"),
)


def commands(model: Path, text: Path, folder: Path) -> dict[str, list[str]]:
    """Name -> arguments of `sae`, without `--out`."""
    common = ["train", "--model", str(model), "--dataset", str(text), "--layer", "1", "--width", "256", "--k", "4"]
    common += ["--tokens", "7680", "--batch", "256", "--context", "64", "--contexts", "4", "--dead-after", "1500"]
    common += ["--store-precision", "float32"]
    runs = {f"text: {name}": common + [f.format(folder=folder) for f in flags] for name, flags in TEXT.items()}
    for name in IMAGES:
        runs[f"images: {name}"] = ["image", "train", "--variant", name, "--data", "digits", "--epochs", "2"]
    convolutional = ["--stem", "convolutional", "--head", "convolutional", "--epochs", "1", "--data", "digits"]
    for name in ("vae", "topk"):
        runs[f"images: {name}, convolutional"] = ["image", "train", "--variant", name, *convolutional]
    return runs


def weights_of(arguments: list[str], out: Path) -> str:
    """SHA-256 of what the command saves, or its last line where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sae", *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent)
    return sha256_of(out / "sae.safetensors") if done.returncode == 0 else "failed: " + done.stderr.strip()[-400:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hashes", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file of an earlier run to compare with")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "corpus.jsonl"
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in corpus_texts(400)))
        runs = commands(save_tiny_model("llama", folder / "model"), text, folder)
        with ThreadPoolExecutor(2) as pool:
            outs = [folder / f"run{i}" for i in range(len(runs))]
            hashes = dict(zip(runs, pool.map(weights_of, runs.values(), outs), strict=True))
    asked.hashes.write_text(json.dumps(hashes, indent=1) + "\n")
    before = json.loads(asked.against.read_text()) if asked.against else hashes
    others = [run for run, digest in hashes.items() if before.get(run) != digest]
    for run in others:
        print(f"{run}: {before.get(run)} before, {hashes[run]} now")
    failed = sum(digest.startswith("failed") for digest in hashes.values())
    print(json.dumps({"runs": len(hashes), "failed": failed, "changed": len(others)}))
    sys.exit(1 if failed or others else 0)


if __name__ == "__main__":
    main()
