"""Conversations as the model reads them: the tokenizer's chat template, and whose turn every character belongs to.

    messages = read_messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])
    ChatTemplate(tokenizer).render(messages)      # text, and where each role's part ends

A template returns text alone. Searching it for a message would go wrong for a message that says "user". Instead the
conversation is rendered a second time with a numbered mark in place of every message's words, and the marks' positions
count only if replacing them by the words gives the first text exactly. The end of a turn is found by rendering the
conversation up to it.
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
"""`role`, `content` (text) and whatever else templates read of a message."""

Tools = list[dict[str, Any]] | None
"""JSON schemas of tools."""

# ShareGPT's names of roles -> those that templates know
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
# what is kept of a message besides role and content, because templates read it
KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
# some templates write today's date into the system's turn; tokens must be the same tomorrow (the default of Llama 3)
DATE = datetime.datetime(2024, 7, 26)
_DATES = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
# parts of a message that templates take apart
_TAGS = re.compile(r"(</?think(?:ing)?>)")
# private-use characters around a number; _MARK must find what _mark wrote
_MARK = re.compile("\ue000([0-9]+)\ue001")


class Unusable(ValueError):  # noqa: N818 - no error: such rows are left out and counted
    """A row that is no document; the message is a short reason that is the same for all such rows."""


class Span(NamedTuple):
    """A part of a rendered conversation that belongs to one role; it begins where the previous one ends."""

    end: int
    """Characters of the text up to its end."""
    role: str
    """Whose turn it is; "" for text of no role, such as a system prompt that the template itself adds."""


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    spans: tuple[Span, ...]
    """They cover the text; empty if the roles cannot be told."""


def read_messages(value: object) -> tuple[Message, ...]:
    """The messages of a row: OpenAI's `role` and `content`, or ShareGPT's `from` and `value`.

    Content may be a list of text parts; None (next to tool calls) counts as "".

    Raises:
        Unusable: it is not a conversation of text.
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


def read_tools(value: object) -> list[dict[str, Any]] | None:
    """The tools of a row: a list of JSON schemas, or the same as JSON text; None where there are none.

    Keys with null are dropped: tables add them, since all their rows share the keys of all schemas.

    Raises:
        Unusable: it is something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise Unusable("tools that are not JSON") from None
    if not value:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, dict) for tool in value):
        raise Unusable("tools that are not a list of JSON schemas")
    return _without_nulls(list(value))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def canonical(messages: Sequence[Message]) -> str:
    """A conversation as one line of JSON, the same for equal conversations."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for people, `role: content` a message."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: of transformers.
        source: what the template is for; error messages begin with it.

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
        """The tokenizer's template, with a fixed date."""
        self._tokenizer = tokenizer
        self._marked = lru_cache(maxsize=512)(self._render_marked)

    def render(self, messages: Sequence[Message], *, tools: Tools = None, reply: bool = False) -> Rendered:
        """The conversation's text and roles; with `reply`, up to where the assistant's next message begins.

        Args:
            tools: JSON schemas of the tools that the model may call, for templates that list them.

        Raises:
            Unusable: the template refuses it.
        """
        text = self._apply(messages, tools, reply=reply)
        skeleton, words = _skeleton(messages)
        if _MARK.search(text):
            return Rendered(text, ())
        try:
            # keys are not sorted, since a template may write them out
            parts = self._marked(json.dumps(skeleton, default=str), json.dumps(tools), reply)
        except Unusable:
            return Rendered(text, ())
        pieces = [(words[part] if isinstance(part, int) else part, role) for part, role in parts]
        if "".join(piece for piece, _ in pieces) != text:
            return Rendered(text, ())  # the template rewrites what a message says
        return Rendered(text, _joined(pieces))

    def _render_marked(self, skeleton: str, tools_json: str, reply: bool) -> list[tuple[str | int, str]]:
        """Parts of the rendered skeleton with their roles: text of the template, or the number of a mark."""
        messages, tools = json.loads(skeleton), json.loads(tools_json)
        owners = [index for index, m in enumerate(messages) for _ in _MARK.findall(m["content"])]
        text = self._apply(messages, tools, reply=reply)
        ends = self._ends_of_turns(messages, tools, text, owners, reply)
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

    def _ends_of_turns(
        self, messages: list[Message], tools: Tools, text: str, owners: list[int], reply: bool
    ) -> list[int]:
        """Where the preamble and each turn end in `text`, rendered from `messages`; [] if that cannot be told."""
        ends = [0]
        for count in range(1, len(messages) + (1 if reply else 0)):
            try:
                part = self._apply(messages[:count], tools)
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
        ends[0] = self._preamble(messages[0], tools, text[: ends[1]])
        return ends

    def _preamble(self, first: Message, tools: Tools, turn: str) -> int:
        """Characters of no role before the first turn: BOS, tools, a system prompt that the template itself adds."""
        between = {"role": "assistant", "content": "\ue0001\ue001"}
        try:
            before = self._apply([first, between], tools)
            again = self._apply([first, between, first], tools)
        except Unusable:
            return 0
        if not again.startswith(before):
            return 0
        later = again[len(before) :]
        # the same message, without what comes only before the first one
        return len(turn) - len(later) if later and turn.endswith(later) else 0

    def _apply(self, messages: Sequence[Message], tools: Tools, *, reply: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                tokenize=False,
                add_generation_prompt=reply,
                chat_template=self.template,
            )
        except Exception as error:  # templates may raise any type
            said = " ".join(str(error).split()) or type(error).__name__
            raise Unusable(f"refused by the chat template: {said[:100]}") from error


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
    """The messages with a numbered mark for each run of words (white space and tags stay), and the words."""
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
    """`text[begin:end]` cut at the ends of turns, each piece with its role; one piece of no role without `ends`."""
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
