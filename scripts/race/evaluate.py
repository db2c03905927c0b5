"""One evaluator for all: what a member saved, measured by the code of `sae eval` on rows that nobody trained on.

A member left its weights in plain tensors (`Form`) and its tool's own reconstruction of the test rows. Ours must equal
the tool's: `check` raises otherwise. Then FVU, L0, dead latents and delta CE are computed identically for all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae.base.files import CorruptError
from sae.base.progress import Progress
from sae.data.packing import BEGINNING
from sae.evaluation import downstream
from sae.evaluation.baselines import PCA
from sae.evaluation.bootstrap import MOST_UNDEFINED, GroupSums, Interval, resample_weights
from sae.evaluation.reconstruction import Reconstruction, fvu_of, fvu_sums
from sae.interop import assemble
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Code, JumpReLU, TopK
from scripts.race.data import open_source
from scripts.race.member import FORM, RECONSTRUCTED, TRAINED, in_pieces
from scripts.race.settings import Race

MEASURED = "measured.json"
TOLERANCE = 1e-5
"""Largest ||ours - theirs|| / ||theirs|| over the test rows, in float32."""
RESAMPLES, SEED = 1000, 0
CONTEXTS = 4
"""Contexts in a forward pass with logits."""


class Parts(NamedTuple):
    """The rows for measuring."""

    validation: Tensor
    validation_document: Tensor
    test: Tensor
    test_document: Tensor

    @classmethod
    def read(cls, folder: Path) -> Parts:
        tensors = load_file(folder / "parts.safetensors")
        return cls(
            tensors["validation"].float(),
            tensors["validation.document"],
            tensors["test"].float(),
            tensors["test.document"],
        )


def load_form(out: Path, race: Race) -> Autoencoder:
    """What a member saved, as an autoencoder of ours."""
    record, tensors = json.loads((out / TRAINED).read_text()), load_file(out / FORM)
    threshold = tensors.pop("threshold", None)
    code: Code = TopK(race.k)
    if threshold is not None:
        code = JumpReLU(len(threshold))
        with torch.no_grad():
            code.theta.copy_(threshold)
    return assemble(code, **tensors, centred=record["centred"], source=str(out / FORM))


def check(model: Autoencoder, reconstructed: Tensor, x: Tensor, source: str) -> float:
    """The relative difference between the model's x̂ and the tool's own, over rows whose latents rounding cannot change.

    Raises:
        CorruptError: it is over `TOLERANCE`.
    """
    ours = in_pieces(lambda rows: model(rows).reconstruction, x)
    settled = torch.ones(len(x), dtype=torch.bool)
    far = (ours - reconstructed).norm(dim=1) > TOLERANCE * reconstructed.norm(dim=1)
    settled[far] = margins(model, x[far]) > TOLERANCE
    difference = ((ours - reconstructed)[settled].norm() / reconstructed[settled].norm()).item()
    if not difference <= TOLERANCE:
        raise CorruptError(f"{source}: our reconstruction differs from the tool's own by {difference:.2g} in norm")
    return difference


def margins(model: Autoencoder, x: Tensor) -> Tensor:
    """How far each row [N] is from other latents: the gap at its k-th value or threshold, over its largest value."""
    assert model.W_enc is not None
    centred = x.double() if model.b_pre is None else x.double() - model.b_pre.double()
    values = centred @ model.W_enc.double().T + model.b_enc.double()
    if isinstance(model.code, TopK):
        least, next_one = values.topk(model.code.k + 1).values[:, -2:].unbind(1)
        gaps = least - next_one
    else:
        gaps = (values - model.code.theta.double()).abs().amin(1)
    return gaps / values.abs().amax(1)


def reconstruct(model: Autoencoder, x: Tensor, document: Tensor, pca: PCA | None = None) -> Reconstruction:
    """The sums of `sae eval`."""
    sums = Reconstruction(model, x.mean(0), pca)
    sums.add(x, x, document)
    return sums


def measure(folder: Path, out: Path, race: Race, rows: Parts) -> dict[str, Any]:
    """Everything but delta CE of a finished member; kept beside it, with the sums that intervals over seeds need."""
    if (out / MEASURED).exists():
        return json.loads((out / MEASURED).read_text())
    record, model = json.loads((out / TRAINED).read_text()), load_form(out, race)
    reconstructed = load_file(out / RECONSTRUCTED)["test"]
    difference = check(model, reconstructed, rows.test, str(out))
    validation = reconstruct(model, rows.validation, rows.validation_document)
    test = reconstruct(model, rows.test, rows.test_document)
    torch.save(test.sums.sums, out / "sums.pt")
    metrics = test.metrics(resamples=RESAMPLES, seed=SEED)
    fvu = validation.metrics(resamples=10, seed=SEED)["fvu"]
    measured = {
        **record,
        "difference": difference,
        "validation_fvu": fvu.value,
        **{name: metrics[name].to_json() for name in ("fvu", "l0", "dead", "cosine")},
    }
    (out / MEASURED).write_text(json.dumps(measured, indent=1))
    (out / RECONSTRUCTED).unlink()
    return measured


def load_sums(out: Path) -> GroupSums:
    """A measured member's sums over documents."""
    sums = GroupSums()
    sums.sums = torch.load(out / "sums.pt", weights_only=True)
    return sums


def over_seeds(members: list[dict[str, Tensor]], metric: Any) -> Interval:
    """The mean over seeds of a metric of sums, its interval over documents and seeds drawn with replacement.

    Args:
        members: for every seed, name -> sums [groups] or [groups, d]; all have the same groups.
        metric: as for `GroupSums.interval`.
    """
    groups, seeds = len(members[0]["count"]), len(members)
    whole = torch.ones(1, groups, dtype=torch.float64)
    weights = resample_weights(groups, RESAMPLES, SEED)
    value = torch.stack([metric({name: whole @ s for name, s in sums.items()}) for sums in members]).mean().item()
    draws = torch.stack([metric({name: weights @ s for name, s in sums.items()}) for sums in members])
    drawn = resample_weights(seeds, RESAMPLES, SEED + 1).T / seeds
    means = (draws * drawn).sum(0)
    if (~torch.isfinite(means)).double().mean() > MOST_UNDEFINED:
        return Interval(value, float("nan"), float("nan"))
    means = means[torch.isfinite(means)]
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


def fvu_over_seeds(outs: list[Path]) -> Interval:
    """FVU of several seeds."""
    return over_seeds([load_sums(out).sums for out in outs], lambda sums: fvu_of("error", sums))


def difference_over_seeds(outs: list[Path], others: list[Path]) -> Interval:
    """How much larger the FVU of `outs` is than that of `others`, as a share of it, on the same documents and seeds."""
    pairs = []
    for out, other in zip(outs, others, strict=True):
        sums = load_sums(out).sums
        pairs.append({**sums, "other": load_sums(other).sums["error"]})
    return over_seeds(pairs, lambda sums: fvu_of("error", sums) / fvu_of("other", sums) - 1)


def baseline(folder: Path, race: Race, rows: Parts) -> Interval:
    """FVU of PCA with k components fitted on training rows."""
    train = load_file(folder / "train.safetensors")["activations"]
    spread = torch.arange(min(len(train), 65_536)) * len(train) // min(len(train), 65_536)
    pca = PCA.fit(train[part].float() for part in spread.split(8192))
    sums = GroupSums()
    for x, document in zip(rows.test.split(8192), rows.test_document.split(8192), strict=True):
        x_hat = pca.decode(pca.codes(x, race.k))
        sums.add(document, fvu_sums(x, x_hat, pca.mean, by_row=True))
    interval = sums.interval(lambda s: fvu_of("error", s), resamples=RESAMPLES, seed=SEED)
    assert interval is not None
    return interval


def splice(folder: Path, outs: list[Path], race: Race, rows: Parts) -> dict[str, dict[str, Tensor]]:
    """For every member, sums a document of the language model's losses with its reconstruction spliced in."""
    missing = [out for out in outs if not (out / "losses.pt").exists()]
    if missing:
        with Progress() as progress:
            source = open_source(race, folder, progress)
            harvest = source.heldout(contexts=CONTEXTS)
            batches = downstream.enough(harvest.contexts(BEGINNING), race.downstream)
            mean = rows.test.double().mean(0).float()
            splices = {
                out.name: downstream.Splice(load_form(out, race), [source.site], [source.site], mean) for out in missing
            }
            total = sum(contexts.tokens.numel() for contexts in batches)
            with progress.bar("Splicing in", total, "tokens") as bar:
                for name, sums in downstream.measure(harvest, splices, batches, bar.advance).items():
                    torch.save(sums.sums, folder / name / "losses.pt")
    return {out.name: torch.load(out / "losses.pt", weights_only=True) for out in outs}
