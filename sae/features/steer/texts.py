"""Texts that a model writes while vectors are added to its activations, and what the plain model reads in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.config import SteerMeasureConfig
from sae.data.packing import padding_token
from sae.harvest.hooks import capture, splice
from sae.harvest.language_model import LanguageModel
from sae.harvest.sites import Site
from sae.modules.normalise import layer_norm
from sae.runs.text import Run, joined
from sae_kernels import SparseCodes

TEXTS_AT_ONCE = 8  # texts whose logits are in memory together


class Reading(NamedTuple):
    """What the plain model reads in one method's texts, a value a text [n]."""

    response: Tensor
    """Mean activation of the latent over the generated tokens, as a share of its maximum."""
    fires: Tensor
    """Whether the latent fires on any generated token."""
    loss: Tensor
    """Mean loss of the generated tokens, nats."""
    first: str
    """The first text's generated part."""


class Generator:
    """Texts [n, P + tokens] that the model writes after prompts, with a vector added at the target sites."""

    def __init__(self, run: Run, lm: LanguageModel, config: SteerMeasureConfig) -> None:
        self.run, self.lm, self.config = run, lm, config

    def __call__(self, prompts: Tensor, pushes: Tensor | None) -> Tensor | None:
        """Texts for prompts [n, P] and vectors [n, d_out]; None where activations overflow."""
        lm, config = self.lm, self.config
        generate: Any = lm.model.generate
        devices = [lm.device] if lm.device.type == "cuda" else []
        ids = prompts.to(lm.device)
        with torch.random.fork_rng(devices), torch.no_grad(), splice(lm.model, self._pushed(pushes)):
            torch.manual_seed(config.seed)  # the same draws for every method and dose
            try:
                return generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=config.tokens,
                    min_new_tokens=config.tokens,
                    pad_token_id=padding_token(lm.tokenizer),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_beams=1,
                    repetition_penalty=1.0,
                ).cpu()
            except RuntimeError as error:
                # the message of multinomial about invalid probabilities
                if "inf" not in str(error) and "nan" not in str(error):
                    raise
                return None

    def _pushed(self, pushes: Tensor | None) -> dict[Site, Callable[[Tensor], Tensor]]:
        if pushes is None:
            return {}
        parts = pushes.split([site.width or 0 for site in self.run.targets], dim=1)
        return {site: self._adds(part) for site, part in zip(self.run.targets, parts, strict=True)}

    def _adds(self, vectors: Tensor) -> Callable[[Tensor], Tensor]:
        skip_first, per_token = bool(self.lm.beginning), self.run.model.per_token_norm

        def add(activation: Tensor) -> Tensor:
            moved = vectors[:, None, :].to(activation).expand_as(activation).clone()
            if per_token:
                deviation = layer_norm(activation.float().flatten(0, 1))[1].deviation
                moved *= deviation.view(*activation.shape[:2], 1).to(moved)
            if skip_first and activation.shape[1] > 1:
                moved[:, 0] = 0  # models use the first token as an attention sink
            return activation + moved

        return add


class Reader:
    """The plain model's reading of texts."""

    def __init__(self, run: Run, lm: LanguageModel, latent: int, maximum: float) -> None:
        self.run, self.lm, self.latent, self.maximum = run, lm, torch.tensor([latent]), maximum

    @torch.no_grad()
    def __call__(self, texts: Tensor | None, prompt: int) -> Reading:
        """Of texts [n, S] the tokens behind the first `prompt`."""
        assert texts is not None, "the plain model overflows"
        lm, run = self.lm, self.run
        responses, fires, losses = [], [], []
        for ids in texts.to(lm.device).split(TEXTS_AT_ONCE):
            with capture(lm.model, run.inputs, stop=False) as captured:
                logits = lm.model(input_ids=ids, use_cache=False).logits[:, prompt - 1 : -1]
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, prompt:].flatten(), reduction="none"
            )
            losses.append(loss.view(len(ids), -1).mean(1).cpu())
            rows = {name: a[:, prompt:].flatten(0, 1) for name, a in captured.activations.items()}
            codes: SparseCodes = run.model.encode(joined(rows, run.inputs).to(run.model.dictionary.W))
            values = codes.at(self.latent.to(codes.values.device)).view(len(ids), -1).cpu()
            responses.append(values.mean(1) / self.maximum)
            fires.append((values > 0).any(1))
        first = lm.tokenizer.decode(texts[0, prompt:], skip_special_tokens=True)
        return Reading(torch.cat(responses), torch.cat(fires), torch.cat(losses), first)
