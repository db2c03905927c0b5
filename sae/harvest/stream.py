"""The activation stream: packed contexts through the model, one row a token, in the order of the data set.

    harvest = Harvest(lm, sites, documents, config.harvest)
    for step in harvest.batches():
        step.rows.activations["resid_post.9"]        # [n, d]
        step.rows.kind                               # ORDINARY, BOS, SPECIAL, SINK or OTHER_ROLE
        harvest.trained_on(step.rows)                # the rows that an autoencoder is trained on

The kinds of tokens, and which of them are left out of training, are decided here and nowhere else.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.config import HarvestConfig
from sae.data.documents import DataError, Documents
from sae.data.isolation import Isolation, choose_isolation, model_inputs
from sae.data.packing import BEGINNING, Contexts, Cursor, pack, padding_token
from sae.harvest.checks import check_ids, check_length
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel
from sae.harvest.precision import Choice, Kept, choose_precision
from sae.harvest.rows import ActivationError, Rows, all_finite
from sae.harvest.sites import Site
from sae.harvest.traits import embedding_rows

ORDINARY, BOS, SPECIAL, SINK, OTHER_ROLE = range(5)
KINDS = ("ordinary", "bos", "special", "sink", "other_role")
FIRST_TOKENS = 12  # tokens of a document that an error message shows
_REMEDIES = {
    "float16": "try --precision bfloat16, which reaches as far as float32 in as much memory",
    "bfloat16": "try --precision float32",
    "float32": "no precision helps: take that document out, try a lower --context, or fetch the weights anew",
}
"""Precision of the model -> the remedy where its activations are not finite."""
PERCENTILES = (1, 25, 50, 75, 99, 100)


class Harvested(NamedTuple):
    """The result of one forward pass."""

    rows: Rows
    """Every token that is not padding; activations on the model's device, in its precision."""
    contexts: Contexts
    """The tokens that went in."""
    begin: Cursor
    """Where these contexts begin in the data set."""


class FirstPass(NamedTuple):
    """What the first forward pass over the data shows."""

    norm_limits: dict[str, float]
    """Site name -> the norm over which a token counts as a sink; empty with `max_norm` 0."""
    norm_percentiles: dict[str, list[float]]
    """Site name -> norms of ordinary tokens at `PERCENTILES`, sinks included."""
    precision: Choice
    """The precision in which activations should wait."""


def prepared(documents: Documents, tokenizer: Any, model: Any, config: HarvestConfig) -> Documents:
    """The documents as this model reads them; `model` may be its skeleton.

    Raises:
        DataError: see `Documents.with_tokenizer`.
    """
    return documents.with_tokenizer(tokenizer, ids_below=embedding_rows(model), roles=config.roles)


class Harvest:
    """Activations of some sites over the documents, as a stream that can start at any cursor.

    Args:
        documents: a data set, or anything that iterates as `pack` needs it and holds plain text.
        norm_limits: site name -> the norm over which a token counts as a sink, as a finished run records them. By
            default `max_norm` times the median norm of the first forward pass from the beginning of the data, so that
            limits do not depend on where a stream starts.
        tell: receives a line where memory is too small; by default it goes to stderr.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        documents: Documents,
        config: HarvestConfig,
        norm_limits: Mapping[str, float] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.lm, self.sites, self.config = lm, list(sites), config
        is_data_set = isinstance(documents, Documents)
        self.documents = prepared(documents, lm.tokenizer, lm.model, config) if is_data_set else documents
        self.isolation: Isolation = choose_isolation(lm.model, config.context)
        self._first = torch.tensor(lm.beginning, dtype=torch.int64)
        self._special = torch.tensor(sorted(lm.traits.special), dtype=torch.int64)
        self._norm_limits = norm_limits
        self._tell = tell or partial(print, file=sys.stderr)
        self._at_once: int | None = None  # contexts in a forward pass, where a whole batch did not fit
        self._reads_context = False
        self.counts: Counter[str] = Counter()
        """Tokens harvested so far, by the name of their kind."""

    @property
    def norm_limits(self) -> Mapping[str, float]:
        """Site name -> the norm over which a token counts as a sink."""
        return self.first_pass.norm_limits if self._norm_limits is None else self._norm_limits

    def use_limits(self, limits: Mapping[str, float]) -> None:
        """Tell sinks by these limits: site name -> norm."""
        self._norm_limits = limits

    @property
    def kinds(self) -> dict[int, str]:
        """The kinds that this harvest tells apart, and their names."""
        return {kind: name for kind, name in enumerate(KINDS) if kind != OTHER_ROLE or self.config.roles is not None}

    def batches(self, start: Cursor = BEGINNING) -> Iterator[Harvested]:
        """Forward passes of `contexts` contexts each, from `start` to the end of the documents."""
        _ = self.norm_limits  # measured before the stream begins; raises where no token can be trained on
        for harvested in self.passes(start):
            yield self.seen(harvested)

    def passes(self, start: Cursor = BEGINNING) -> Iterator[Harvested]:
        """The forward passes of `batches` as they come from the model, for `seen` of this harvest or of its views."""
        begin = start
        for contexts in self.contexts(start):
            yield Harvested(self._forward(contexts), contexts, begin)
            begin = contexts.next

    def seen(self, harvested: Harvested) -> Harvested:
        """A forward pass at this harvest's sites: checked, its sinks told apart, its tokens counted.

        Raises:
            ActivationError: see `check_finite`.
        """
        rows = self._sorted(harvested.contexts, harvested.rows)
        self.counts.update({name: int((rows.kind == kind).sum()) for kind, name in self.kinds.items()})
        return harvested._replace(rows=rows)

    def rows(self, contexts: Contexts, captured: Mapping[str, Tensor] | None = None) -> Rows:
        """One forward pass: the rows of every token that is not padding.

        Args:
            contexts: the tokens.
            captured: site name -> activations [B, S, d] of a pass over them that was made already.

        Raises:
            ActivationError: see `check_finite`.
        """
        return self._sorted(contexts, self._forward(contexts, captured))

    def views(self, groups: Sequence[Sequence[Site]]) -> list[Harvest]:
        """For each group of these sites, the harvest of that group alone, to be fed from `passes` of this one.

        A token is a sink by the norms at a harvest's own sites: each view has the limits, the kinds and the choice of
        precision that it would have by itself. One forward pass is measured for all of them and this one.

        Raises:
            ActivationError, DataError: see `first_pass`.
        """
        rows = self._first_rows()
        self.first_pass = self._measured(rows)
        views = []
        for sites in groups:
            view = copy.copy(self)
            names = [site.name for site in sites]
            view.sites, view.counts = list(sites), Counter()
            view.first_pass = view._measured(rows.at(names))
            if self._norm_limits is not None:
                view._norm_limits = {name: limit for name, limit in self._norm_limits.items() if name in names}
            views.append(view)
        return views

    def _sorted(self, contexts: Contexts, rows: Rows) -> Rows:
        """Rows of a forward pass at this harvest's sites, checked, with their kinds."""
        rows = rows.at(site.name for site in self.sites)
        self.check_finite(contexts, (contexts.document >= 0).flatten().nonzero().squeeze(1), rows.activations)
        return rows._replace(kind=_with_sinks(rows.kind, rows.activations, self.norm_limits))

    def trained_on(self, rows: Rows) -> Rows:
        """The rows that belong in the training stream: ordinary tokens, and special ones with `keep_special`."""
        return rows.select(self.trained(rows.kind).nonzero().squeeze(1))

    def trained(self, kind: Tensor) -> Tensor:
        """Which kinds [n] belong in the training stream, bool [n]."""
        kept = kind == ORDINARY
        if self.config.keep_special:
            kept |= (kind == BOS) | (kind == SPECIAL)
        return kept

    def contexts(self, start: Cursor) -> Iterator[Contexts]:
        """The packed tokens of each forward pass from `start` on.

        Raises:
            ModelError: contexts are longer than the model reads, or a token has no row in its embedding.
        """
        if not self._reads_context:
            check_length(self.lm, self.config.context, self.config.model, self.sites)
            self._reads_context = True
        check_ids(self.lm, torch.tensor([padding_token(self.lm.tokenizer)]), self.config.model, "it fills rows")
        check_ids(self.lm, self._first, self.config.model, "it begins every segment")
        packed = pack(
            self.documents,
            self.lm.tokenizer,
            context=self.config.context,
            batch=self.config.contexts,
            beginning=self.lm.beginning,
            start=start,
            isolate="pad" if self.isolation == "pad" else "pack",
        )
        return self._checked(packed)

    def _checked(self, packed: Iterator[Contexts]) -> Iterator[Contexts]:
        for contexts in packed:
            check_ids(self.lm, contexts.tokens, self.config.model, "it is in the text")
            yield contexts

    def inputs(self, contexts: Contexts) -> dict[str, Any]:
        """Keyword arguments of the model's forward for these contexts, documents kept apart."""
        return model_inputs(self.lm.model, contexts, self.isolation)

    def wanted(self, contexts: Contexts) -> Tensor | None:
        """Whether each token is of a role that is trained on, bool [B * S] on the CPU; None where all roles are."""
        return None if self.config.roles is None else contexts.of_roles(self.config.roles).flatten()

    def token_kinds(self, token: Tensor, activations: dict[str, Tensor], wanted: Tensor | None = None) -> Tensor:
        """The kind of each token, int8 [n] on the CPU: ORDINARY, BOS, SPECIAL, SINK or OTHER_ROLE.

        Args:
            token: ids [n].
            activations: site -> [n, d].
            wanted: bool [n], whether a token is of a role that is trained on (see `wanted`); None where all are.
        """
        return _with_sinks(self._kinds_of_tokens(token, wanted), activations, self.norm_limits)

    def _kinds_of_tokens(self, token: Tensor, wanted: Tensor | None) -> Tensor:
        """Kinds int8 [n] by token and role alone, without sinks."""
        kind = torch.full(token.shape, ORDINARY, dtype=torch.int8)
        kind[torch.isin(token, self._special)] = SPECIAL
        kind[torch.isin(token, self._first)] = BOS
        if wanted is not None:
            # --keep-special keeps special tokens of the wanted roles alone; without it they are left out as special
            others = ~wanted & ((kind == ORDINARY) | (self.config.keep_special & (kind != BOS)))
            kind[others] = OTHER_ROLE
        return kind

    def _forward(self, contexts: Contexts, captured: Mapping[str, Tensor] | None = None) -> Rows:
        """Rows of every token that is not padding, not checked and sinks not told apart yet."""
        real = (contexts.document >= 0).flatten().nonzero().squeeze(1)
        captured = self._captured(contexts) if captured is None else captured
        activations = {name: a.flatten(0, 1) for name, a in captured.items()}
        if len(real) < contexts.document.numel():
            activations = {name: a[real.to(a.device)] for name, a in activations.items()}
        wanted = self.wanted(contexts)
        kind = self._kinds_of_tokens(contexts.tokens.flatten()[real], None if wanted is None else wanted[real])
        columns = (contexts.tokens, contexts.document, contexts.position, contexts.start)
        token, document, position, start = (column.flatten()[real] for column in columns)
        return Rows(activations, token.int(), document, position.int(), start.int(), kind)

    def _captured(self, contexts: Contexts) -> dict[str, Tensor]:
        """Site name -> activations [B, S, d]; in several forward passes where the device's memory is too small for one.

        The contexts of a batch do not see each other, so rows and their order stay the same.

        Raises:
            ActivationError: not even one context fits.
        """
        batch = len(contexts.tokens)
        while True:
            at_once = min(batch, self._at_once or batch)
            try:
                parts = [
                    harvest_forward(self.lm.model, self.inputs(contexts.part(i, i + at_once)), self.sites)
                    for i in range(0, batch, at_once)
                ]
                return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            except torch.OutOfMemoryError as error:
                if at_once == 1:
                    raise ActivationError(
                        f"out of memory in a forward pass over one context of {self.config.context} tokens; lower "
                        "--context, or --precision"
                    ) from error
                self._at_once = at_once // 2
                self._tell(f"Out of memory with {at_once} contexts in a forward pass: from now on {self._at_once}.")
            # outside the handler, where the failed pass's tensors are no longer referred to
            torch.cuda.empty_cache()

    def check_finite(self, contexts: Contexts, real: Tensor, activations: dict[str, Tensor]) -> None:
        """Refuse activations, site -> [n, d], that are not finite; `real` [n] are their tokens' indices in the batch.

        Raises:
            ActivationError: names the site, the document, and a remedy for the model's precision.
        """
        token, document = contexts.tokens.flatten()[real], contexts.document.flatten()[real]
        for site, a in activations.items():
            if all_finite(a):
                continue
            bad = (~torch.isfinite(a)).any(dim=1).cpu()
            number = self._culprit(contexts, document[bad].unique().tolist())
            row = int((document == number).nonzero()[0])
            precision = self.lm.provenance["precision"]
            raise ActivationError(
                f"site {site}: the model's activations are not finite in {precision} in "
                f"{self.name_of(token, document, row)}; {_REMEDIES[precision]}"
            )

    def _culprit(self, contexts: Contexts, numbers: list[int]) -> int:
        """The first of some documents whose activations are not finite even when it is alone in its context.

        A mask multiplies by zero, and zero times infinity is NaN: one document can spoil its neighbours in the context.
        """
        for number in numbers if len(numbers) > 1 else ():
            for context in (contexts.document == number).any(dim=1).nonzero().squeeze(1).tolist():
                columns = contexts.document[context] == number
                alone = contexts._replace(
                    **{
                        name: getattr(contexts, name)[context, columns][None]
                        for name in ("tokens", "document", "position")
                    }
                )
                captured = harvest_forward(self.lm.model, self.inputs(alone), self.sites)
                if not all(all_finite(a) for a in captured.values()):
                    return number
        return numbers[0]

    def name_of(self, token: Tensor, document: Tensor, row: int) -> str:
        """A row's document, for people: its number in the data set, and its first words among these rows."""
        number = int(document[row])
        first = token[document == number][:FIRST_TOKENS].tolist()
        words = " ".join(str(self.lm.tokenizer.decode(first, skip_special_tokens=True)).split())
        return f'document {number} ("{words}...")'

    @cached_property
    def first_pass(self) -> FirstPass:
        """Norms and precision, measured on the first forward pass over the data that holds an ordinary token.

        Raises:
            ActivationError: see `check_finite`.
            DataError: the data set has no ordinary token.
        """
        return self._measured(self._first_rows())

    def _first_rows(self) -> Rows:
        """Rows of the first forward pass that holds an ordinary token."""
        for contexts in self.contexts(BEGINNING):
            rows = self._forward(contexts)
            real = (contexts.document >= 0).flatten().nonzero().squeeze(1)
            self.check_finite(contexts, real, rows.activations)
            if (rows.kind == ORDINARY).any():
                return rows
        raise DataError("the data set gave no token to train on")

    def _measured(self, rows: Rows) -> FirstPass:
        """Norms and precision of rows at this harvest's sites."""
        ordinary = rows.kind == ORDINARY
        limits: dict[str, float] = {}
        percentiles: dict[str, list[float]] = {}
        for name, a in rows.activations.items():
            norms = a[ordinary.to(a.device)].float().norm(dim=1).cpu()
            # not torch.quantile, which is limited to 2^24 values
            percentiles[name] = np.percentile(norms.numpy(), PERCENTILES).tolist()
            if self.config.max_norm:
                limits[name] = self.config.max_norm * norms.median().item()
        trained = self.trained(_with_sinks(rows.kind, rows.activations, limits))
        # a limit on ordinary tokens does not bound the special ones
        bounds = {} if self.config.keep_special else limits
        kept = {name: Kept(a[trained.to(a.device)], bounds.get(name)) for name, a in rows.activations.items()}
        return FirstPass(limits, percentiles, choose_precision(kept))


def _with_sinks(kind: Tensor, activations: Mapping[str, Tensor], limits: Mapping[str, float]) -> Tensor:
    """The kinds [n] with SINK for ordinary tokens whose norm exceeds the limit at some site."""
    kind = kind.clone()
    for name, limit in limits.items():
        over = (activations[name].float().norm(dim=1) > limit).cpu()
        kind[over & (kind == ORDINARY)] = SINK
    return kind
