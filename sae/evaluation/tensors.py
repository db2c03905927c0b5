"""`sae eval` of a run on a file of activations: reconstruction of held-out rows, beside PCA, with intervals.

The unit of the intervals is a row: rows are resampled, and of more than 1,024 neighbours together (see `bootstrap`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.device import pick_device
from sae.base.progress import Progress, StopSignal
from sae.config import EvalConfig, refuse_ignored, to_json
from sae.data.tensors import TensorPart
from sae.evaluation import bootstrap
from sae.evaluation.baselines import PCA
from sae.evaluation.control_table import control_rows
from sae.evaluation.controls import controls_of
from sae.evaluation.random_dictionary import train_random_dictionary
from sae.evaluation.reconstruction import Reconstruction, training_form
from sae.evaluation.replicates import kept_of, write_kept
from sae.models.saved import publish_report, read_description
from sae.runs import open_run

CHUNK = 8192


def evaluate_tensors(run: str | Path, config: EvalConfig | None = None) -> dict[str, Any]:
    """Evaluate the autoencoder saved in `run` on held-out rows; also written to the run's eval.json.

    Args:
        run: a run folder.
        config: `tokens` and `pca_tokens` are numbers of rows.

    Returns:
        JSON values; a metric with an interval is {"value", "low", "high"}.

    Raises:
        ConfigError, CorruptError, DataError: a setting is of text, or the run or its file cannot be used.
    """
    config = config or EvalConfig()
    opened = open_run(run, "tensors", device=pick_device(config.device))
    why = f"{run} is a run on a file of activations"
    refuse_ignored(config, dict.fromkeys(("dataset", "text_field", "downstream_tokens"), why))
    begun = time.perf_counter()
    heldout, centre = opened.rows("heldout"), opened.model.dictionary.b.detach().cpu()
    form = training_form(opened.model, opened.record, opened.config.sae)
    train = opened.rows("train") if config.pca_tokens else None
    rows = None if train is None else torch.cat(list(_spread(train, config.pca_tokens))).float()
    pca = None if rows is None else PCA.fit(rows.split(CHUNK))
    k, dictionary = min(opened.config.sae.k, opened.model.dim), None
    if config.controls == "all" and rows is not None:
        dictionary = train_random_dictionary(rows, rows, opened.model, k=k, seed=opened.config.seed)
    controls = controls_of(config.controls, opened.model, pca, dictionary, k=k)
    saved = Reconstruction(opened.model, centre, pca, controls)
    trained = None if form is None else Reconstruction(form, centre, None)
    count = min(config.tokens, heldout.rows)
    with StopSignal() as stop, Progress() as progress, progress.bar("Evaluating", count, "rows") as bar:
        for numbers in _positions(heldout.rows, config.tokens):
            x = heldout.read(numbers)
            for measured in (saved, trained):
                if measured is not None:
                    measured.add(x, x, numbers)
            bar.advance(len(x))
            stop.check("nothing was written")
    draws = {"resamples": config.resamples, "seed": config.seed}
    report = {
        **_metrics(saved, draws),
        "densities": saved.densities(),
        "training_form": None if trained is None else _metrics(trained, draws),
        "baselines": None if pca is None else saved.baselines(k=k, **draws),
    }
    if controls is not None:
        report["controls"] = control_rows(saved, None, k=k, **draws)
    head = {"run": str(run), "variant": opened.config.sae.variant, "data": opened.config.rows.data}
    done = {**head, **bootstrap.plain(report), "seconds": round(time.perf_counter() - begun, 1)}
    kept = kept_of(saved, None, k=k, settings=to_json(config), **draws)
    write_kept(opened.folder, str(read_description(opened.folder)["sha256"]), kept)
    publish_report(opened.folder, "eval.json", done)
    return done


def _metrics(measured: Reconstruction, draws: dict[str, int]) -> dict[str, Any]:
    metrics = measured.metrics(**draws)
    del metrics["documents"]
    return {"rows": metrics.pop("tokens"), **metrics}


def _positions(rows: int, most: int) -> Iterator[Tensor]:
    """At most `most` row numbers, evenly spread over all, in chunks."""
    count = min(rows, most)
    return iter((torch.arange(count) * rows // count).split(CHUNK))


def _spread(part: TensorPart, most: int) -> Iterator[Tensor]:
    return (part.read(rows) for rows in _positions(part.rows, most))
