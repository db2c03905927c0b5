"""Runs the snippets of docs/sessions.md, each in the environment that its marker names, and compares what they find.

    make snippets                                     # all, in environments that it makes
    python scripts/interop/snippets.py --only nnsight

A marker is a comment above a snippet: `<!-- snippet: ENVIRONMENT [NAME] -->`; the environment is
`.venv-ENVIRONMENT`, or this one for `transformers`. The losses of all snippets with a spliced reconstruction must be
equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

WORK = ROOT / "build/snippets"
TOLERANCE = 1e-3  # of the losses: TransformerLens computes attention in another order
RESULT = "RESULT "
REPORT = f"""
import json
_values = {{name: float(globals()[name]) for name in ("loss",) if name in globals()}}
if "metrics" in globals():
    _values["explained variance"] = metrics["reconstruction_quality"]["explained_variance"]
    _values["L0"] = metrics["sparsity"]["l0"]
print("{RESULT}" + json.dumps(_values))
"""


class Snippet(NamedTuple):
    """A snippet of the page."""

    name: str
    python: Path
    """Interpreter of its environment."""
    code: str


def snippets() -> list[Snippet]:
    """All snippets of docs/sessions.md."""
    page = (ROOT / "docs/sessions.md").read_text()
    listed = []
    for words, code in re.findall(r"<!-- snippet: ([\w ]+) -->\n```python\n(.*?)```", page, re.DOTALL):
        environment, *names = words.split()
        python = sys.executable if environment == "transformers" else ROOT / f".venv-{environment}/bin/python"
        listed.append(Snippet(" ".join(names) or environment, Path(python), code))
    return listed


def prepare() -> None:
    """A tiny language model, its text and a finished run in WORK."""
    import tiny_models
    from conftest import save_tiny_model
    from finished_runs import finished_run
    from sae.selftest.world import corpus_texts

    # vLLM's attention on CPUs has no heads of width 8
    tiny_models.FAMILIES["llama"] = tiny_models._causal("LlamaConfig", head_dim=64)
    shutil.rmtree(WORK, ignore_errors=True)
    for name in ("model", "texts", "runs"):
        (WORK / name).mkdir(parents=True)
    model = save_tiny_model("llama", WORK / "model")
    text = WORK / "texts/texts.jsonl"
    text.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus_texts(600)))
    shutil.move(finished_run(model, text).folder, WORK / "runs/demo")


def ran(snippet: Snippet) -> dict[str, float]:
    """What a snippet found.

    Raises:
        RuntimeError: its environment is missing, or it failed; with the end of what it printed.
    """
    if not snippet.python.exists():
        raise RuntimeError(f"{snippet.python}: no such environment; make snippets installs it")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    command = [snippet.python, "-c", snippet.code + REPORT]
    done = subprocess.run(command, cwd=WORK, env=env, capture_output=True, text=True, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not results:
        raise RuntimeError(
            f"{snippet.name}: exit status {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
        )
    return json.loads(results[-1].removeprefix(RESULT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="names of snippets, with commas; transformers is always run")
    only = parser.parse_args().only
    wanted = None if only is None else {"transformers", *only.split(",")}
    prepare()
    losses: dict[str, float] = {}
    failed = 0
    for snippet in snippets():
        if wanted is not None and snippet.name not in wanted:
            continue
        try:
            values = ran(snippet)
        except RuntimeError as error:
            failed += 1
            print(f"{snippet.name:18} FAILED: {error}")
            continue
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        if "loss" in values:
            losses[snippet.name] = values["loss"]
            if abs(values["loss"] - losses["transformers"]) > TOLERANCE:
                failed += 1
                shown += f", but sae.attach finds {losses['transformers']:.4f}"
        print(f"{snippet.name:18} {shown}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
