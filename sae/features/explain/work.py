"""The work of `sae explain`: what is missing is named, then scored; before an endpoint is asked, that is estimated.

work = Work(store, config, Models(config), stop, progress, hint)
work.name(latents)
work.score(latents)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from sae.base.progress import Progress, StopSignal
from sae.config import ExplainConfig
from sae.features.explain.endpoint_scorer import grouped, prompt_of
from sae.features.explain.examples import Pool
from sae.features.explain.models import Estimate, Models, estimate
from sae.features.explain.naming import token_groups
from sae.features.explain.naming_pass import name_batch, prompt_for
from sae.features.explain.questions import Name
from sae.features.explain.scan import Scan, read_scan
from sae.features.explain.scoring_pass import ScoringPass, is_scored, judgeable
from sae.features.explain.texts import TextSource
from sae.features.store.keys import FeatureError
from sae.features.store.store import FeatureStore
from sae.harvest.language_model import ModelError

BATCH = {"rules": 128, "local": 1, "endpoint": 32}
"""Latents between two saves, by explainer; a control gets its rule from the same batch."""
SAMPLED = 16  # latents from which an estimate is made
TYPICAL = "a description of about fifteen words as models are asked to give it in their answers"


class Work:
    """One run of the command.

    Args:
        store: collected features.
        config: which latents, who explains and who judges.
        models: the models of `config`.
        stop: ends the work between two latents.
        progress: shows it.
        hint: how to continue after a stop.
    """

    def __init__(
        self,
        store: FeatureStore,
        config: ExplainConfig,
        models: Models,
        stop: StopSignal,
        progress: Progress,
        hint: str,
    ) -> None:
        self.store, self.config, self.models = store, config, models
        self.stop, self.progress, self.hint = stop, progress, hint
        self._announced = False

    def name(self, wanted: Sequence[int]) -> None:
        """Name the latents that have no name by this method."""
        left = self._unnamed(wanted)
        if not left:
            return
        self._announce(wanted)
        size = BATCH[self.config.explainer]
        pool = self.pool
        with self.progress.bar("Naming", len(wanted), "latents") as bar:
            bar.skip(len(wanted) - len(left))
            for begin in range(0, len(left), size):
                batch = left[begin : begin + size]
                self.store.annotations.set_names(name_batch(pool, batch, self.config, self.models))
                bar.advance(len(batch))
                self.stop.check(self.hint)

    def score(self, wanted: Sequence[int]) -> None:
        """Score the names that this scorer can judge and has not judged by all measures."""
        if not self.config.measures:
            return
        names = judgeable(self.store.annotations.names(), words=self.config.judge != "rules")
        left = self._unscored(wanted, names)
        if not left:
            return
        self._announce(wanted)
        scoring = self._scoring(names)
        with self.progress.bar("Scoring", len(wanted), "latents") as bar:
            bar.skip(len(wanted) - len(left))
            scoring.work(left, bar, self.stop, self.hint)

    def estimate(self, wanted: Sequence[int]) -> Estimate:
        """What an endpoint would be asked for what is left to do, from a sample of the latents."""
        total = Estimate(0, 0, 0)
        unnamed = self._unnamed(wanted)
        if self.config.explainer == "endpoint" and unnamed:
            shown = _sample(unnamed)
            prompts = [prompt_for(self.pool, latent, self.pool.examples(latent), self.config) for latent in shown]
            total = total.plus(estimate(prompts, len(unnamed) / len(shown)))
        if self.config.measures and self.config.judge == "endpoint":
            unknown = {latent: Name(f"{TYPICAL} {latent}") for latent in unnamed}
            names = unknown | judgeable(self.store.annotations.names(), words=True)
            left = self._unscored(wanted, names)
            scoring = self._scoring(names)
            shown = _sample(left)
            prompts = []
            for latent in shown:
                questions = scoring.asked(latent).questions
                prompts += [prompt_of([questions[n] for n in group]) for group in grouped(questions)]
            if shown:
                total = total.plus(estimate(prompts, len(left) / len(shown)))
        return total

    @cached_property
    def pool(self) -> Pool:
        """The examples of all latents, read when they are first needed."""
        self.progress.say(f"Reading the examples of {self.store.width:,} latents")
        return open_pool(self.store, self.progress.say)

    @cached_property
    def scan(self) -> Scan:
        """Held-out text with exact codes, read when it is first needed."""
        limit = self.config.score_tokens
        with self.progress.bar("Reading the texts to score on", limit, "tokens") as bar:

            def advance(tokens: int) -> None:
                bar.advance(tokens)
                self.stop.check(self.hint)

            return read_scan(self.store, self.pool.held_out, tokens=limit, device=self.config.device, advance=advance)

    def _scoring(self, names: Mapping[int, Name]) -> ScoringPass:
        source = TextSource(self.scan, self.store, self.pool.neighbours)
        scorer = self.models.scorer(self.pool, self.scan)
        return ScoringPass(self.store.annotations, source, names, scorer, self.config)

    def _unnamed(self, wanted: Sequence[int]) -> list[int]:
        names = {} if self.config.again else self.store.annotations.names()
        # a model's name replaces a rule's, and not the other way round
        method = self.models.method
        done = {latent for latent, name in names.items() if method in ("rules", name["method"])}
        return [latent for latent in wanted if latent not in done]

    def _unscored(self, wanted: Sequence[int], names: Mapping[int, Name]) -> list[int]:
        scores = {} if self.config.again else self.store.annotations.scores()
        known = [latent for latent in wanted if latent in names]
        return [i for i in known if not is_scored(scores.get(i, {}), names[i], self.models.scorer_name, self.config)]

    def _announce(self, wanted: Sequence[int]) -> None:
        """Say once, before the first question, what an endpoint will be asked; ConfigError where that is too much."""
        if self._announced or "endpoint" not in (self.config.explainer, self.config.judge):
            return
        self._announced = True
        needed = self.estimate(wanted)
        cost = needed.cost(self.config.price)
        priced = "" if cost is None else f", {cost:,.2f} at --price"
        self.progress.say(
            f"About {needed.questions:,} questions to {self.config.endpoint}: {needed.input_tokens:,} tokens to read, "
            f"at most {needed.output_tokens:,} to write{priced}"
        )
        needed.check(self.config.most_tokens)


def open_pool(store: FeatureStore, say: Callable[[str], None]) -> Pool:
    """All latents' examples, with groups of similar tokens where the language model has output vectors of tokens."""
    groups: dict[int, str] = {}
    try:
        vectors = store.lens.unembedding()
        ids = np.unique(np.concatenate([store.tokens(d) for (d,) in store.query("SELECT id FROM documents")]))
        groups = token_groups(vectors, ids[ids >= 0].tolist(), store.vocabulary.name)
    except (FeatureError, ModelError) as error:
        say(f"Names are made without groups of similar tokens: {error}")
    return Pool(store, nearest_atoms(store.lens.atoms()), groups)


def nearest_atoms(atoms: torch.Tensor, count: int = 10) -> np.ndarray:
    """The latents whose atoms (unit length, [F, d]) have the largest cosine with each one's, int64 [F, count]."""
    nearest = []
    for rows in torch.arange(len(atoms)).split(2048):
        cosines = atoms[rows] @ atoms.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(cosines.topk(min(count, len(atoms) - 1), dim=1).indices)
    return torch.cat(nearest).numpy()


def _sample(latents: Sequence[int]) -> list[int]:
    """A few of them, evenly spread."""
    return list(latents[:: -(-len(latents) // SAMPLED)]) if latents else []
