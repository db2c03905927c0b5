"""Tokens as they are shown: joined they are what the tokenizer decodes, whichever decoder it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerLegacy, ByT5Tokenizer, CTRLTokenizer, EsmTokenizer, PreTrainedTokenizerFast

from sae.features.store.text import GAP, Vocabulary
from sae.selftest.world import SENTENCES, byte_tokenizer

HARD = [
    *SENTENCES,
    "naïve 你好 🎉 e\u0301 👩‍👩‍👧 नमस्ते שלום",
    "  two  spaces\t\n\n tabs   ",
    "don't , isn't . ve n't 're",
    "a\u2581b \ufffd ½ <s>x</s> <0x41>",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
# added in the midst of texts: plain, with a space inside, with letters that stand for bytes, with another script
ADDED = ["<|user|>", "<two words>", "<é>", "<｜begin▁of▁text｜>"]


def bpe(**options: Any) -> tuple[Tokenizer, trainers.BpeTrainer]:
    """An untrained BPE tokenizer, and what trains it on a few sentences."""
    names = ("end_of_word_suffix", "continuing_subword_prefix")
    kept = {name: options[name] for name in names if name in options}
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, **options)
    return Tokenizer(models.BPE(unk_token="<unk>", **kept)), trainer


def byte_level() -> Tokenizer:
    tokenizer, trainer = bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def wordpiece(prefix: str = "##", cleanup: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", continuing_subword_prefix=prefix))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=prefix, cleanup=cleanup)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False, continuing_subword_prefix=prefix
    )
    tokenizer.train_from_iterator(HARD, trainer)
    return tokenizer


def metaspace(scheme: str = "always", replacement: str = "▁") -> Tokenizer:
    tokenizer, trainer = bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=replacement, prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement=replacement, prepend_scheme=scheme)
    tokenizer.train_from_iterator(HARD, trainer)
    return tokenizer


def fallback(strip: bool) -> Tokenizer:
    """As Llama 2's (with `strip`) and Gemma's: what is no piece is its bytes."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghinorstuvé"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("i", "n"), ("▁", "▁")]
    pieces += ["".join(merge) for merge in merges]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if strip else space
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return tokenizer


def suffix(end: str = "</w>") -> Tokenizer:
    """As GPT-1's, CLIP's, XLM's."""
    tokenizer, trainer = bpe(end_of_word_suffix=end)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=end)
    tokenizer.train_from_iterator(HARD, trainer)
    return tokenizer


def letters(decoder: decoders.Decoder | None) -> Tokenizer:
    """Whole words and letters under any decoder."""
    tokenizer, trainer = bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*\S+|\s+"), "isolated")
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(HARD, trainer)
    return tokenizer


def ctc() -> Tokenizer:
    pieces = [*SPECIAL, "|", *"abcdefghijklmnopqrstuvwxyz'"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "|")
    tokenizer.decoder = decoders.CTC(pad_token="<pad>", word_delimiter_token="|")
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "wordpiece": wordpiece,
    "wordpiece, not cleaned": lambda: wordpiece(cleanup=False),
    "wordpiece, other prefix": lambda: wordpiece("@@"),
    **{f"metaspace {scheme}": lambda scheme=scheme: metaspace(scheme) for scheme in ("always", "first", "never")},
    "metaspace, other letter": lambda: metaspace(replacement="_"),
    "llama": lambda: fallback(True),
    "gemma": lambda: fallback(False),
    "suffix": suffix,
    "suffix, other": lambda: suffix("~"),
    "ctc": ctc,
    "none": lambda: letters(None),
    "fuse": lambda: letters(decoders.Fuse()),
    "strip": lambda: letters(decoders.Strip(" ", 1, 0)),
    "replace": lambda: letters(decoders.Replace(Regex("[aeiou]+"), "-")),
    "byte fallback": lambda: letters(decoders.ByteFallback()),
    "rewritten whole": lambda: letters(decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(r"\s+"), " ")])),
    "stripped whole": lambda: letters(decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 3, 0)])),
}


@cache
def made(kind: str) -> tuple[PreTrainedTokenizerFast, Vocabulary]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=MADE[kind](), unk_token="<unk>", bos_token="<s>")
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return tokenizer, Vocabulary.unpack(Vocabulary.of(tokenizer).pack())


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


texts = st.lists(st.sampled_from(HARD) | st.sampled_from(ADDED) | st.text(max_size=20), max_size=4).map("".join)
kinds = pytest.mark.parametrize("kind", MADE)


@kinds
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_joined_strings_are_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(kind)
    ids = tokenizer(data.draw(texts), add_special_tokens=False)["input_ids"]
    # runs begin in the midst of texts and of characters, and need not come from any text
    ids = data.draw(
        st.just(ids[data.draw(st.integers(0, 5)) :]) | st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    )
    strings = vocabulary.display(ids)
    assert len(strings) == len(ids)
    assert "".join(strings) == vocabulary.text(ids) == decoded(tokenizer, ids)


def test_a_part_behind_spaces_reads_as_in_the_whole() -> None:
    tokenizer, vocabulary = made("stripped whole")
    ids = tokenizer("one    two     three", add_special_tokens=False)["input_ids"]
    whole = vocabulary.display(ids)
    assert all(vocabulary.display(ids, start, start + 1) == [whole[start]] for start in range(len(ids)))


@kinds
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_part_of_a_document_reads_as_in_the_whole(kind: str, data: st.DataObject) -> None:
    tokenizer, vocabulary = made(kind)
    ids = tokenizer("".join(data.draw(st.lists(st.sampled_from(HARD), max_size=4))), add_special_tokens=False)[
        "input_ids"
    ]
    start = data.draw(st.integers(0, len(ids)))
    end = data.draw(st.integers(start, len(ids)))
    if kind not in ("rewritten whole", "ctc"):  # whose tokens depend on all before them
        assert vocabulary.display(ids, start, end) == vocabulary.display(ids)[start:end]


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        ("suffix, other", "the quick dog", ["the ", "quick ", "dog"]),
        ("wordpiece", "the lazy", ["the", " lazy"]),
        ("llama", "the é🎉", ["the", " ", "é", "🎉", "", "", ""]),
        ("gemma", " the🎉🎉", [" the", "🎉", "", "", "", "🎉", "", "", ""]),
        ("byte level", "你🎉", ["你", "", "", "🎉", "", "", ""]),
        ("none", "the", ["t", " he"]),
    ],
)
def test_every_token_has_its_own_text(kind: str, text: str, shown: list[str]) -> None:
    tokenizer, vocabulary = made(kind)
    assert vocabulary.display(tokenizer(text, add_special_tokens=False)["input_ids"]) == shown


def test_the_end_of_a_word_is_a_space_and_not_its_mark() -> None:
    tokenizer, vocabulary = made("suffix")
    ids = tokenizer("I have walked", add_special_tokens=False)["input_ids"]
    assert not any("</w>" in string for string in vocabulary.display(ids))
    assert not any("</w>" in vocabulary.name(token) for token in range(len(vocabulary)) if token >= len(SPECIAL))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=0, max_size=6), min_size=1, max_size=12), st.integers(1, 5))
@example([b"\xef\xbf", b"\xbd", b"x", b"y"], 2)
def test_bytes_are_shown_as_the_text_they_are(parts: list[bytes], cuts: int) -> None:
    vocabulary = Vocabulary.of_bytes(parts)
    strings = vocabulary.display(range(len(parts)))
    assert len(strings) == len(parts)
    assert "".join(strings) == b"".join(parts).decode(errors="replace")
    text = "naïve 你好 🎉 e\u0301"
    data = text.encode()
    whole = Vocabulary.of_bytes([data[i : i + cuts] for i in range(0, len(data), cuts)])
    strings = whole.display(range(len(whole)))
    # every character at the token that holds its first byte
    at = np.cumsum([0, *(len(character.encode()) for character in text)])[:-1] // cuts
    assert strings == ["".join(c for c, owner in zip(text, at, strict=True) if owner == i) for i in range(len(whole))]


def test_a_vocabulary_stored_as_bytes_is_still_read() -> None:
    parts = [b" the", b"\xe4\xbd", b"\xa0", b"", "é".encode()]
    lengths = np.array([len(part) for part in parts], "<u4").tobytes()
    old = Vocabulary.unpack(len(parts).to_bytes(8, "little") + lengths + b"".join(parts))
    assert old.display([0, 1, 2, 3, 4]) == [" the", "你", "", "", "é"]
    assert old.name(1) == "\\xe4\\xbd"
    count = 0x227B  # whose bytes look like the beginning of the form of today
    assert len(Vocabulary.unpack(count.to_bytes(8, "little") + bytes(4 * count))) == count


def test_unknown_tokens_and_ids_have_something_to_show() -> None:
    vocabulary = Vocabulary.of_bytes([b"a", b"\xe2\x80"])
    assert vocabulary.display([0, -1, 99]) == ["a", GAP, "<99>"]
    assert vocabulary.display([1, 0]) == ["\ufffd", "a"]
    assert vocabulary.display([]) == []
    assert vocabulary.name(1) == "\\xe2\\x80"
    assert made("llama")[1].name(len(SPECIAL) + 0xE4) == "\\xe4"


def test_ids_without_a_token_between_others_are_shown_by_their_number() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    backend.decoder = decoders.Fuse()
    vocabulary = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert vocabulary.display([0, 5, 3]) == ["a", "b", "<3>"]


def test_special_tokens_are_shown_as_they_are_written() -> None:
    tokenizer = byte_tokenizer(400)
    assert Vocabulary.of(tokenizer).display([tokenizer.bos_token_id]) == ["<s>"]


def python_tokenizer(kind: str, folder: Path) -> Any:
    """A tokenizer that transformers writes in Python, over a few pieces."""
    if kind == "bytes":
        return ByT5Tokenizer()
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if kind == "wordpiece":
        (folder / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "play", "##ing"])
        )
        return BertTokenizerLegacy(str(folder / "vocab.txt"))
    if kind == "words":
        (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGV", "<mask>"]))
        return EsmTokenizer(str(folder / "vocab.txt"))
    pieces = ["<unk>", "the", "play@@", "ing", "a@@", "b"]
    vocabulary.write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    merges.write_text("#version: 0.2\np l\n")
    return CTRLTokenizer(str(vocabulary), str(merges))


@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "words", "ctrl"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tokenizers_written_in_python_are_read_too(
    kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tokenizer, vocabulary = python_made(kind, tmp_path_factory)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=10))
    if kind == "bytes":
        ids = tokenizer(data.draw(st.text(max_size=10)), add_special_tokens=False)["input_ids"]
    strings = vocabulary.display(ids)
    assert len(strings) == len(ids)
    assert "".join(strings).strip() == decoded(tokenizer, ids).strip()


PYTHON: dict[str, tuple[Any, Vocabulary]] = {}


def python_made(kind: str, factory: pytest.TempPathFactory) -> tuple[Any, Vocabulary]:
    if kind not in PYTHON:
        tokenizer = python_tokenizer(kind, factory.mktemp("python"))
        PYTHON[kind] = tokenizer, Vocabulary.unpack(Vocabulary.of(tokenizer).pack())
    return PYTHON[kind]
