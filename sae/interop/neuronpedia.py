"""Features for Neuronpedia: rows for its REST upload, and SAEDashboard's `batch-N.json` for its importer.

export("runs/demo", "out/np", model_id="smollm2-135m")      # out/np/upload/upload-0.json, out/np/dashboard/batch-0.json

Both come from the feature store; nothing is computed again. Lengths stay within the upload's limits. SAEDashboard's
fields about the model's neurons (correlations) are empty, because these are not collected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.base.files import publish_file, publish_folder
from sae.config import ConfigError
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.models.saved import locate_run, read_config
from sae.runs.base import check_language

A_FILE = 128  # features in one upload, the maximum
LOGITS, TOKENS, TEXT = 20, 1024, 512  # the upload's limits: logits, tokens of an example, characters of an explanation
BANDS_EXAMPLES = 8  # examples of a quantile band
BARS = 50  # of the histogram of logits
ALIGNED = 3  # coordinates of the atom that are listed
KINDS = {
    "resid_pre": "res",
    "resid_mid": "res",
    "resid_post": "res",
    "mlp_out": "mlp",
    "mlp_in": "mlp",
    "attn_out": "att",
}


class Names(NamedTuple):
    """The run's names on Neuronpedia, as in a file of SAEDashboard."""

    model_id: str
    layer: int
    sae_set: str
    sae_id_suffix: str

    @property
    def source(self) -> str:
        """The upload's name for it: layer, set and suffix."""
        return f"{self.layer}-{self.sae_set}-{self.sae_id_suffix}"


def export(
    run: str | Path,
    out: str | Path,
    *,
    model_id: str | None = None,
    set_name: str | None = None,
    latents: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Write the features of a run as two folders of JSON files, `upload` and `dashboard`.

    Args:
        run: run folder with collected features.
        out: folder to write; it must not exist yet.
        model_id: the model's name on Neuronpedia; by default the last part of the run's model, in lower case.
        set_name: the set's name; by default the kind of site and `sparsight`, as in `res-sparsight`.
        latents: by default all that fired.

    Returns:
        JSON values: "out", "model_id", "source", "features", "files".

    Raises:
        ConfigError: `out` exists, or none of the latents fired.
        FeatureError: the features are not collected, or the run has no such latent.
    """
    check_language(run, "an export for Neuronpedia")
    folder, out = locate_run(run), Path(out).expanduser()
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; give a new folder")
    store = FeatureStore(folder)
    fired = np.flatnonzero(store.scalars["count"] > 0)
    exported = fired.tolist() if latents is None else sorted(set(latents))
    for latent in exported:
        if not 0 <= latent < store.width:
            raise FeatureError(f"latent {latent}: this run has latents 0 to {store.width - 1}")
    exported = [latent for latent in exported if store.scalars["count"][latent] > 0]
    if not exported:
        raise ConfigError(f"{folder}: none of the latents asked for fired in the collected tokens")
    names = _names(folder, store, model_id, set_name)
    context = int(read_config(folder)["train"]["harvest"]["context"])
    explained = store.annotations.names()
    with publish_folder(out) as temporary:
        for number, part in enumerate(_parts(exported)):
            records = {latent: store.record(latent) for latent in part}
            logits = {latent: _logits(store, latent) for latent in part}
            rows = [_upload_feature(records[i], logits[i], explained.get(i)) for i in part]
            _write(
                temporary / "upload" / f"upload-{number}.json",
                {"modelId": names.model_id, "source": names.source, "features": rows},
            )
            features = [_dashboard_feature(store, records[i], logits[i], context) for i in part]
            _write(temporary / "dashboard" / f"batch-{number}.json", {**names._asdict(), "features": features})
    files = 2 * len(list(_parts(exported)))
    head = {"out": str(out), "model_id": names.model_id, "source": names.source}
    return {**head, "features": len(exported), "files": files}


def _upload_feature(record: dict[str, Any], logits: dict[str, Any], said: dict[str, Any] | None) -> dict[str, Any]:
    """A feature in the format of the REST upload."""
    return {
        "index": record["latent"],
        "density": record["density"],
        "topLogits": logits["top"],
        "bottomLogits": logits["bottom"],
        "explanations": [] if said is None else [_explanation(said)],
        "activations": [
            {
                "tokens": example["tokens"],
                "values": example["values"],
                "quantileMin": band["low"],
                "quantileMax": band["high"],
                "quantileFraction": band["share"],
            }
            for band, example in _examples(record)
        ],
    }


def _explanation(said: dict[str, Any]) -> dict[str, Any]:
    """A name and its author: "rules", or the explainer and its model."""
    method, _, model = str(said["method"]).partition(":")
    return {"text": str(said["name"])[:TEXT], "methodName": f"sparsight_{method}", "modelName": model or "none"}


def _dashboard_feature(
    store: FeatureStore, record: dict[str, Any], logits: dict[str, Any], context: int
) -> dict[str, Any]:
    """A feature in the format of SAEDashboard."""
    atom = store.lens.atoms()[record["latent"]] * float(store.scalars["atom_norm"][record["latent"]])
    aligned = atom.abs().topk(min(ALIGNED, len(atom))).indices
    histogram = record["histogram"]
    heights, centres = logits["histogram"]
    unknown = [f"correlated_{what}_{how}" for what in ("neurons", "features") for how in ("indices", "l1", "pearson")]
    return {
        "feature_index": record["latent"],
        "neuron_alignment_indices": aligned.tolist(),
        "neuron_alignment_values": _short(atom[aligned]),
        "neuron_alignment_l1": _short(atom[aligned].abs() / atom.abs().sum().clamp_min(1e-12)),
        **{name: [] for name in unknown},
        "neg_str": [entry["token"] for entry in logits["bottom"]],
        "neg_values": [entry["value"] for entry in logits["bottom"]],
        "pos_str": [entry["token"] for entry in logits["top"]],
        "pos_values": [entry["value"] for entry in logits["top"]],
        "frac_nonzero": record["density"],
        # bins are half octaves; a bar is at its bin's geometric centre
        "freq_hist_data_bar_values": _short(np.asarray(histogram["low_exponents"]) * 2**0.25),
        "freq_hist_data_bar_heights": histogram["counts"],
        "logits_hist_data_bar_heights": heights,
        "logits_hist_data_bar_values": centres,
        "n_prompts_total": store.info["documents"],
        "n_tokens_in_prompt": context,
        "dataset": str(store.info["dataset"]),
        "decoder_weights_dist": [],
        "vector": _short(atom),
        "activations": [
            {
                "bin_min": band["low"],
                "bin_max": band["high"],
                "bin_contains": band["share"],
                "tokens": example["tokens"],
                "values": example["values"],
                "qualifying_token_index": example["peak"],
            }
            for band, example in _examples(record)
        ],
    }


def _examples(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Bands, strongest first, with their strongest examples; numbers are rounded, lengths within the limits."""
    for band in record["bands"]:
        ends = {**band, "low": _round(band["low"]), "high": _round(band["high"]), "share": _round(band["share"])}
        for index in band["examples"][:BANDS_EXAMPLES]:
            example = record["examples"][index]
            values = [_round(value) for value in example["values"][:TOKENS]]
            yield ends, {"tokens": example["tokens"][:TOKENS], "values": values, "peak": example["peak"]}


def _logits(store: FeatureStore, latent: int) -> dict[str, Any]:
    """The most and least likely tokens and a histogram (heights, centres) of all logits; empty where undefined."""
    try:
        listed = store.logits(latent)
        unembedding = store.lens.unembedding()
    except FeatureError:
        return {"top": [], "bottom": [], "histogram": ([], [])}
    scores = (unembedding @ store.lens.atoms()[latent]).numpy()
    heights, edges = np.histogram(scores, bins=BARS)
    short = {
        end: [{"token": e["token"], "value": _round(e["value"])} for e in listed[end][:LOGITS]]
        for end in ("top", "bottom")
    }
    return {**short, "histogram": (heights.tolist(), _short((edges[1:] + edges[:-1]) / 2))}


def _names(folder: Path, store: FeatureStore, model_id: str | None, set_name: str | None) -> Names:
    site = str(store.info["site"])
    kind, _, layer = site.rpartition(".")
    model = model_id or Path(str(store.info["model"])).name.lower()
    number = int(layer) if layer.isdigit() else 0
    return Names(model, number, set_name or f"{KINDS.get(kind, 'sae')}-sparsight", str(store.width))


def _parts(latents: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(latents), A_FILE):
        yield latents[begin : begin + A_FILE]


def _write(path: Path, value: dict[str, Any]) -> None:
    # compact: a batch holds thousands of numbers
    publish_file(path, json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode())


def _short(values: np.ndarray | torch.Tensor) -> list[float]:
    return [_round(value) for value in values.tolist()]


def _round(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")
