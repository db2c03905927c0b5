"""The live activation stream: packed contexts through the model, one row a token, in the order of the data set.

    harvest = Harvest(lm, sites, documents, config.harvest)
    for step in harvest.batches():
        step.rows.activations["resid_post.9"]        # [n, d], ordinary tokens and the others
        step.rows.kind                               # which is which: ORDINARY, BOS, SPECIAL, SINK, OTHER_ROLE

What a token's kind is, and which kinds leave the training stream, is decided here and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.config import HarvestConfig
from sae.data.documents import DataError, Documents
from sae.data.isolation import Isolation, choose_isolation, model_inputs
from sae.data.packing import BEGINNING, Contexts, Cursor, pack, padding_token
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel, ModelError
from sae.harvest.precision import Choice, Kept, choose_precision
from sae.harvest.sites import Site, SiteError
from sae.harvest.traits import embedding_rows, refusal, too_long, unusable

ORDINARY, BOS, SPECIAL, SINK, OTHER_ROLE = range(5)
KINDS = ("ordinary", "bos", "special", "sink", "other_role")
FIRST_TOKENS = 12  # of a document, by which an error names it
START = 8  # tokens that every model reads
_REMEDIES = {
    "float16": "try --precision bfloat16, which reaches as far as float32 in as much memory",
    "bfloat16": "try --precision float32",
    "float32": "no precision helps: take that document out, try a lower --context, or fetch the weights anew",
}
"""Precision of the model -> what helps where its activations are not finite."""
PERCENTILES = (1, 25, 50, 75, 99, 100)


class ActivationError(ValueError):
    """Activations are not finite, or do not fit the precision they are kept in; names the site and the remedy."""


class Rows(NamedTuple):
    """Activations with what is known of each token; n rows, no padding."""

    activations: dict[str, Tensor]
    """Site name -> [n, d], on the model's device, in the model's precision."""
    token: Tensor
    """Token ids, int32 [n], on the CPU."""
    document: Tensor
    """Index of the document in the data set, int64 [n], on the CPU."""
    position: Tensor
    """Position in the document's segment, int32 [n], on the CPU."""
    kind: Tensor
    """ORDINARY, BOS, SPECIAL, SINK or OTHER_ROLE, int8 [n], on the CPU."""

    def select(self, keep: Tensor) -> Rows:
        """The rows whose indices are in `keep` (int64, CPU)."""
        return Rows(
            {name: a[keep.to(a.device, non_blocking=True)] for name, a in self.activations.items()},
            *(t[keep] for t in (self.token, self.document, self.position, self.kind)),
        )


class Harvested(NamedTuple):
    """What one forward pass gave."""

    rows: Rows
    """Every token that is not padding."""
    contexts: Contexts
    """The tokens that went in."""
    here: Cursor
    """Where these contexts begin in the data set."""


def prepared(documents: Documents, tokenizer: Any, model: Any, config: HarvestConfig) -> Documents:
    """The documents as this model reads them; `model` may be its skeleton.

    Raises:
        DataError: see `Documents.with_tokenizer`.
    """
    return documents.with_tokenizer(tokenizer, ids_below=embedding_rows(model), roles=config.roles)


class Harvest:
    """Activations of some sites over the documents, as a stream that can start at any cursor.

    The norm over which a token counts as a sink is `max_norm` times the median of the first forward pass from the
    beginning of the data, so that it does not depend on where a later stream starts.
    """

    def __init__(self, lm: LanguageModel, sites: Sequence[Site], documents: Documents, config: HarvestConfig) -> None:
        self.lm, self.sites, self.config = lm, list(sites), config
        # whatever iterates as `pack` wants it may stand for documents, and holds ready text
        is_set = isinstance(documents, Documents)
        self.documents = prepared(documents, lm.tokenizer, lm.model, config) if is_set else documents
        self.isolation: Isolation = choose_isolation(lm.model, config.context)
        self._first = torch.tensor(lm.beginning, dtype=torch.int64)
        self._special = torch.tensor(sorted(lm.traits.special), dtype=torch.int64)
        self.norm_limits: dict[str, float] | None = None
        self.norm_percentiles: dict[str, list[float]] = {}
        self.precision: Choice | None = None
        """In what activations should wait, by the first forward pass."""
        self._reads_context = False
        self.counts: Counter[str] = Counter()

    @property
    def kinds(self) -> dict[int, str]:
        """The kinds that this harvest tells apart, and their names."""
        return {kind: name for kind, name in enumerate(KINDS) if kind != OTHER_ROLE or self.config.roles is not None}

    def batches(self, start: Cursor = BEGINNING) -> Iterator[Harvested]:
        """Forward passes of `contexts` contexts each, from `start` to the end of the documents."""
        if self.norm_limits is None:
            self.measure_norms()
        here = start
        for contexts in self.contexts(start):
            rows = self._rows(contexts)
            self.counts.update({name: int((rows.kind == kind).sum()) for kind, name in self.kinds.items()})
            yield Harvested(rows, contexts, here)
            here = contexts.next

    def trained_on(self, rows: Rows) -> Rows:
        """The rows that belong in the training stream: ordinary tokens, and special ones with `keep_special`."""
        return rows.select(self._trained(rows.kind).nonzero().squeeze(1))

    def _trained(self, kind: Tensor) -> Tensor:
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
        if problem := too_long(self.lm.traits, self.config.context, self.config.model):
            raise ModelError(problem)
        self._check_ids(torch.tensor([padding_token(self.lm.tokenizer)]), "it fills rows")
        self._check_ids(self._first, "it begins every segment")
        self._check_length()
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
            self._check_ids(contexts.tokens, "it is in the text")
            yield contexts

    def _check_ids(self, ids: Tensor, where: str) -> None:
        rows = self.lm.traits.embeddings
        if (token := unusable(ids, rows)) is not None:
            raise ModelError(refusal(self.lm.tokenizer, token, rows, name=self.config.model, where=where))

    def _check_length(self) -> None:
        """Refuse contexts that the model cannot read, by one forward of a segment that fills a whole context.

        A config need not state a limit, and in packed documents late positions may first occur in the middle of a run.
        """
        if self._reads_context:
            return
        words = self.lm.traits.embeddings or len(self.lm.tokenizer)
        draw = torch.Generator().manual_seed(0)
        # from the middle of the vocabulary: special tokens live at its ends
        tokens = torch.randint(words // 4, max(words // 2, words // 4 + 1), (1, self.config.context), generator=draw)
        problem = f"--context {self.config.context}: {self.config.model} cannot read that many tokens in a row"
        try:
            whole, start = (
                harvest_forward(self.lm.model, {"input_ids": ids.to(self.lm.device)}, self.sites)
                for ids in (tokens, tokens[:, :START])
            )
        except SiteError:
            raise
        except Exception as error:  # what a forward raises beyond its last position has no common class
            said = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{problem} ({said[:300]}); choose a lower --context") from error
        # where the start is not finite either, the length is not the reason: `check_finite` names the document
        if all(map(_all_finite, start.values())) and not all(map(_all_finite, whole.values())):
            raise ModelError(f"{problem}: its activations are not finite then; choose a lower --context")
        self._reads_context = True

    def inputs(self, contexts: Contexts) -> dict[str, Any]:
        """Keyword arguments of the model's forward for these contexts, documents kept apart."""
        return model_inputs(self.lm.model, contexts, self.isolation)

    def wanted(self, contexts: Contexts) -> Tensor | None:
        """Whether each token is of a role that is trained on, bool [B * S] on the CPU; None where all roles are."""
        return None if self.config.roles is None else contexts.of_roles(self.config.roles).flatten()

    def token_kinds(self, token: Tensor, activations: dict[str, Tensor], wanted: Tensor | None = None) -> Tensor:
        """What each token is, int8 [n] on the CPU: ORDINARY, BOS, SPECIAL, SINK or OTHER_ROLE.

        Args:
            token: ids [n].
            activations: site -> [n, d].
            wanted: bool [n], whether a token is of a role that is trained on (see `wanted`); None where all are.
        """
        kind = torch.full(token.shape, ORDINARY, dtype=torch.int8)
        kind[torch.isin(token, self._special)] = SPECIAL
        kind[torch.isin(token, self._first)] = BOS
        if wanted is not None:
            # a special token stays one, but for --keep-special, which is to keep those of the wanted roles alone
            others = ~wanted & ((kind == ORDINARY) | (self.config.keep_special & (kind != BOS)))
            kind[others] = OTHER_ROLE
        for name, limit in (self.norm_limits or {}).items():
            sinks = (activations[name].float().norm(dim=1) > limit).cpu()
            kind[sinks & (kind == ORDINARY)] = SINK
        return kind

    def _forward(self, contexts: Contexts) -> tuple[dict[str, Tensor], Tensor]:
        """Activations of every token that is not padding, site -> [n, d], and where those tokens are in the batch."""
        real = (contexts.document >= 0).flatten().nonzero().squeeze(1)
        captured = harvest_forward(self.lm.model, self.inputs(contexts), self.sites)
        flat = {name: a.flatten(0, 1) for name, a in captured.items()}
        if len(real) < contexts.document.numel():
            flat = {name: a[real.to(a.device)] for name, a in flat.items()}
        self.check_finite(contexts, real, flat)
        return flat, real

    def check_finite(self, contexts: Contexts, real: Tensor, activations: dict[str, Tensor]) -> None:
        """Refuse activations, site -> [n, d], of the tokens at places `real` [n] of the batch that are not finite.

        Raises:
            ActivationError: names the site, the document, and what helps in the model's precision.
        """
        token, document = contexts.tokens.flatten()[real], contexts.document.flatten()[real]
        for site, a in activations.items():
            if _all_finite(a):
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
        """The first of some documents whose activations are not finite without the others around it.

        What is masked is multiplied by zero, and zero times infinity is no number: one document can spoil its context.
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
                if not all(_all_finite(a) for a in captured.values()):
                    return number
        return numbers[0]

    def name_of(self, token: Tensor, document: Tensor, row: int) -> str:
        """The document of a row for people: its number in the data set, and the first words of it among the rows."""
        number = int(document[row])
        first = token[document == number][:FIRST_TOKENS].tolist()
        words = " ".join(str(self.lm.tokenizer.decode(first, skip_special_tokens=True)).split())
        return f'document {number} ("{words}...")'

    def _rows(self, contexts: Contexts) -> Rows:
        activations, real = self._forward(contexts)
        token, wanted = contexts.tokens.flatten()[real], self.wanted(contexts)
        return Rows(
            activations,
            token.int(),
            contexts.document.flatten()[real],
            contexts.position.flatten()[real].int(),
            self.token_kinds(token, activations, None if wanted is None else wanted[real]),
        )

    def measure_norms(self) -> None:
        """Set `norm_limits`, `norm_percentiles` and `precision` from the first forward pass over the data.

        Raises:
            ActivationError: see `check_finite`.
            DataError: the data set has no ordinary token.
        """
        self.norm_limits = None
        for contexts in self.contexts(BEGINNING):
            activations, real = self._forward(contexts)
            wanted = self.wanted(contexts)
            wanted = None if wanted is None else wanted[real]
            token = contexts.tokens.flatten()[real]
            ordinary = self.token_kinds(token, activations, wanted) == ORDINARY
            if not ordinary.any():
                continue
            limits = {}
            for name, a in activations.items():
                norms = a[ordinary.to(a.device)].float().norm(dim=1).cpu()
                # not torch.quantile, which stops at 2^24 values
                self.norm_percentiles[name] = np.percentile(norms.numpy(), PERCENTILES).tolist()
                if self.config.max_norm:
                    limits[name] = self.config.max_norm * norms.median().item()
            self.norm_limits = limits
            kind = self.token_kinds(token, activations, wanted)
            self.precision = choose_precision({name: self._kept(name, a, kind) for name, a in activations.items()})
            return
        raise DataError("the data set gave no token to train on")

    def _kept(self, site: str, activations: Tensor, kind: Tensor) -> Kept:
        """The rows of a site that the training stream keeps; sinks are left out, but not among special tokens."""
        limit = None if self.config.keep_special else (self.norm_limits or {}).get(site)
        return Kept(activations[self._trained(kind).to(activations.device)], limit)


def _all_finite(activations: Tensor) -> bool:
    """Whether every entry is finite: one pass and one number, but where the sum is over float32's range."""
    return bool(torch.isfinite(activations.sum(dtype=torch.float32))) or bool(torch.isfinite(activations).all())
