"""Time of an evaluation over that of the bare forward passes that it needs, both in this run.

    python scripts/bench/evaluate.py [--model demo --dataset demo --layer 9 --width 4608] [--tokens 50000]
        [--downstream-tokens 8192] [--pca-tokens 32768] [--controls fast] [--device auto]

The passes that it needs, over the same contexts, in batches of the same size and with nothing else done:

- one whole pass, with its logits, over the tokens with losses;
- for each kind of splice (x̂, x̂ everywhere, zero, mean, and each control but the mean) the layers behind the site and
  the head over the same tokens: the time of a whole pass less that of one that ends at the site;
- a pass that ends at the site over all other held-out tokens, and over the training tokens of PCA.

They are timed before and after the evaluation, and the mean counts. An autoencoder trained for a few steps is used:
its encoding takes as long as that of a trained one. Loading the model is left out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae.base.device import pick_device
from sae.base.progress import Progress, StopSignal
from sae.config import EvalConfig, HarvestConfig, SAEConfig, TrainConfig
from sae.data.packing import BEGINNING, Contexts
from sae.evaluation.language import LOSS_CONTEXTS, Evaluation
from sae.harvest.hooks import harvest_forward
from sae.harvest.stream import Harvest
from sae.runs.text import Run, harvest_of, open_run
from sae.training.run import train

SPLICES = 4  # x̂ at ordinary tokens, x̂ everywhere, zero, mean


def bare_seconds(run: Run, harvests: dict[str, Harvest], config: EvalConfig, splices: int) -> dict[str, float]:
    """Seconds of the passes at the top of this file, by what they are for."""
    harvest = harvests["heldout"]
    model, device = harvest.lm.model, harvest.lm.device

    def timed(function: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def to_site(of: Harvest, contexts: Contexts) -> float:
        inputs = of.inputs(contexts)
        return timed(lambda: harvest_forward(model, inputs, of.sites))

    seconds: dict[str, float] = {"clean": 0.0, "splices": 0.0, "to the site": 0.0, "PCA": 0.0}
    losses_left, left = config.downstream_tokens, config.tokens
    for contexts in harvest.contexts(BEGINNING):
        first, end = 0, len(contexts.tokens)
        while first < end and losses_left > 0:
            part = contexts.part(first, first + LOSS_CONTEXTS)
            inputs = harvest.inputs(part)
            with torch.no_grad():
                whole = timed(lambda inputs=inputs: model(**inputs).logits)
            seconds["clean"] += whole
            seconds["splices"] += splices * (whole - to_site(harvest, part))
            losses_left -= int((part.document >= 0).sum())
            first += LOSS_CONTEXTS
        if first < end:
            seconds["to the site"] += to_site(harvest, contexts.part(first, end))
        left -= ordinary_tokens(contexts)
        if left <= 0 and losses_left <= 0:
            break
    left = config.pca_tokens
    for contexts in harvests["train"].contexts(BEGINNING) if left else ():
        seconds["PCA"] += to_site(harvests["train"], contexts)
        left -= ordinary_tokens(contexts)
        if left <= 0:
            break
    return seconds


def ordinary_tokens(contexts: Contexts) -> int:
    """Tokens of a batch that do not begin a segment."""
    return int(((contexts.document >= 0) & (contexts.position > 0)).sum())


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = pick_device(args.device)
    out = Path(args.run) if args.run else folder / "run"
    if not args.run:
        train(
            TrainConfig(
                harvest=HarvestConfig(model=args.model, dataset=args.dataset, layer=args.layer),
                sae=SAEConfig(width=args.width, k=args.k),
                out=out,
                tokens=args.train_tokens,
                device=args.device,
            )
        )
    run = open_run(out, device=device)
    lm = run.load_language_model(device)
    settings = run.settings()
    config = EvalConfig(
        tokens=args.tokens,
        downstream_tokens=args.downstream_tokens,
        pca_tokens=args.pca_tokens,
        controls=args.controls,
        device=args.device,
    )
    harvests = {split: harvest_of([run], lm, split=split, settings=settings) for split in ("heldout", "train")}
    # one pass before the clock starts, in which memory is allocated
    bare_seconds(run, harvests, EvalConfig(tokens=1, downstream_tokens=1, pca_tokens=1), 1)
    before = bare_seconds(run, harvests, config, 1)
    with StopSignal() as stop, Progress() as progress:
        begun = time.perf_counter()
        (report,) = Evaluation(lm, [run], settings, config, stop, progress).reports()
        seconds = time.perf_counter() - begun
    after = bare_seconds(run, harvests, config, 1)
    splices = SPLICES + sum("downstream" in row for row in report.get("controls", ())[1:])
    bare = {name: (before[name] + after[name]) / 2 for name in before}
    bare["splices"] *= splices
    return {
        "device": device.type,
        "tokens": report["tokens"],
        "downstream_tokens": report["downstream"]["tokens"] if report["downstream"] else 0,
        "controls": args.controls,
        "splices": splices,
        "passes": report["downstream"]["passes"] if report["downstream"] else None,
        "bare_seconds": {name: round(value, 3) for name, value in bare.items()},
        "bare_before_and_after": [round(sum(part.values()), 3) for part in (before, after)],
        "evaluation_seconds": round(seconds, 3),
        "ratio": round(seconds / sum(bare.values()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a finished run on text, in place of one trained for a few steps")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--width", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--train-tokens", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--downstream-tokens", type=int, default=8_192)
    parser.add_argument("--pca-tokens", type=int, default=32_768)
    parser.add_argument("--controls", choices=("none", "fast", "all"), default="fast")
    parser.add_argument("--device", default="auto")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(parser.parse_args(), Path(folder))
    for name, value in result.items():
        print(f"{name:24}{value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
