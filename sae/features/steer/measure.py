"""What steering with a latent does, over the strength: the response, what it costs in fluency, and what controls do.

    (result,) = measure_steering("runs/demo", SteerMeasureConfig(latent=(1203,)))["latents"]
    result["proposed"]["dose"], result["rows"]

The model continues the beginnings of held-out documents while a vector is added at the run's target site. A dose of 1
adds the latent's atom times its largest collected activation; every control adds a vector of the same length:

- **random latents** of the run, drawn by the seed: what any push of this size does;
- **mean difference**: mean activation where the latent fires minus mean where it does not (Marks & Tegmark 2023);
- **probe**: the weights of a logistic regression that tells the two apart;
- **prompt**: no vector, but a first sentence with the latent's name or, without one, its strongest tokens.

The plain model then reads each text, without steering. Of its generated tokens,

    response = mean activation of the latent / its largest collected activation     (an output score, Arad et al. 2025)
    loss added = the plain model's loss on the text - its loss on the text that it wrote unsteered, nats a token

Intervals are over prompts. The response is the latent's own reading of the text: a latent that fires on the wrong thing
scores itself well, so a name of known quality belongs beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.base import draws
from sae.base.device import pick_device
from sae.base.progress import Progress, StopSignal
from sae.config import SteerMeasureConfig
from sae.data.packing import BEGINNING
from sae.evaluation.bootstrap import GroupSums, plain, ratio
from sae.features.steer.inject import SteerError, largest_activation
from sae.features.steer.texts import Generator, Reader, Reading
from sae.features.store.annotations import Annotations
from sae.features.store.store import FeatureStore
from sae.harvest.hooks import check_replaceable
from sae.harvest.language_model import LanguageModel
from sae.harvest.stream import ORDINARY
from sae.runs.base import check_language
from sae.runs.text import Run, open_run
from sae_kernels import SparseCodes

FLUENT = 0.5
"""Loss added, nats a token, up to which a text counts as fluent when a strength is proposed."""
NEAR_BEST = 0.9
"""A smaller strength is proposed where it reaches this share of the best fluent response."""
LEARN_TOKENS, LEAST_FIRINGS, PROBED = 8192, 20, 2000
"""Tokens from which the mean difference and the probe are learnt, firings they need, and tokens the probe sees."""
PLAIN, LATENT, RANDOM, DIFFERENCE, PROBE, PROMPT = (
    "none",
    "latent",
    "random latents",
    "mean difference",
    "probe",
    "prompt",
)


def measure_steering(run: str | Path, config: SteerMeasureConfig) -> dict[str, Any]:
    """`measure_latent` for every latent of `sae steer --measure`; results are also kept in the run, for its page.

    Raises:
        ConfigError, CorruptError, ModelError, FeatureError, SiteError, SteerError: the run, its model, its sites, or a
            latent cannot be used.

    Example:
        >>> import sae
        >>> densest = int(sae.Run("runs/demo").features.scalars["count"].argmax())
        >>> config = sae.SteerMeasureConfig(latent=(densest,), doses=(1.0, 4.0), prompts=2, prompt_tokens=8, tokens=4)
        >>> (measured,) = sae.measure_steering("runs/demo", config)["latents"]
        >>> measured["rows"][0]["method"], measured["rows"][1]["method"]
        ('none', 'latent')
    """
    check_language(run, "steering")
    device = pick_device(config.device)
    opened = open_run(run, device=device)
    store = FeatureStore(opened.folder)
    maxima = [largest_activation(store, latent) for latent in config.latent]
    for site in opened.targets:
        check_replaceable(site)
    with StopSignal() as stop, Progress() as progress:
        lm = opened.load_language_model(device)
        if (reason := lm.traits.no_next_token) is not None:
            raise SteerError(f"{lm.provenance['architecture']} predicts no next token ({reason})")
        common = _common(opened, lm, config)
        results = []
        for latent, maximum in zip(config.latent, maxima, strict=True):
            total = (len(config.doses) * 4 + 1) * config.prompts
            with progress.bar(f"Latent {latent}", total, "texts") as bar:

                def advance(texts: int) -> None:
                    bar.advance(texts)
                    stop.check("the latents measured before are kept")

                result = measure_latent(opened, lm, latent, config, maximum, store, common, advance)
            Annotations(opened.folder).set_steering(latent, result)
            results.append(result)
    return {"run": str(run), "latents": results}


def measure_latent(
    run: Run,
    lm: LanguageModel,
    latent: int,
    config: SteerMeasureConfig,
    maximum: float,
    store: FeatureStore,
    common: Common,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Dose and response of one latent and its controls.

    Args:
        run: a finished run.
        lm: its language model.
        latent: which.
        config: doses, numbers of prompts and tokens, seed.
        maximum: the latent's largest activation in the collected text, the unit of doses.
        store: the run's features.
        common: what all latents of the run share.
        advance: called with the number of texts of each method and dose.

    Returns:
        JSON values: "latent", "name", "maximum", "site", "rows" (a method and a dose each: "response", "fires",
        "loss_added", "over_random" as intervals, "text"), "left_out" (control -> why), "proposed" ({"dose", "why"}).
    """
    prompts = common.prompts
    vectors, left_out = _vectors(run, latent, store, common, config.seed)
    read = Reader(run, lm, latent, maximum)
    generate = Generator(run, lm, config)
    plain_texts = read(common.unsteered, prompts.shape[1])
    rows = [_row(PLAIN, 0.0, plain_texts, plain_texts, None, config)]
    for dose in config.doses:
        pushed: dict[str, Reading] = {}
        for method, candidates in vectors.items():
            # each prompt is pushed along one of the method's vectors
            scale = dose * maximum
            pushes = torch.stack([candidates[i % len(candidates)] for i in range(len(prompts))]) * scale
            texts = generate(prompts, pushes)
            advance(len(prompts))
            if texts is None:
                left_out[f"{method} at {dose:g}"] = "the model's activations overflow"
            else:
                pushed[method] = read(texts, prompts.shape[1])
        rows += [_row(name, dose, one, plain_texts, pushed.get(RANDOM), config) for name, one in pushed.items()]
    told = _told(store, latent, lm).expand(len(prompts), -1)
    begun = len(lm.beginning)
    prompted = torch.cat([prompts[:, :begun], told, prompts[:, begun:]], dim=1)
    texts = generate(prompted, None)
    advance(len(prompts))
    rows.append(_row(PROMPT, None, read(texts, prompted.shape[1]), plain_texts, None, config))
    return plain(
        {
            "latent": latent,
            "name": _name(store, latent),
            "maximum": maximum,
            "site": ", ".join(site.name for site in run.targets),
            "prompts": len(prompts),
            "tokens": config.tokens,
            "rows": rows,
            "left_out": left_out,
            "proposed": propose(rows),
        }
    )


def propose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The smallest dose near the best response among fluent ones that are above the random latents.

    Returns:
        "dose" (None where none is), "why" in a sentence.
    """
    mine = [row for row in rows if row["method"] == LATENT]
    fluent = [row for row in mine if row["loss_added"].value <= FLUENT]
    specific = [row for row in fluent if row["over_random"] is not None and row["over_random"].low > 0]
    if not fluent:
        return {"dose": None, "why": f"every dose adds more than {FLUENT:g} nats a token to the model's own loss"}
    if not specific:
        return {"dose": None, "why": "no fluent dose raises the latent's response above that of random latents"}
    best = max(row["response"].value for row in specific)
    row = next(row for row in specific if row["response"].value >= NEAR_BEST * best)
    return {
        "dose": row["dose"],
        "why": f"the smallest dose with at least {NEAR_BEST:.0%} of the best response among those that add at most "
        f"{FLUENT:g} nats a token and whose response is above that of random latents",
    }


def _row(
    method: str,
    dose: float | None,
    texts: Reading,
    unsteered: Reading,
    random: Reading | None,
    config: SteerMeasureConfig,
) -> dict[str, Any]:
    """One method at one dose, as intervals over the prompts."""
    sums = GroupSums()
    values = {
        "count": torch.ones(len(texts.loss)),
        "response": texts.response,
        "fires": texts.fires.double(),
        "added": texts.loss - unsteered.loss,
    }
    if random is not None and method != RANDOM:
        values["over"] = texts.response - random.response
    sums.add(torch.arange(len(texts.loss)), values)

    def interval(name: str) -> Any:
        return sums.interval(ratio(name, "count"), resamples=config.resamples, seed=config.seed)

    return {
        "method": method,
        "dose": dose,
        "response": interval("response"),
        "fires": interval("fires"),
        "loss_added": interval("added"),
        "over_random": interval("over") if "over" in values else None,
        "text": texts.first,
    }


class Common(NamedTuple):
    """What the measurements of all latents of a run share."""

    prompts: Tensor
    """Beginnings of held-out documents, int64 [n, P]."""
    unsteered: Tensor
    """The texts that the model writes after them, int64 [n, P + tokens]."""
    targets: Tensor
    """Activations of training tokens at the target sites [T, d_out]."""
    codes: list[SparseCodes]
    """The codes of those tokens, in parts."""


def _common(run: Run, lm: LanguageModel, config: SteerMeasureConfig) -> Common:
    prompts = torch.stack(list(_prompts(run, lm, config)))
    unsteered = Generator(run, lm, config)(prompts, None)
    assert unsteered is not None, "the plain model overflows"
    return Common(prompts, unsteered, *_learning_rows(run, lm))


def _prompts(run: Run, lm: LanguageModel, config: SteerMeasureConfig) -> Iterator[Tensor]:
    """Beginnings of held-out documents, int64 [P] each, with what begins a segment."""
    left = config.prompts
    size = config.prompt_tokens
    for contexts in run.harvest(lm, split="heldout").contexts(BEGINNING):
        for row, column in (contexts.position == 0).nonzero().tolist():
            document = contexts.document[row, column : column + size]
            if len(document) < size or document[0] < 0 or bool((document != document[0]).any()):
                continue
            yield contexts.tokens[row, column : column + size]
            left -= 1
            if left == 0:
                return
    if left > config.prompts - 2:
        raise SteerError(
            f"--prompt-tokens {size}: {config.prompts - left} held-out documents are that long, expected at least 2"
        )


def _vectors(
    run: Run, latent: int, store: FeatureStore, common: Common, seed: int
) -> tuple[dict[str, list[Tensor]], dict[str, str]]:
    """Method -> vectors [d_out] of the atom's length, and the controls that are left out with the reason."""
    W = run.model.dictionary.W.detach().float()
    length = W[latent].norm()
    firing = torch.from_numpy(store.scalars["count"].copy()).nonzero().squeeze(1)
    others = firing[firing != latent]
    chosen = others[torch.randperm(len(others), generator=draws.generator(seed, latent))[:8]]
    vectors = {LATENT: [W[latent]]}
    left_out: dict[str, str] = {}
    if len(chosen):
        vectors[RANDOM] = [W[i] * (length / W[i].norm().clamp_min(1e-12)) for i in chosen.tolist()]
    else:
        left_out[RANDOM] = "no other latent fired in the collected text"
    targets, index = common.targets, torch.tensor([latent])
    fires = torch.cat([codes.at(index.to(codes.values.device)).squeeze(1).cpu() > 0 for codes in common.codes])
    if min(int(fires.sum()), int((~fires).sum())) < LEAST_FIRINGS:
        why = f"the latent fires on {int(fires.sum())} of {len(fires)} training tokens, expected {LEAST_FIRINGS}"
        return vectors, left_out | {DIFFERENCE: why, PROBE: why}
    difference = targets[fires].mean(0) - targets[~fires].mean(0)
    vectors[DIFFERENCE] = [(difference * (length / difference.norm())).to(W.device)]
    probe = _probe(targets, fires, seed)
    vectors[PROBE] = [(probe * (length / probe.norm())).to(W.device)]
    return vectors, left_out


@torch.no_grad()
def _learning_rows(run: Run, lm: LanguageModel) -> tuple[Tensor, list[SparseCodes]]:
    """Target activations [T, d_out] of training tokens, and their codes."""
    harvest = run.harvest(lm, split="train")
    targets, codes = [], []
    left = LEARN_TOKENS
    for harvested in harvest.batches():
        rows = harvested.rows.select((harvested.rows.kind == ORDINARY).nonzero().squeeze(1))
        codes.append(run.model.encode(run.inputs_of(rows).to(run.model.dictionary.W)))
        targets.append(run.targets_of(rows).cpu())
        left -= rows.size
        if left <= 0:
            break
    return torch.cat(targets), codes


def _probe(targets: Tensor, fires: Tensor, seed: int) -> Tensor:
    """The direction [d_out] of a logistic regression on standardised activations, balanced over both classes."""
    from sklearn.linear_model import LogisticRegression

    order = torch.randperm(len(fires), generator=draws.generator(seed, len(fires)))
    taken = torch.cat([part[: PROBED // 2] for part in (order[fires[order]], order[~fires[order]])])
    x, y = targets[taken], fires[taken]
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    fit = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    fit.fit(((x - mean) / scale).numpy(), y.numpy())
    return torch.from_numpy(fit.coef_[0]).float() / scale


def _name(store: FeatureStore, latent: int) -> str | None:
    notes, names = store.annotations.all().get(latent) or {}, store.annotations.names().get(latent) or {}
    return notes.get("label") or names.get("name")


def _told(store: FeatureStore, latent: int, lm: LanguageModel) -> Tensor:
    """Ids [n] of a first sentence that asks for what the latent stands for."""
    name = _name(store, latent)
    if name is None:
        top = [e for e in store.record(latent)["examples"] if e["band"] == "top"][:5]
        name = ", ".join(dict.fromkeys(e["tokens"][e["peak"]].strip() for e in top))
    ids = lm.tokenizer(f"The following text is about {name}.\n", add_special_tokens=False)["input_ids"]
    return torch.tensor([ids], dtype=torch.int64)
