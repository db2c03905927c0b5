import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.data import packing
from sae.data import tokens as tokenization
from sae.data.documents import DataError, Document
from sae.data.packing import Cursor, named_ids, pack, padding_token
from sae.selftest.world import SENTENCES, byte_tokenizer

WITH_BOS = byte_tokenizer()
BARE = byte_tokenizer(bos=False, eos=False, pad=False)
ADDS_BOS = byte_tokenizer(adds_bos=True)


class Listed:
    """Documents from a list; an index may be missing, as that of a skipped row."""

    def __init__(self, texts, step=1):
        self.documents = [Document(number * step, text) for number, text in enumerate(texts)]

    def iterate(self, start=0):
        return (document for document in self.documents if document.index >= start)


def _same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for pair in zip(ours, theirs, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def _segments(batches):
    """[(document, [(position, token), ...]), ...] of every segment, read from the arrays alone."""
    found = []
    for contexts in batches:
        for tokens, documents, positions in zip(*(array.tolist() for array in contexts[:3]), strict=True):
            for token, document, position in zip(tokens, documents, positions, strict=True):
                if position == 0:
                    found.append((document, []))
                assert found[-1][0] == document
                found[-1][1].append((position, token))
    return found


def _check_starts(batches, tokenizer):
    """`start` is the number of the document's tokens in earlier segments."""
    before = {}
    for contexts in batches:
        for document, position, start in zip(contexts.document, contexts.position, contexts.start, strict=True):
            begins = [*(position == 0).nonzero().flatten().tolist(), len(position)]
            for begin, end in pairwise(begins):
                number = document[begin].item()
                assert set(start[begin:end].tolist()) == {0 if number < 0 else before.get(number, 0)}
                before[number] = before.get(number, 0) + end - begin - len(named_ids(tokenizer))


def _check_laid_out(batches, texts, step, tokenizer):
    """No token of a document is lost, repeated or moved; segments begin with BOS and count from 0."""
    first, kept = named_ids(tokenizer), {}
    for document, entries in _segments(batches):
        assert [position for position, _ in entries] == list(range(len(entries)))
        tokens = [token for _, token in entries]
        if document == -1:
            assert set(tokens) == {padding_token(tokenizer)}
            continue
        if first:
            assert tokens.pop(0) == first[0]
            assert tokens, "a segment of BOS alone"
        kept.setdefault(document, []).extend(tokens)
    expected = {n * step: tokenizer(text, add_special_tokens=False)["input_ids"] for n, text in enumerate(texts)}
    assert kept == {document: tokens for document, tokens in expected.items() if tokens}


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.one_of(st.just(""), st.text(max_size=40), st.text("ab ", min_size=30, max_size=90)), max_size=8),
    tokenizer=st.sampled_from([WITH_BOS, BARE, ADDS_BOS]),
    context=st.integers(2, 24),
    batch=st.integers(1, 3),
    step=st.integers(1, 3),
    isolate=st.sampled_from(["pack", "pad"]),
)
def test_no_token_is_lost_or_repeated_and_any_cursor_continues_exactly(texts, tokenizer, context, batch, step, isolate):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]

    def packed(start=packing.BEGINNING):
        return list(pack(Listed(texts, step), tokenizer, context=context, batch=batch, start=start, isolate=isolate))

    batches = packed()
    _check_laid_out(batches, texts, step, tokenizer)
    _check_starts(batches, tokenizer)
    assert all(contexts.tokens.shape == (batch, context) for contexts in batches[:-1])
    for number, contexts in enumerate(batches):
        assert _same(packed(contexts.next), batches[number + 1 :])


def test_contexts_are_full_but_for_the_last():
    batches = list(pack(Listed(SENTENCES * 4), BARE, context=16, batch=3))
    rows = torch.cat([contexts.document for contexts in batches])
    assert (rows[:-1] >= 0).all()
    # with BOS a row's last token may be one too few for another segment
    rows = torch.cat([c.document for c in pack(Listed(SENTENCES * 4), WITH_BOS, context=16, batch=3)])
    assert (rows[:-1, :-1] >= 0).all()


def test_padded_rows_hold_one_segment_each():
    for contexts in pack(Listed(SENTENCES), WITH_BOS, context=16, batch=4, isolate="pad"):
        for documents in contexts.document:
            (held,) = set(documents.tolist()) - {-1}
            padding = documents == -1
            assert padding.int().diff().ge(0).all(), "padding on the right"
            assert held >= 0


def test_last_batch_is_smaller_and_its_cursor_is_past_the_end():
    *_, last = pack(Listed(SENTENCES, step=10), WITH_BOS, context=16, batch=4)
    assert last.tokens.shape[0] in (1, 2, 3, 4)
    assert last.next == Cursor(10 * (len(SENTENCES) - 1) + 1, 0)
    assert list(pack(Listed(SENTENCES, step=10), WITH_BOS, context=16, batch=4, start=last.next)) == []


def test_long_documents_are_tokenized_in_pieces(monkeypatch):
    monkeypatch.setattr(tokenization, "PIECE", 1200)
    long = " ".join(SENTENCES * 40)
    texts = ["short", long, "x" * 5000, "", "end"]
    assert len(list(tokenization._pieces(long))) > 10
    sizes = []

    class Counting:
        bos_token_id, cls_token_id, pad_token_id, eos_token_id = 0, None, 2, 1

        def __call__(self, texts, **options):
            sizes.append(sum(map(len, texts)))
            return WITH_BOS(texts, **options)

        def __deepcopy__(self, memo):
            return self

    batches = list(pack(Listed(texts), Counting(), context=32, batch=4))
    assert max(sizes) <= 1200
    # cut before white space, a byte-level tokenizer gives the tokens of the whole text; 5000 x's have no such place
    kept = [(d, t) for d, entries in _segments(batches) if d >= 0 for _, t in entries[1:]]
    assert [t for d, t in kept if d == 1] == WITH_BOS(long, add_special_tokens=False)["input_ids"]
    assert WITH_BOS.decode([t for d, t in kept if d == 2]) == "x" * 5000
    # a piece carries on the segment of the one before: a document's later segments begin a row
    for contexts in batches:
        begun = [d[p == 0].tolist() for d, p in zip(contexts.document, contexts.position, strict=True)]
        assert all(len(set(row)) == len(row) for row in begun)
    for number, contexts in enumerate(batches[:-1]):
        again = pack(Listed(texts), Counting(), context=32, batch=4, start=contexts.next)
        assert _same([next(again)], [batches[number + 1]])
        again.close()


def test_a_resumed_run_does_not_read_what_came_before():
    source = Listed(SENTENCES * 20)
    first, *_ = list(pack(source, WITH_BOS, context=32, batch=4))
    read = []

    class Watched(Listed):
        def iterate(self, start=0):
            for document in super().iterate(start):
                read.append(document.index)
                yield document

    list(pack(Watched(SENTENCES * 20), WITH_BOS, context=32, batch=4, start=first.next))
    assert read[0] == first.next.document > 0
    assert all(b == a + 1 for a, b in pairwise(read))


def test_cursor_of_other_data_is_refused():
    with pytest.raises(DataError, match="document 1 has no token 500"):
        list(pack(Listed(SENTENCES), WITH_BOS, context=32, batch=4, start=Cursor(1, 500)))
    with pytest.raises(DataError, match="document 3 has no token 2"):
        list(pack(Listed(SENTENCES, step=2), WITH_BOS, context=32, batch=4, start=Cursor(3, 2)))


def test_errors_of_the_data_set_arrive_and_the_thread_ends():
    class Failing(Listed):
        def iterate(self, start=0):
            yield from super().iterate(start)
            raise DataError("row 5 is broken")

    batches, got = pack(Failing(SENTENCES), WITH_BOS, context=8, batch=1), []
    with pytest.raises(DataError, match="row 5 is broken"):
        got.extend(batches)
    assert not any(thread.name == "sae-prefetch" for thread in threading.enumerate())


def test_the_callers_tokenizer_is_left_alone():
    # truncation is a state of a fast tokenizer, set by a call and read by the next: shared between threads, one call
    # would cut the other's texts
    tokenizer = byte_tokenizer()
    tokenizer(SENTENCES[0], truncation=True, max_length=5)
    assert next(pack(Listed(SENTENCES), tokenizer, context=64, batch=1)).next.document > 0
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 5


def test_special_tokens_are_found():
    assert named_ids(WITH_BOS) == (WITH_BOS.bos_token_id,)
    assert named_ids(BARE) == ()
    encoder = byte_tokenizer(bos=False)
    encoder.cls_token = "</s>"
    assert named_ids(encoder) == (encoder.eos_token_id,)
    assert padding_token(WITH_BOS) == WITH_BOS.pad_token_id
    assert padding_token(byte_tokenizer(pad=False)) == WITH_BOS.eos_token_id
    assert padding_token(BARE) == 0


def test_arguments_are_checked_before_the_first_batch():
    with pytest.raises(ValueError, match="isolate: 'mask'"):
        pack(Listed([]), WITH_BOS, context=8, batch=1, isolate="mask")
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pack(Listed([]), WITH_BOS, context=1, batch=1)
    with pytest.raises(ValueError, match="at least 1 tokens and 1 context"):
        pack(Listed([]), BARE, context=1, batch=0)
