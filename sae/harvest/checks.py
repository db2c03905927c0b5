"""What a model cannot read, found before a harvest: ids without a row in its embedding, contexts that are too long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae.base.finite import all_finite
from sae.harvest.hooks import harvest_forward
from sae.harvest.language_model import LanguageModel, ModelError
from sae.harvest.sites import Site, SiteError
from sae.harvest.traits import refusal, too_long, unusable

START = 8  # tokens that every model reads


def check_ids(lm: LanguageModel, ids: Tensor, name: str, where: str) -> None:
    """Refuse token ids that the embedding has no row for (ModelError).

    Args:
        name: the model, as the user gave it.
        where: how the tokens come about, such as "it is in the text".
    """
    if (token := unusable(ids, lm.traits.embeddings)) is not None:
        raise ModelError(refusal(lm.tokenizer, token, lm.traits.embeddings, name=name, where=where))


def check_length(lm: LanguageModel, context: int, name: str, sites: Sequence[Site]) -> None:
    """Refuse contexts that the model cannot read (ModelError), by its traits and by one forward of a whole context.

    A config need not state a limit, and in packed documents late positions may first occur in the middle of a run.
    """
    if problem := too_long(lm.traits, context, name):
        raise ModelError(problem)
    words = lm.traits.embeddings or len(lm.tokenizer)
    draw = torch.Generator().manual_seed(0)
    # from the middle of the vocabulary: special tokens live at its ends
    tokens = torch.randint(words // 4, max(words // 2, words // 4 + 1), (1, context), generator=draw)
    problem = f"--context {context}: {name} cannot read that many tokens in a row"
    try:
        whole, start = (
            harvest_forward(lm.model, {"input_ids": ids.to(lm.device)}, sites) for ids in (tokens, tokens[:, :START])
        )
    except SiteError:
        raise
    except Exception as error:  # forwards beyond the last position raise many types
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{problem} ({said[:300]}); choose a lower --context") from error
    # if the start is not finite either, the length is not the reason: `check_finite` names the document
    if all(map(all_finite, start.values())) and not all(map(all_finite, whole.values())):
        raise ModelError(f"{problem}: its activations are not finite then; choose a lower --context")
