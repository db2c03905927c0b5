"""Conversations as the model reads them: the tokenizer's chat template, and whose turn every character belongs to.

    messages = read_messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    ChatTemplate(tokenizer).render(messages)      # text, and where each role's part ends

A template gives text alone. Where a message lies in it is not searched for, which would go wrong for a message that
says "user": the same conversation is rendered a second time with a mark in place of every message's words, and counts
only where its marks, replaced by the words, give the first text exactly. Turns end where the conversation up to them
ends, rendered too.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sae.data.columns import DataError, is_conversation

Message = dict[str, Any]
"""`role`, `content` (text) and what else a template may read of a message."""

# ShareGPT's names for roles -> those that templates know
ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
# what is kept of a message besides role and content; templates read these names
KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
# some templates write today's date into the system's turn; tokens must be the same tomorrow (Llama 3's own default)
DATE = datetime.datetime(2024, 7, 26)
_DATES = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
# parts of a message that templates take apart
_TAGS = re.compile(r"(</?think(?:ing)?>)")
# private-use characters around a number; _MARK must find what _mark wrote
_MARK = re.compile("\ue000([0-9]+)\ue001")


class Unusable(ValueError):  # noqa: N818 - no error: such rows are left out and counted
    """A row that is no document; the message is the reason in a few words, without what differs from row to row."""


class Span(NamedTuple):
    """A part of a rendered conversation that is of one role; it begins where the one before ends."""

    end: int
    """Characters of the text up to its end."""
    role: str
    """Whose turn it is; "" for what is nobody's, such as a system text that the template adds by itself."""


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    spans: tuple[Span, ...]
    """They cover the text; empty where the roles cannot be told."""


def read_messages(value: object) -> tuple[Message, ...]:
    """The messages of a row: OpenAI's `role` and `content`, or ShareGPT's `from` and `value`.

    Content may be a list of parts that all are text; None (beside tool calls) counts as "".

    Raises:
        Unusable: it is no conversation of text.
    """
    if value is None:
        raise Unusable("null")
    if isinstance(value, dict) and is_conversation(value):
        lists = {name: parts for name, parts in value.items() if isinstance(parts, list)}
        value = [dict(zip(lists, parts, strict=True)) for parts in zip(*lists.values(), strict=False)]
    if not isinstance(value, (list, tuple)):
        raise Unusable(f"no conversation ({type(value).__name__})")
    if not value:
        raise Unusable("no messages")
    if not is_conversation(value):
        raise Unusable("a message without a role")
    messages = tuple(_read_message(entry) for entry in value)
    if not any(message["content"].strip() or message.get("tool_calls") for message in messages):
        raise Unusable("empty")
    return messages


def canonical(messages: Sequence[Message]) -> str:
    """A conversation as one line of JSON, the same for equal conversations; what tells duplicates apart."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for people, `role: content` a message."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: of transformers.
        source: what the template is for, as the beginning of an error message.

    Raises:
        DataError: the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, source: str = "chat data") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"{source}: conversations, and the model's tokenizer has no chat template to render them; choose a "
                "model tuned for chat, name a column of text with --text-field, or put the template into the model's "
                "folder as chat_template.jinja"
            )
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of which is the default
            raise DataError(f"{source}: the model's tokenizer: {error}") from error
        self.template = _DATES.sub(lambda match: repr(DATE.strftime(match[2])), template)
        """What renders conversations: the tokenizer's template, with a fixed date."""
        self._tokenizer = tokenizer
        self._marked = lru_cache(maxsize=512)(self._render_marked)

    def render(self, messages: Sequence[Message], *, reply: bool = False) -> Rendered:
        """The conversation's text and roles; with `reply`, up to where the assistant's next message begins.

        Raises:
            Unusable: the template refuses it.
        """
        text = self._apply(messages, reply=reply)
        skeleton, words = _skeleton(messages)
        if _MARK.search(text):
            return Rendered(text, ())
        try:
            # in the order of the keys, which a template may write out
            parts = self._marked(json.dumps(skeleton, default=str), reply)
        except Unusable:
            return Rendered(text, ())
        pieces = [(words[part] if isinstance(part, int) else part, role) for part, role in parts]
        if "".join(piece for piece, _ in pieces) != text:
            return Rendered(text, ())  # the template rewrites what a message says
        return Rendered(text, _joined(pieces))

    def _render_marked(self, skeleton: str, reply: bool) -> list[tuple[str | int, str]]:
        """Parts of the rendered skeleton with their roles: text of the template, or the number of a mark."""
        messages = json.loads(skeleton)
        owners = [index for index, m in enumerate(messages) for _ in _MARK.findall(m["content"])]
        text = self._apply(messages, reply=reply)
        ends = self._ends_of_turns(messages, text, owners, reply)
        turns = [message["role"] for message in messages]
        if ends and reply:
            turns.append("assistant")
        parts: list[tuple[str | int, str]] = []
        begin = 0
        for match in [*_MARK.finditer(text), None]:
            end = len(text) if match is None else match.start()
            parts += _cut_at_turns(text, begin, end, ends, turns)
            if match is not None:
                parts.append((int(match[1]), messages[owners[int(match[1])]]["role"]))
                begin = match.end()
        return parts

    def _ends_of_turns(self, messages: list[Message], text: str, owners: list[int], reply: bool) -> list[int]:
        """Where the preamble and each turn end in `text`, rendered from `messages`; [] where that cannot be told."""
        ends = [0]
        for count in range(1, len(messages) + (1 if reply else 0)):
            try:
                part = self._apply(messages[:count])
            except Unusable:
                return []
            if not text.startswith(part) or len(part) < ends[-1]:
                return []
            ends.append(len(part))
        ends.append(len(text))
        for match in _MARK.finditer(text):
            turn = owners[int(match[1])]
            if not ends[turn] <= match.start() < ends[turn + 1]:
                return []  # as where a system message is written into the first user's turn
        ends[0] = self._preamble(messages[0], text[: ends[1]])
        return ends

    def _preamble(self, first: Message, turn: str) -> int:
        """Characters before the first turn that are nobody's: BOS, a system text that the template adds itself."""
        between = {"role": "assistant", "content": "\ue0001\ue001"}
        try:
            before = self._apply([first, between])
            again = self._apply([first, between, first])
        except Unusable:
            return 0
        if not again.startswith(before):
            return 0
        later = again[len(before) :]
        # the same message, without what comes before the first one alone
        return len(turn) - len(later) if later and turn.endswith(later) else 0

    def _apply(self, messages: Sequence[Message], *, reply: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=reply,
                chat_template=self.template,
            )
        except Exception as error:  # a template may raise whatever it likes, jinja2 and Python their own
            said = " ".join(str(error).split()) or type(error).__name__
            raise Unusable(f"refused by the chat template: {said[:100]}") from error
        return text


def _read_message(entry: dict[str, Any]) -> Message:
    role = entry.get("role") or ROLE_NAMES.get(entry["from"], entry["from"])
    content = entry["content"] if "content" in entry else entry.get("value")
    if isinstance(content, (list, tuple)):
        content = "".join(_text_of(part) for part in content)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise Unusable(f"a message whose content is not text ({type(content).__name__})")
    more = {name: entry[name] for name in KEPT if entry.get(name)}
    return {"role": role, "content": content, **more}


def _text_of(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise Unusable(f"a message whose content is not text ({kind})")


def _skeleton(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The messages with a numbered mark for each run of words, white space and tags left in place; and the words."""
    words: list[str] = []
    skeleton = []
    for message in messages:
        content = ""
        for piece in _TAGS.split(message["content"]):
            core = piece.strip()
            if not core or _TAGS.fullmatch(piece):
                content += piece
                continue
            begin = piece.index(core)
            content += f"{piece[:begin]}\ue000{len(words)}\ue001{piece[begin + len(core) :]}"
            words.append(core)
        skeleton.append({**message, "content": content})
    return skeleton, words


def _cut_at_turns(text: str, begin: int, end: int, ends: list[int], turns: list[str]) -> list[tuple[str | int, str]]:
    """`text[begin:end]` cut where a turn ends, each piece with its role; all of it nobody's without `ends`."""
    if not ends:
        return [(text[begin:end], "")]
    pieces: list[tuple[str | int, str]] = []
    start = 0
    for stop, role in zip(ends, ["", *turns], strict=True):
        piece = text[max(start, begin) : min(stop, end)]
        if piece:
            pieces.append((piece, role))
        start = stop
    return pieces


def _joined(pieces: Sequence[tuple[str, str]]) -> tuple[Span, ...]:
    spans: list[Span] = []
    end = 0
    for piece, role in pieces:
        end += len(piece)
        if spans and spans[-1].role == role:
            spans.pop()
        spans.append(Span(end, role))
    return tuple(spans)
