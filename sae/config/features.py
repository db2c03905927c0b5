"""Settings of the commands that look at a run's latents: features, explain, steer. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sae.config.fields import (
    Count,
    Limited,
    NonNegative,
    Positive,
    Resamples,
    WholeNumber,
    as_place,
    check,
    refuse_ignored,
)
from sae.config.run import Device


@dataclass(frozen=True, kw_only=True)
class CollectConfig(Limited):
    """One pass over a corpus, or over a run's images, that collects every latent's statistics and examples."""

    dataset: str | None = None
    """Data set to read; by default the one the run was trained on."""
    text_field: str | None = None
    """Column of that data set to read, as in `sae train`."""
    split: Literal["train", "heldout", "all"] = "train"
    """Which documents: those for training, those held out, or all."""
    store: str | Path | None = None
    """Read stored activations of the run's sites from this folder or URL instead of harvesting text."""
    tokens: Count = 262_144
    """Tokens to read, in whole forward passes (special and sink tokens count, but are left out), or rows of images."""
    save_every: NonNegative = 60.0
    """Seconds, at least, between two saves of what was collected so far."""
    resume: bool = False
    """Resume from the last save; with more --tokens a finished pass is extended."""
    seed: WholeNumber = 0
    """Seed of the random examples."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "store", as_place(self.store))
        if self.store is not None:
            why = f"--store {self.store} is read instead of text"
            refuse_ignored(self, dict.fromkeys(("dataset", "text_field", "split"), why))


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Limited):
    """How the latents of a run are named."""

    latents: tuple[int, ...] = ()
    """Latents to name; by default all that fired while features were collected."""
    again: bool = False
    """Also name latents that already have a name for these weights."""
    explainer: Literal["rules", "local", "openai"] = "rules"
    """rules (no model), local (a language model on this machine), openai (an OpenAI-compatible endpoint)."""
    explainer_model: str | None = None
    """The explainer: a hub id or folder for local, the model's name there for openai."""
    endpoint: str | None = None
    """Address of the endpoint, such as http://127.0.0.1:8000/v1; examples are sent there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    examples: Count = 16
    """Examples of a latent to show the explainer."""
    judged: Count = 10
    """Held-out texts on which the latent fires, and as many on which it does not, to judge the explainer's name."""
    seed: WholeNumber = 0
    """Seed of the bootstrap, the control and the draws of texts."""
    device: Device = "auto"
    """Where to run a local explainer: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explainer == "openai":
            check(bool(self.endpoint), "endpoint", self.endpoint, "an address, for --explainer openai")
        else:
            check(self.endpoint is None, "endpoint", self.endpoint, "none, unless --explainer openai is given")
        if self.explainer == "rules":
            remedy = "none, unless --explainer local or openai is given"
            check(self.explainer_model is None, "explainer_model", self.explainer_model, remedy)
        else:
            remedy = f"a model, for --explainer {self.explainer}"
            check(bool(self.explainer_model), "explainer_model", self.explainer_model, remedy)
        readers = {"examples": "local, openai", "judged": "local, openai", "key_variable": "openai", "device": "local"}
        ignored = {
            name: f"applies to --explainer {explainers}, not to {self.explainer}"
            for name, explainers in readers.items()
            if self.explainer not in explainers
        }
        refuse_ignored(self, ignored)


@dataclass(frozen=True, kw_only=True)
class SteerConfig(Limited):
    """Which latents to steer, how, and what to generate."""

    latent: tuple[int, ...]
    """Latents, one or several."""
    scale: tuple[float, ...] = (1.0,)
    """Strength, one for all latents or one each, in units of the latent's largest collected activation."""
    mode: Literal["add", "set", "ablate"] = "add"
    """add (the atom times the strength), set (the latent takes that value), ablate (it takes none)."""
    absolute: bool = False
    """Read --scale in units of the activation itself; needs no collected features."""
    prompt: str
    """Beginning of the text; of a run on chats also messages as JSON: '[{"role": "user", "content": "Hi"}]'."""
    where: str = "every"
    """every (token), generated (tokens alone), or positions such as 3,4,5 (BOS is 0)."""
    steer_bos: bool = False
    """Steer BOS too, which models use as an attention sink."""
    tokens: Count = 48
    """Tokens to generate."""
    temperature: NonNegative = 0.0
    """0 is greedy; above, tokens are drawn with the seed."""
    seed: WholeNumber = 0
    """Seed of the draws, the same for the plain and the steered text."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.latent) >= 1, "latent", self.latent, "at least one latent")
        check(len(self.scale) in (1, len(self.latent)), "scale", self.scale, "one number, or one a latent")
        ignored: dict[str, str] = {}
        if self.mode == "ablate":
            ignored |= dict.fromkeys(
                ("scale", "absolute"), "applies to --mode add and set; ablate removes the whole latent"
            )
        if self.temperature == 0:
            ignored["seed"] = "--temperature 0 draws nothing"
        if self.where != "every":
            ignored["steer_bos"] = f"--where {self.where} lists the tokens; BOS is position 0"
        refuse_ignored(self, ignored)


@dataclass(frozen=True, kw_only=True)
class SteerMeasureConfig(Limited):
    """How steering with latents is measured."""

    latent: tuple[int, ...]
    """Latents, one or several, each measured by itself."""
    doses: tuple[Positive, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Strengths, in units of the latent's largest collected activation."""
    prompts: Count = 24
    """Held-out documents whose beginnings are continued."""
    prompt_tokens: Count = 12
    """Tokens of each beginning."""
    tokens: Count = 32
    """Tokens to generate after each."""
    resamples: Resamples = 1000
    """Bootstrap resamples over prompts, for the 95% intervals."""
    seed: WholeNumber = 0
    """Seed of the generated texts, the random latents and the bootstrap."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.latent) >= 1, "latent", self.latent, "at least one latent")
        check(len(set(self.latent)) == len(self.latent), "latent", self.latent, "each latent once")
        check(len(self.doses) >= 1, "doses", self.doses, "at least one strength")
        check(self.prompts >= 2, "prompts", self.prompts, "at least 2, between which intervals are taken")
        object.__setattr__(self, "doses", tuple(sorted(set(self.doses))))
