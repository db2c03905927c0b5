"""What a person sees before a harvest: the data, their first documents and tokens, and which tokens are left out.

    progress.say(opening(documents, tokenizer, config.harvest))

A wrong column, a wrong template or a doubled BOS is visible here, before hours are spent on it.
"""

from __future__ import annotations

import itertools
import shutil
from typing import Any

from sae.config import HarvestConfig
from sae.data.documents import Documents
from sae.data.packing import pack

LINES, TOKENS, CHARACTERS = 3, 12, 400
"""Documents shown, tokens shown, and characters of a document that are looked at."""


def opening(
    documents: Documents,
    tokenizer: Any,
    config: HarvestConfig,
    *,
    beginning: tuple[int, ...] = (),
    width: int | None = None,
) -> str:
    """At most eight lines about the data; lines of text are cut to `width` columns, by default the terminal's.

    Args:
        documents: as the model reads them (see `sae.harvest.stream.prepared`).
        tokenizer: the model's.
        config: which tokens are left out.
        beginning: ids that begin every segment, once they are settled.
        width: columns of a line.

    Raises:
        DataError: the data cannot be read.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    lines = [f"Data: {documents.describe()}."]
    for document in itertools.islice(documents, LINES):
        text = document.text if document.ids is None else tokenizer.decode(document.ids[:CHARACTERS])
        if document.spans and not document.spans[0].role:
            text = text[document.spans[0].end :]  # without the template's text before every conversation
        lines.append(_cut(f"  | {_on_a_line(text)}", width))
    lines.append(f"First tokens: {' '.join(first_tokens(documents, tokenizer, config, beginning))}")
    lines.append(f"Left out: {'; '.join(left_out(config)) or 'nothing'}.")
    lines += [f"Note: {note}." for note in documents.notes]
    return "\n".join(lines)


def first_tokens(documents: Documents, tokenizer: Any, config: HarvestConfig, beginning: tuple[int, ...]) -> list[str]:
    """The first tokens of the first context, BOS and special ones as they are spelt, in quotation marks."""
    for contexts in pack(documents, tokenizer, context=config.context, batch=1, beginning=beginning):
        ids = contexts.tokens[0][contexts.document[0] >= 0][:TOKENS]
        return [repr(tokenizer.decode([token])) for token in ids.tolist()]
    return []


def left_out(config: HarvestConfig) -> list[str]:
    """The kinds of tokens that the model reads and the autoencoder is not trained on."""
    kinds = []
    if not config.keep_special:
        kinds.append("special tokens and what begins a segment")
    if config.max_norm:
        kinds.append(f"tokens over {config.max_norm:g} times the median norm (attention sinks)")
    if config.roles is not None:
        kinds.append(f"tokens of other roles than {', '.join(config.roles)}")
    return kinds


def _on_a_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "·" for letter in " ".join(text[:CHARACTERS].split()))


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(1, width - 1)] + "…"
