"""Columns of token ids: taken as they are, checked against the model and its tokenizer; which column is chosen."""

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sae.data.documents import DataError, open_documents
from sae.data.packing import pack
from sae.selftest.world import SENTENCES, byte_tokenizer

TOKENIZER = byte_tokenizer(300)
IDS = [TOKENIZER(text)["input_ids"] for text in SENTENCES]


def _saved(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _parquet(path, rows, kind):
    columns = {"input_ids": pyarrow.array(rows, kind), "source": ["src0"] * len(rows)}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def _dataset(path, rows):
    from datasets import Dataset

    Dataset.from_dict({"input_ids": rows}).save_to_disk(path)
    return path


FORMS = {
    "x.jsonl": lambda path: _saved(path, [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in IDS]),
    "int32.parquet": lambda path: _parquet(path, IDS, pyarrow.list_(pyarrow.int32())),
    "fixed.parquet": lambda path: _parquet(path, [ids[:9] for ids in IDS], pyarrow.list_(pyarrow.int64(), 9)),
    "uint16.parquet": lambda path: _parquet(path, IDS, pyarrow.large_list(pyarrow.uint16())),
    "saved": lambda path: _dataset(path, IDS),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", [None, "input_ids"])
def test_ids_reach_the_model_as_they_are_and_resume_from_any_cursor(form, asked, tmp_path):
    documents = open_documents(FORMS[form](tmp_path / form), text_field=asked, split="all")
    documents = documents.with_tokenizer(TOKENIZER, ids_below=300)
    rows = [ids[:9] if form == "fixed.parquet" else ids for ids in IDS]
    assert [d.ids.tolist() for d in documents] == rows
    assert documents.provenance["text_field"] == "input_ids"
    batches = list(pack(documents, TOKENIZER, context=16, batch=2))
    got = {}
    for contexts in batches:
        assert contexts.role is None
        for token, document, position in zip(*(t.flatten().tolist() for t in contexts[:3]), strict=True):
            if document >= 0 and position > 0:
                got.setdefault(document, []).append(token)
            elif document >= 0:
                assert token == TOKENIZER.bos_token_id
    assert got == dict(enumerate(rows))
    again = next(pack(documents, TOKENIZER, context=16, batch=2, start=batches[0].next))
    assert again.tokens.tolist() == batches[1].tokens.tolist()


def test_ids_that_begin_with_bos_do_not_get_a_second_one(tmp_path):
    bos = TOKENIZER.bos_token_id
    path = _saved(tmp_path / "x.jsonl", [{"tokens": [bos, *ids]} for ids in IDS])
    documents = open_documents(path, split="all").with_tokenizer(TOKENIZER, ids_below=300)
    contexts = next(pack(documents, TOKENIZER, context=400, batch=1))
    assert contexts.tokens[0].tolist().count(bos) == len(IDS)
    assert contexts.tokens[0, :4].tolist() == [bos, *IDS[0][:3]]


@pytest.mark.parametrize(("wrong", "named"), [(300, "300"), (-100, "-100"), (2**40, str(2**40))])
def test_an_id_that_is_none_of_the_models_is_refused_with_its_row(wrong, named, tmp_path):
    path = _saved(tmp_path / "x.jsonl", [{"input_ids": ids} for ids in (IDS[0], [5, wrong, 6])])
    documents = open_documents(path, split="all").with_tokenizer(TOKENIZER, ids_below=300)
    with pytest.raises(DataError, match=rf"x\.jsonl: row 1 of column 'input_ids' holds the token id {named}"):
        list(documents)


def test_an_id_beyond_the_tokenizer_is_refused_though_the_table_is_larger(tmp_path):
    path = _saved(tmp_path / "x.jsonl", [{"input_ids": [5, len(TOKENIZER) + 3]}])
    with pytest.raises(DataError, match=r"row 0 .* the ids are of another tokenizer"):
        open_documents(path, split="all").with_tokenizer(TOKENIZER, ids_below=1000)


def test_rows_that_are_no_ids_are_left_out_and_counted(tmp_path):
    values = [IDS[0], [], None, [1.5, 2.0], [1, None], ["a"], [[1], [2]], [[1], [2, 3]], 7, "text", IDS[1]]
    path = _saved(tmp_path / "x.jsonl", [{"input_ids": value} for value in values])
    documents = open_documents(path, split="all")
    assert [d.index for d in documents] == [0, len(values) - 1]
    assert documents.skipped == {
        "empty": 1,
        "null": 1,
        "not token ids (list of float)": 1,
        "not token ids (list of int)": 1,
        "not token ids (list of str)": 1,
        "not token ids (list of list)": 1,
        "not token ids (lists of lists)": 1,
        "not token ids (int)": 1,
        "not token ids (str)": 1,
    }


def test_the_split_follows_the_ids_whatever_their_width(tmp_path):
    rows = [[number, 5, 6] for number in range(3, 103)]
    sides = []
    for kind in (pyarrow.int16(), pyarrow.int64()):
        path = _parquet(tmp_path / f"{kind}.parquet", rows, pyarrow.list_(kind))
        sides.append([d.ids[0] for d in open_documents(path, split="heldout", heldout=0.3)])
    assert sides[0] == sides[1]
    assert 15 < len(sides[0]) < 45


def test_the_tokenizer_that_the_data_name_is_compared(tmp_path):
    same, other = byte_tokenizer(300), byte_tokenizer(280, eos=False)
    same.save_pretrained(tmp_path / "same")
    other.save_pretrained(tmp_path / "other")
    for place in ("folder", "metadata"):
        for name, refused in (("same", False), ("other", True)):
            folder = tmp_path / f"{place}-{name}"
            folder.mkdir()
            recorded = {"tokenizer_name": str(tmp_path / name)}
            table = pyarrow.table({"input_ids": IDS})
            if place == "folder":
                (folder / "sae_lens.json").write_text(json.dumps(recorded))
            else:
                table = table.replace_schema_metadata(recorded)
            parquet.write_table(table, folder / "x.parquet")
            documents = open_documents(folder / "x.parquet", split="all")
            assert documents.provenance["tokenizer"] == str(tmp_path / name)
            if refused:
                with pytest.raises(DataError, match=r"are of the tokenizer .*other, whose vocabulary is another"):
                    documents.with_tokenizer(TOKENIZER, ids_below=300)
            else:
                documents.with_tokenizer(TOKENIZER, ids_below=300)
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "sae_lens.json").write_text('{"tokenizer_name": "owner/nowhere"}')
    path = _saved(unknown / "x.jsonl", [{"tokens": ids} for ids in IDS])
    (note,) = open_documents(path, split="all").with_tokenizer(TOKENIZER, ids_below=300).notes
    assert "owner/nowhere" in note


IDS_KIND = "lists of whole numbers"
WORDS, TALK, NUMBERS = "words", [{"role": "user", "content": "Hi"}], [4, 5]
CHOICES = {
    "chat beside a label": ({"messages": TALK, "source": "src3"}, "messages", "chat"),
    "ShareGPT beside an id": (
        {"id": "x1", "conversations": [{"from": "human", "value": "Hi"}]},
        "conversations",
        "chat",
    ),
    "text beside ids": ({"input_ids": NUMBERS, "text": WORDS}, "text", "text"),
    "text beside a chat": ({"messages": TALK, "content": WORDS}, "content", "text"),
    "chat beside ids": ({"input_ids": NUMBERS, "messages": TALK}, "messages", "chat"),
    "a name of another kind": ({"text": NUMBERS, "tokens": NUMBERS}, "tokens", "lists of whole numbers"),
    "tokens that are words": ({"tokens": ["a", "b"], "article": WORDS}, "article", "text"),
    "capitals": ({"n": 1, "Text": WORDS}, "Text", "text"),
    "null at first": ({"text": None, "title": WORDS}, "text", "text"),
    "raw content": ({"url": "u", "raw_content": WORDS}, "raw_content", "text"),
    "ids of another name": ({"token_ids": NUMBERS, "attention_mask": [1, 1], "source": "src0"}, "token_ids", IDS_KIND),
    "a chat of another name": ({"chat": TALK, "system": "s"}, "chat", "chat"),
    "text among labels": ({"author": "a", "title": "t", "story": WORDS, "language": "en"}, "story", "text"),
}


@pytest.mark.parametrize("case", CHOICES)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "hub"])
def test_the_column_of_a_well_known_name_and_its_kind_is_taken(case, kind, tmp_path, monkeypatch):
    row, name, read_as = CHOICES[case]
    rows = [row, {**row, "text": WORDS} if row.get("text", "") is None else row]
    documents = open_documents(_place(kind, tmp_path, rows, monkeypatch), split="all")
    assert (documents.provenance["text_field"], documents.kind) == (name, read_as)
    assert len(list(documents)) >= 1


REFUSED = {
    "the only strings are labels": {"source": "src3", "score": 0.5},
    "no known name": {"prompt": "p", "response": "r"},
    "ids of an unknown name": {"labels": NUMBERS},
    "a chat of an unknown name": {"turns": TALK},
    "a chat inside a string": {"messages": json.dumps(TALK), "source": "src0"},
    "several columns of strings": {"prompt": "p", "chosen": "c", "rejected": "r", "label": "good"},
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "hub"])
def test_any_other_column_must_be_named_and_all_are_listed(case, kind, tmp_path, monkeypatch):
    row = REFUSED[case]
    path = _place(kind, tmp_path, [row, row, row], monkeypatch)
    with pytest.raises(DataError, match="name one with --text-field") as refusal:
        open_documents(path, split="all")
    for name, value in row.items():
        (line,) = (part for part in str(refusal.value).replace("it has ", "\n").splitlines() if f"{name} (" in part)
        assert line.count(repr(value)[:20]) == 2 or kind != "jsonl"
    readable = next(iter(row))
    assert len(list(open_documents(path, text_field=readable, split="all"))) == 3


def _place(kind, tmp_path, rows, monkeypatch):
    """The name of a data set with these rows."""
    if kind == "jsonl":
        return _saved(tmp_path / "x.jsonl", rows)
    import datasets

    table = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        table.to_parquet(tmp_path / "x.parquet")
        return tmp_path / "x.parquet"
    if kind == "saved":
        table.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"
    import huggingface_hub

    class Api:
        def dataset_info(self, name, revision=None):
            return type("Info", (), {"sha": "c0ffee"})

    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: table.to_iterable_dataset())
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.chdir(tmp_path)
    return "owner/name"


def test_a_column_of_pictures_is_listed_and_not_decoded(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no picture", "path": None}], "caption": ["a cat"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"caption \(text\) 'a cat';\n  image \(images\)"):
        open_documents(tmp_path / "saved")


def test_what_could_be_read_instead_is_noted(tmp_path):
    path = _saved(tmp_path / "x.jsonl", [{"text": WORDS, "input_ids": NUMBERS, "source": "a"}])
    assert open_documents(path).notes == [
        "'input_ids' (lists of whole numbers) could be read instead, with --text-field"
    ]


def test_numpy_arrays_are_read_as_lists_are(tmp_path):
    from sae.data.columns import columns_of

    assert columns_of([{"input_ids": np.arange(3)}])["input_ids"].kind == "lists of whole numbers"
