"""Activations that are not finite are refused with the site, the document and a remedy.

check_finite(lm, forward, sites, contexts, activations)        # after every forward pass
name_of(lm.tokenizer, token, document, row=12)                 # 'document 20 ("Zebras live in herds...")'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sae.base.finite import all_finite, not_finite
from sae.data.packing import Contexts
from sae.harvest.forward import Forward
from sae.harvest.language_model import LanguageModel
from sae.harvest.rows import ActivationError
from sae.harvest.sites import Site

FIRST_TOKENS = 12  # tokens of a document that an error message shows
REMEDIES = {
    "float16": "try --precision bfloat16, which reaches as far as float32 in as much memory",
    "bfloat16": "try --precision float32",
    "float32": "no precision helps: take that document out, try a lower --context, or fetch the weights anew",
}
"""Precision of the model -> the remedy where its activations are not finite."""


def check_finite(
    lm: LanguageModel,
    forward: Forward,
    sites: Sequence[Site],
    contexts: Contexts,
    activations: Mapping[str, Tensor],
) -> None:
    """Refuse activations, site -> [n, d], that are not finite.

    Args:
        sites: all that a pass captures, with which documents are tried one by one.
        contexts: the tokens; n of them are not padding.

    Raises:
        ActivationError: names the site, the document, and a remedy for the model's precision.
    """
    for site, a in activations.items():
        if all_finite(a):
            continue
        real = (contexts.document >= 0).flatten()
        token, document = contexts.tokens.flatten()[real], contexts.document.flatten()[real]
        bad = not_finite(a).cpu()
        number = _culprit(forward, sites, contexts, document[bad].unique().tolist())
        row = int((document == number).nonzero()[0])
        precision = lm.provenance["precision"]
        raise ActivationError(
            f"site {site}: the model's activations are not finite in {precision} in "
            f"{name_of(lm.tokenizer, token, document, row)}; {REMEDIES[precision]}"
        )


def _culprit(forward: Forward, sites: Sequence[Site], contexts: Contexts, numbers: list[int]) -> int:
    """The first of some documents whose activations are not finite even when it is alone in its context.

    A mask multiplies by zero, and zero times infinity is NaN: one document can spoil its neighbours in the context.
    """
    for number in numbers if len(numbers) > 1 else ():
        for context in (contexts.document == number).any(dim=1).nonzero().squeeze(1).tolist():
            columns = contexts.document[context] == number
            alone = contexts._replace(
                **{name: getattr(contexts, name)[context, columns][None] for name in ("tokens", "document", "position")}
            )
            if not all(all_finite(a) for a in forward.whole(alone, sites).values()):
                return number
    return numbers[0]


def name_of(tokenizer: Any, token: Tensor, document: Tensor, row: int) -> str:
    """A row's document, for people: its number in the data set, and its first words among these rows.

    Args:
        token, document: of the rows, [n].
    """
    number = int(document[row])
    first = token[document == number][:FIRST_TOKENS].tolist()
    words = " ".join(str(tokenizer.decode(first, skip_special_tokens=True)).split())
    return f'document {number} ("{words}...")'
