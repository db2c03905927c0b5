"""The activation stream: packed contexts through the model, one row a token, in the order of the data set.

    harvest = Harvest(lm, sites, documents, config.harvest)
    for step in harvest.batches():
        step.rows.activations["resid_post.9"]        # [n, d]
        step.rows.kind                               # ORDINARY, BOS, SPECIAL, SINK or OTHER_ROLE
        harvest.trained_on(step.rows)                # the rows that an autoencoder is trained on

Which kind a token is, and which kinds are left out of training, is decided here and nowhere else.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.config import HarvestConfig
from sae.data.documents import DataError, Documents
from sae.data.isolation import Isolation
from sae.data.packing import BEGINNING, Contexts, Cursor, pack, padding_token
from sae.harvest.attention import choose_attention
from sae.harvest.checks import check_ids, check_length
from sae.harvest.finite import check_finite, name_of
from sae.harvest.first_pass import PERCENTILES, FirstPass, measure
from sae.harvest.forward import Forward
from sae.harvest.kinds import BOS, KINDS, ORDINARY, OTHER_ROLE, SINK, SPECIAL, kinds_of, with_sinks
from sae.harvest.language_model import LanguageModel
from sae.harvest.room import find_room
from sae.harvest.rows import Rows
from sae.harvest.sites import Site
from sae.harvest.traits import embedding_rows

__all__ = [
    "BOS",
    "KINDS",
    "ORDINARY",
    "OTHER_ROLE",
    "PERCENTILES",
    "SINK",
    "SPECIAL",
    "FirstPass",
    "Harvest",
    "Harvested",
    "prepared",
]


class Harvested(NamedTuple):
    """The result of one forward pass."""

    rows: Rows
    """Every token that is not padding; activations on the model's device, in its precision."""
    contexts: Contexts
    """The tokens that went in."""
    begin: Cursor
    """Where these contexts begin in the data set."""


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
        tell: receives a line where memory is too small, and one that says what --contexts auto is; by default they go
            to stderr.
        spare: bytes of the device that --contexts auto leaves free, for what is allocated later.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[Site],
        documents: Documents,
        config: HarvestConfig,
        norm_limits: Mapping[str, float] | None = None,
        tell: Callable[[str], None] | None = None,
        spare: int = 0,
    ) -> None:
        self.lm, self.sites, self.config = lm, list(sites), config
        is_data_set = isinstance(documents, Documents)
        self.documents = prepared(documents, lm.tokenizer, lm.model, config) if is_data_set else documents
        self.attention = choose_attention(lm.model, config.context, config.attention)
        tell = tell or partial(print, file=sys.stderr)
        self.forward = Forward(lm.model, self.attention, context=config.context, tell=tell)
        self._first = torch.tensor(lm.beginning, dtype=torch.int64)
        self._special = torch.tensor(sorted(lm.traits.special), dtype=torch.int64)
        self._norm_limits = norm_limits
        self._reads_context = False
        if config.contexts == "auto":
            self._check_length()
            room = find_room(self.forward, self.sites, vocabulary=embedding_rows(lm.model) or 2, spare=spare)
            tell(room.line())
            self.config = dataclasses.replace(config, contexts=room.contexts)
        self.counts: Counter[str] = Counter()
        """Tokens harvested so far, by the name of their kind."""

    @property
    def isolation(self) -> Isolation:
        """What the model's inputs need so that documents are kept apart."""
        return self.attention.isolation

    @property
    def norm_limits(self) -> Mapping[str, float]:
        """Site name -> the norm over which a token counts as a sink."""
        return self.first_pass.norm_limits if self._norm_limits is None else self._norm_limits

    def use_limits(self, limits: Mapping[str, float]) -> None:
        """Tell sinks by these limits: site name -> norm."""
        self._norm_limits = limits

    @property
    def contexts_in_a_pass(self) -> int:
        """Contexts of a forward pass."""
        contexts = self.config.contexts
        assert contexts != "auto", "settled when the harvest was made"
        return contexts

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
        check_finite(self.lm, self.forward, self.sites, contexts, rows.activations)
        return rows._replace(kind=with_sinks(rows.kind, rows.activations, self.norm_limits))

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
        self._check_length()
        check_ids(self.lm, torch.tensor([padding_token(self.lm.tokenizer)]), self.config.model, "it fills rows")
        check_ids(self.lm, self._first, self.config.model, "it begins every segment")
        packed = pack(
            self.documents,
            self.lm.tokenizer,
            context=self.config.context,
            batch=self.contexts_in_a_pass,
            beginning=self.lm.beginning,
            start=start,
            isolate="pad" if self.isolation == "pad" else "pack",
        )
        return self._checked(packed)

    def _check_length(self) -> None:
        if not self._reads_context:
            check_length(self.lm, self.config.context, self.config.model, self.sites)
            self._reads_context = True

    def _checked(self, packed: Iterator[Contexts]) -> Iterator[Contexts]:
        for contexts in packed:
            check_ids(self.lm, contexts.tokens, self.config.model, "it is in the text")
            yield contexts

    def inputs(self, contexts: Contexts) -> dict[str, Any]:
        """Keyword arguments of the model's forward for these contexts, documents kept apart."""
        return self.forward.inputs(contexts)

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
        return with_sinks(self._kinds_of_tokens(token, wanted), activations, self.norm_limits)

    def _kinds_of_tokens(self, token: Tensor, wanted: Tensor | None) -> Tensor:
        return kinds_of(token, self._first, self._special, wanted, keep_special=self.config.keep_special)

    def _forward(self, contexts: Contexts, captured: Mapping[str, Tensor] | None = None) -> Rows:
        """Rows of every token that is not padding, not checked and sinks not told apart yet."""
        real = (contexts.document >= 0).flatten().nonzero().squeeze(1)
        captured = self.forward.captured(contexts, self.sites) if captured is None else captured
        activations = {name: a.flatten(0, 1) for name, a in captured.items()}
        if len(real) < contexts.document.numel():
            activations = {name: a[real.to(a.device)] for name, a in activations.items()}
        wanted = self.wanted(contexts)
        kind = self._kinds_of_tokens(contexts.tokens.flatten()[real], None if wanted is None else wanted[real])
        columns = (contexts.tokens, contexts.document, contexts.position, contexts.start)
        token, document, position, start = (column.flatten()[real] for column in columns)
        return Rows(activations, token.int(), document, position.int(), start.int(), kind)

    def name_of(self, token: Tensor, document: Tensor, row: int) -> str:
        """The document of a row, for people, from the columns `token` and `document` [n]."""
        return name_of(self.lm.tokenizer, token, document, row)

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
            check_finite(self.lm, self.forward, self.sites, contexts, rows.activations)
            if (rows.kind == ORDINARY).any():
                return rows
        raise DataError("the data set gave no token to train on")

    def _measured(self, rows: Rows) -> FirstPass:
        """Norms and precision of rows at this harvest's sites."""
        # a limit on ordinary tokens does not bound the special ones
        return measure(rows, self.trained, max_norm=self.config.max_norm, bounded=not self.config.keep_special)
