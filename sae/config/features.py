"""Settings of the commands that look at a run's latents: features, explain, steer. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

Explainer = Literal["rules", "local", "endpoint"]
MEASURES = ("detection", "fuzzing", "simulation")


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
    """How the latents of a run are named, and how their names are scored."""

    latents: tuple[int, ...] = ()
    """Latents to name; by default all that fired while features were collected."""
    again: bool = False
    """Also name and score latents that already have a name, or scores, for these weights."""
    explainer: Explainer = "rules"
    """rules (no model), local (a language model on this machine), endpoint (an OpenAI-compatible one)."""
    explainer_model: str | None = None
    """The explainer: a hub id or folder for local, the model's name there for endpoint."""
    score: tuple[str, ...] = ()
    """Score names on held-out texts by detection, fuzzing, simulation (commas); a model's names get two of them."""
    scorer: Explainer | None = None
    """Who judges the names by the texts: rules, local or endpoint; by default the explainer."""
    scorer_model: str | None = None
    """Model of the scorer; by default the explainer's."""
    judged: Count | None = None
    """Texts in which the latent fires, random ones and ones of near latents, each; by default 40, for a model 10."""
    score_tokens: Count = 131_072
    """Tokens of the collected text to read again, so that the silent texts are known to be silent."""
    endpoint: str | None = None
    """Address of the endpoint, such as http://127.0.0.1:8000/v1; examples are sent there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    at_once: Count = 8
    """Questions to the endpoint that are open at the same time."""
    rate: Positive | None = None
    """Most questions to the endpoint a minute; by default no limit."""
    price: tuple[NonNegative, NonNegative] | None = None
    """What a million tokens cost there, read and written, for the estimate."""
    most_tokens: Count | None = None
    """Refuse to begin where the endpoint is estimated to read and write more tokens than that."""
    estimate: bool = False
    """Only estimate what the endpoint would read and write, and ask nothing."""
    examples: Count = 16
    """Examples of a latent to show the explainer."""
    seed: WholeNumber = 0
    """Seed of the bootstrap, the control and the draws of texts."""
    device: Device = "auto"
    """Where to run local models: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = (part for given in self.score for part in given.split(","))
        object.__setattr__(self, "score", tuple(dict.fromkeys(part for part in parts if part)))
        for measure in self.score:
            check(measure in MEASURES, "score", measure, f"some of {', '.join(MEASURES)}")
        roles: dict[str, Explainer] = {"explainer": self.explainer}
        if self.measures:
            roles["scorer"] = self.judge
        if "endpoint" in roles.values():
            check(bool(self.endpoint), "endpoint", self.endpoint, "an address, for an endpoint")
        else:
            check(self.endpoint is None, "endpoint", self.endpoint, "none, unless the explainer or scorer is endpoint")
        self._check_models()
        refuse_ignored(self, self._ignored(roles))

    @property
    def measures(self) -> tuple[Any, ...]:
        """The measures by which names are scored; none where they are not."""
        return self.score or (() if self.explainer == "rules" else ("detection", "fuzzing"))

    @property
    def judge(self) -> Explainer:
        """The scorer."""
        return self.scorer or self.explainer

    @property
    def judge_model(self) -> str | None:
        """The scorer's model."""
        return self.scorer_model or (self.explainer_model if self.judge == self.explainer else None)

    def _check_models(self) -> None:
        if self.explainer == "rules":
            remedy = "none, unless --explainer local or endpoint is given"
            check(self.explainer_model is None, "explainer_model", self.explainer_model, remedy)
        else:
            remedy = f"a model, for --explainer {self.explainer}"
            check(bool(self.explainer_model), "explainer_model", self.explainer_model, remedy)
        if self.measures and self.judge == "rules":
            check(self.scorer_model is None, "scorer_model", self.scorer_model, "none, for --scorer rules")
        elif self.measures:
            check(bool(self.judge_model), "scorer_model", self.scorer_model, f"a model, for --scorer {self.judge}")

    def _ignored(self, roles: dict[str, Explainer]) -> dict[str, str]:
        """Settings that nothing reads, with the reason."""
        ignored = {}
        if self.explainer == "rules":
            ignored["examples"] = "applies to --explainer local, endpoint, not to rules"
        if not self.measures:
            for name in ("scorer", "scorer_model", "judged", "score_tokens", "device"):
                ignored[name] = "applies to --score"
        if "endpoint" not in roles.values():
            for name in ("key_variable", "at_once", "rate", "price", "most_tokens", "estimate"):
                ignored[name] = "applies to an endpoint, as --explainer or --scorer"
        return ignored


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
