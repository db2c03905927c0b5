"""Names and meanings of the numbers in eval.json, for the pages that show them.

for measure in described(numbers, "image"):
    print(measure.name, measure.value, measure.meaning)
"""

from __future__ import annotations

from typing import Any, NamedTuple

# what the numbers are about, by the run's kind (`kind_of`)
_UNITS: dict[str, dict[str, str]] = {
    "language": {"one": "a token", "input": "activation", "values": "activations'", "mean": "the mean activation"},
    "tensors": {"one": "a row", "input": "row", "values": "rows'", "mean": "the mean row"},
    "rows": {"one": "a row", "input": "row", "values": "rows'", "mean": "the mean row"},
    "image": {"one": "an image", "input": "image", "values": "pixels'", "mean": "the mean image"},
}

MEASURES: dict[str, tuple[str, str]] = {
    "site": ("Site", "where the activations are read"),
    "dataset": ("Data", "what it was measured on"),
    "data": ("Data", "what it was measured on"),
    "tokens": ("Tokens", "behind these numbers"),
    "rows": ("Rows", "held out, behind these numbers"),
    "documents": ("Documents", "that they come from"),
    "fvu": ("FVU", "share of the {values} variance that is not explained; 0 is exact, 1 is {mean}"),
    "psnr": ("PSNR", "peak signal to noise ratio, dB"),
    "cosine": ("Cosine", "mean cosine of {input} and reconstruction"),
    "norm_ratio": ("Norm ratio", "mean length of a reconstruction over its {input}'s"),
    "reconstruction_bias": ("Reconstruction bias", "1 where reconstructions are not shrunk"),
    "relative_error": ("Relative error", "squared error over squared {input}s"),
    "l0": ("L0", "latents other than zero, {one}"),
    "dead": ("Dead", "share of the latents that never fired"),
    "densities.never": ("Never fired", "how many latents"),
    "baselines.pca_fvu": ("FVU of PCA", "with as many components as the next row says"),
    "baselines.pca_components": ("PCA components", "as many as a code has numbers"),
    "baselines.pca_components_for_same_fvu": ("PCA components for the same FVU", "as many as PCA needs"),
    "baselines.mean_fvu": ("FVU of the mean", "of {mean} of the training data as every reconstruction"),
    "downstream.delta_ce": ("Cross-entropy added", "nats a token, with reconstructions in place of ordinary tokens"),
    "downstream.delta_ce_everywhere": ("Cross-entropy added everywhere", "nats a token, in place of all tokens"),
    "downstream.kl": ("KL of the next token", "nats a token, from the model's own distribution"),
    "downstream.ce_recovered_zero": ("Cross-entropy recovered", "1 is all of it, 0 is as bad as zeros"),
    "downstream.ce_recovered_mean": (
        "Recovered against the mean",
        "1 is all of it, 0 is as bad as the mean in its place",
    ),
    "downstream.ce_clean": ("Cross-entropy", "of the model itself, nats a token"),
    "downstream.ce_spliced": ("Cross-entropy, reconstructed", "with reconstructions in place, nats a token"),
    "downstream.ce_zero_ablation": ("Cross-entropy, zeros", "with zeros in place, nats a token"),
    "downstream.ce_mean_ablation": ("Cross-entropy, mean", "with the mean in place, nats a token"),
    "downstream.tokens": ("Tokens, downstream", "behind the cross-entropies"),
    "downstream.documents": ("Documents, downstream", "that they come from"),
    "bounds.nll": ("-log p(x|z)", "nats an image, one draw"),
    "bounds.kl": ("KL from the prior", "nats an image"),
    "bounds.elbo": ("ELBO", "nats an image, below log p(x)"),
    "bounds.importance": ("Importance-weighted bound", "nats an image, between the ELBO and log p(x)"),
    "bounds.bits_per_dim": ("Bits a number", "of the better bound"),
    "bounds.draws": ("Draws", "behind the importance-weighted bound"),
    "latents.active": ("Active latents", "whose mean has a variance over 0.01"),
    "codebook.perplexity": ("Perplexity", "atoms in use, were all used alike"),
    "codebook.atoms": ("Atoms", ""),
    "parameters": ("Parameters", ""),
    "images": ("Images", "held out, behind these numbers"),
}
"""Key in eval.json, nested ones with dots -> name and meaning, in the order in which they are shown."""
_GROUPS = {
    "others.bos": "BOS tokens alone",
    "others.special": "special tokens alone",
    "others.sink": "sink tokens alone",
    "training_form": "the form it was trained in",
}
"""Parts of eval.json that hold measures of something else."""


class Measure(NamedTuple):
    """One number of an evaluation."""

    key: str
    """In eval.json, nested names joined by dots."""
    name: str
    value: Any
    """A number, a word, or {"value", "low", "high"}."""
    meaning: str
    """With the unit; "" where the name says it all."""


def described(numbers: dict[str, Any], kind: str) -> list[Measure]:
    """The named measures of an eval.json, in the order of `MEASURES`; lists are left to pictures."""
    measures = _of(numbers, "", kind)
    for key, of in _GROUPS.items():
        part = value_at(numbers, key)
        if isinstance(part, dict):
            others = _of(part, f"{key}.", kind)
            measures += [m._replace(name=f"{m.name}, {of}") for m in others if not m.key.endswith(".tokens") or m.value]
    if reason := numbers.get("downstream_missing"):
        meaning = f"left out, because the model predicts no next token: {reason}"
        measures.append(Measure("downstream_missing", "Cross-entropies", "none", meaning))
    return measures


def _of(numbers: dict[str, Any], prefix: str, kind: str) -> list[Measure]:
    values = ((key, value_at(numbers, key)) for key in MEASURES)
    return [
        Measure(prefix + key, MEASURES[key][0], value, MEASURES[key][1].format(**_UNITS[kind]))
        for key, value in values
        if value is not None
    ]


def value_at(numbers: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    value: Any = numbers
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
