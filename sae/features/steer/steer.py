"""Steering and ablation: text generated with some latents pushed, set or removed, beside the plain text.

    steer(run, lm, "I went to", [Intervention(1203, "add", 1.0)], tokens=40)["steered"]

At every steered token latents are changed as `sae.harvest.intervene` says, by a strength s_j that is the given one
times the latent's largest activation in the collected data (Templeton et al. 2024), or the given one itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sae.base.device import pick_device
from sae.config import SteerConfig
from sae.data.packing import padding_token
from sae.features.steer.inject import OVERFLOW, SteerError, largest_activation, note_of, steered_tokens, steering
from sae.features.steer.prompt import read_prompt, vocabulary_of, wanted_in
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.harvest.intervene import CHANGES, Change, Effect, TooStrongError
from sae.harvest.language_model import LanguageModel
from sae.runs.base import check_language
from sae.runs.text import Run, open_run


class Intervention(NamedTuple):
    """What is done to one latent."""

    latent: int
    mode: Change = "add"
    strength: float = 1.0
    """In units of the latent's maximum, or of the activation where `absolute` is set; not used by `ablate`."""
    absolute: bool = False


def steer(
    run: Run,
    lm: LanguageModel,
    prompt: str,
    interventions: Sequence[Intervention],
    *,
    where: Literal["every", "generated"] | Sequence[int] = "every",
    bos: bool = False,
    tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    store: FeatureStore | None = None,
) -> dict[str, Any]:
    """Generate from `prompt` twice with the same seed: by the plain model, and with the interventions.

    Args:
        run: a finished run; its features must be collected unless every strength is absolute or every mode `ablate`.
        lm: the run's language model.
        prompt: the beginning; BOS is put before it as in the harvest. A run on chats also takes a conversation as JSON,
            to which the assistant replies; "every" then excludes tokens of roles that the run leaves out.
        interventions: one a latent.
        where: "every" token, the "generated" ones alone, or positions in prompt and generation (BOS is 0 where the
            tokenizer has one).
        bos: steer BOS as well, which models use as an attention sink.
        tokens: how many to generate; fewer where the model ends the text.
        temperature: 0 is greedy; above, tokens are drawn from the seed.
        seed: of the draws, the same for both texts.
        store: the run's features, where they are open already.

    Returns:
        JSON values: "prompt", "site", "plain" and "steered" (generated text), "interventions" (latent, mode, strength,
        "value" in the activation's units, "maximum"), "tokens" ({"prompt", "plain", "steered"}: display strings),
        "kl" (nats a steered token: KL of the steered from the plain next-token distribution after the same text),
        "mean_kl" and "note" (where the sites written are not those read).

    Raises:
        SteerError, PromptError, SiteError: it cannot be done, or the activations overflow.
        FeatureError: maxima are needed and the run's features are not collected.
    """
    _check_call(run, lm, interventions, tokens, temperature)
    ids, roles = read_prompt(run, lm, prompt, reply=True)
    limit = lm.traits.limit
    if limit is not None and len(ids) + tokens > limit:
        raise SteerError(
            f"--tokens {tokens}: with the prompt's {len(ids)} tokens that is over the model's {limit}; ask for fewer"
        )
    effects = [_effect(run, i, store) for i in interventions]
    skip_first = bool(lm.beginning) and not bos
    touched = steered_tokens(where, prompt=len(ids), skip_first=skip_first, total=len(ids) + tokens)
    wanted = wanted_in(run, roles)
    if wanted is not None and where == "every":  # the latents were not trained on other roles' tokens
        touched[: len(ids)] &= wanted
    session = steering(run, lm.model, [Effect(e["latent"], e["mode"], e["value"]) for e in effects], touched)

    sampling = {"tokens": tokens, "temperature": temperature, "seed": seed}
    plain, _ = _generate(lm, ids, **sampling)
    with session:
        steered, scores = _generate(lm, ids, **sampling)
    kl = _divergence(lm, torch.cat([ids, steered]), scores)
    return {
        "prompt": prompt,
        "site": ", ".join(site.name for site in run.targets),
        "plain": lm.tokenizer.decode(plain, skip_special_tokens=True),
        "steered": lm.tokenizer.decode(steered, skip_special_tokens=True),
        "interventions": effects,
        "tokens": {
            name: vocabulary_of(lm.tokenizer).display(part.numpy())
            for name, part in (("prompt", ids), ("plain", plain), ("steered", steered))
        },
        "kl": kl,
        "mean_kl": sum(kl) / len(kl) if kl else 0.0,
        "note": note_of(run),
    }


def steer_run(run: str | Path, config: SteerConfig) -> dict[str, Any]:
    """`steer` with the flags of `sae steer`: opens the run and its language model.

    Raises:
        ConfigError, CorruptError, ModelError: the run or its model cannot be used; and what `steer` raises.

    Example:
        >>> import sae
        >>> config = sae.SteerConfig(latent=(3,), mode="ablate", prompt="the river", tokens=4)
        >>> texts = sae.steer("runs/demo", config)
        >>> {"plain", "steered", "kl"} <= set(texts)
        True
    """
    check_language(run, "steering")
    device = pick_device(config.device)
    opened = open_run(run, device=device)
    scales = config.scale if len(config.scale) == len(config.latent) else config.scale * len(config.latent)
    interventions = [
        Intervention(i, config.mode, s, config.absolute) for i, s in zip(config.latent, scales, strict=True)
    ]
    return steer(
        opened,
        opened.load_language_model(device),
        config.prompt,
        interventions,
        where=_positions(config.where),
        bos=config.steer_bos,
        tokens=config.tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def _positions(where: str) -> Literal["every", "generated"] | list[int]:
    if where in ("every", "generated"):
        return where
    try:
        return [int(part) for part in where.split(",")]
    except ValueError as error:
        raise SteerError(f"--where {where}: expected every, generated, or positions such as 3,4,5") from error


def _check_call(
    run: Run, lm: LanguageModel, interventions: Sequence[Intervention], tokens: int, temperature: float
) -> None:
    if not interventions:
        raise SteerError("--latent: none given; name at least one latent")
    if tokens < 1:
        raise SteerError(f"--tokens {tokens}: expected at least 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise SteerError(f"--temperature {temperature}: expected 0 (greedy) or more")
    seen: set[int] = set()
    for latent, mode, strength, _ in interventions:
        if not 0 <= latent < run.model.width:
            raise SteerError(f"--latent {latent}: the run has latents 0 to {run.model.width - 1}")
        if latent in seen:
            raise SteerError(f"--latent {latent}: given twice")
        if mode not in CHANGES:
            raise SteerError(f"--mode {mode}: expected one of {', '.join(CHANGES)}")
        if not math.isfinite(strength):
            raise SteerError(f"--scale {strength}: expected a finite number")
        if mode == "set" and strength < 0:
            raise SteerError(f"--scale {strength}: a latent's value is never negative; use --mode add")
        seen.add(latent)
    if (reason := lm.traits.no_next_token) is not None:
        raise SteerError(
            f"{lm.provenance['architecture']} predicts no next token, so there is no text to steer ({reason}); its "
            "prompts can be examined on the page"
        )


def _effect(run: Run, given: Intervention, store: FeatureStore | None) -> dict[str, Any]:
    """The intervention as JSON values; "value" is the strength in the activation's units."""
    base = {"latent": given.latent, "mode": given.mode}
    if given.mode == "ablate":
        return {**base, "strength": None, "value": 0.0, "maximum": None}
    if given.absolute:
        return {**base, "strength": given.strength, "value": given.strength, "maximum": None}
    maximum = _maximum(run, given.latent, store)
    return {**base, "strength": given.strength, "value": given.strength * maximum, "maximum": maximum}


def _maximum(run: Run, latent: int, store: FeatureStore | None) -> float:
    """The latent's largest activation in the collected data."""
    remedy = "give --absolute, and --scale in the activation's own units"
    try:
        opened = store or FeatureStore(run.folder)
    except FeatureError as error:
        raise FeatureError(f"{error}; or {remedy}") from error
    return largest_activation(opened, latent, remedy)


def _generate(
    lm: LanguageModel, ids: Tensor, *, tokens: int, temperature: float, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """The tokens [n] after `ids`, on the CPU, and for each the logits [vocabulary] it was drawn from."""
    settings: dict[str, Any] = {"do_sample": temperature > 0, "num_beams": 1, "repetition_penalty": 1.0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        generate: Any = lm.model.generate
        try:
            generated = generate(
                ids[None].to(lm.device),
                attention_mask=torch.ones_like(ids)[None].to(lm.device),
                max_new_tokens=tokens,
                pad_token_id=padding_token(lm.tokenizer),
                output_logits=True,
                return_dict_in_generate=True,
                **settings,
            )
        except TooStrongError as error:
            raise SteerError(OVERFLOW) from error
        except RuntimeError as error:
            # the message of multinomial about invalid probabilities
            if "inf" not in str(error) and "nan" not in str(error):
                raise
            raise SteerError(OVERFLOW) from error
    logits = [step[0].float().cpu() for step in generated.logits]
    if not all(bool(torch.isfinite(step).any() and not step.isnan().any()) for step in logits):
        raise SteerError(OVERFLOW)
    return generated.sequences[0, len(ids) :].cpu(), logits


def _divergence(lm: LanguageModel, text: Tensor, scores: list[Tensor]) -> list[float]:
    """KL(steered || plain) in nats at every generated token of `text` [S], both after the same tokens before it."""
    with torch.no_grad():
        rows = lm.model(input_ids=text[None].to(lm.device)).logits[0, -len(scores) - 1 : -1].float().cpu()
    divergences = []
    for steered, plain in zip(scores, rows, strict=True):
        p, q = steered.log_softmax(-1), plain.log_softmax(-1)
        # tokens that the model excludes have a log probability of -inf in both
        divergences.append(max(0.0, torch.where(p.isinf(), 0.0, p.exp() * (p - q)).sum().item()))
    return divergences
