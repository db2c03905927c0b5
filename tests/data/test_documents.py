import gzip
import json
import random

import pytest

from sae.data import content, rows
from sae.data.documents import DataError, is_heldout, open_documents

TEXTS = [f"document {number} of a small set" for number in range(40)]


def _jsonl(path, records):
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    if path.suffix == ".zst":
        import pyarrow

        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
    return path


def _table(texts, separator):
    lines = [separator.join((str(number), f'"{text}"')) for number, text in enumerate(texts)]
    return "\n".join([separator.join(("", "text")), *lines]) + "\n"


def _parquet(path, texts, **more):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": texts, **more}), path, row_group_size=7)
    return path


def _saved(path, texts):
    from datasets import Dataset

    Dataset.from_dict({"text": texts}).save_to_disk(path)
    return path


def _saved_splits(path, texts):
    from datasets import Dataset, DatasetDict

    other = Dataset.from_dict({"text": ["another split"]})
    DatasetDict({"test": other, "train": Dataset.from_dict({"text": texts})}).save_to_disk(path)
    return path


def _folder(path, texts):
    (path / "part").mkdir(parents=True)
    _jsonl(path / "a.jsonl", [{"text": text} for text in texts[:11]])
    _jsonl(path / "part" / "b.jsonl.gz", [{"text": text} for text in texts[11:]])
    (path / "README.md").write_text("not data")
    return path


FORMS = {
    "x.jsonl": lambda path, texts: _jsonl(path, [{"text": text, "n": 1} for text in texts]),
    "x.jsonl.gz": lambda path, texts: _jsonl(path, [{"text": text} for text in texts]),
    "lines.json": lambda path, texts: _jsonl(path, [{"text": text} for text in texts]),
    "list.json": lambda path, texts: path.write_text(json.dumps([{"text": text} for text in texts], indent=1)),
    "x.jsonl.zst": lambda path, texts: _jsonl(path, [{"text": text} for text in texts]),
    "x.csv": lambda path, texts: path.write_text(_table(texts, ",")),
    "x.tsv.gz": lambda path, texts: path.write_bytes(gzip.compress(_table(texts, "\t").encode())),
    "x.parquet": lambda path, texts: _parquet(path, texts, n=list(range(len(texts)))),
    "lines.txt": lambda path, texts: path.write_text("\n".join(texts)),
    "paragraphs.txt": lambda path, texts: path.write_text("\n\n".join(texts) + "\n"),
    "saved": _saved,
    "saved_splits": _saved_splits,
    "folder": _folder,
}


@pytest.fixture(params=FORMS)
def spec(request, tmp_path):
    path = tmp_path / request.param
    FORMS[request.param](path, TEXTS)
    return path


def test_every_form_gives_the_same_documents_from_any_start(spec):
    documents = open_documents(spec, split="all")
    assert [document.text for document in documents] == TEXTS
    for start in (0, 1, 7, 10, 11, 12, 28, 39, 40, 50):
        assert [(d.index, d.text) for d in documents.iterate(start)] == list(enumerate(TEXTS))[start:]


def test_provenance_is_json_and_changes_with_the_data(spec):
    before = json.loads(json.dumps(open_documents(spec).provenance))
    assert before["spec"] == str(spec)
    assert before["text_field"] == "text"
    assert before["split_rule"]["heldout"] == 0.1
    if not spec.is_dir():
        FORMS[spec.name](spec, [*TEXTS[:-1], "document X of a small set"])
        assert open_documents(spec).provenance["files"] != before["files"]


def test_train_and_heldout_part_the_documents(spec):
    parts = {split: [d.index for d in open_documents(spec, split=split, heldout=0.3)] for split in ("train", "heldout")}
    assert sorted(parts["train"] + parts["heldout"]) == list(range(len(TEXTS)))
    assert len(parts["heldout"]) == sum(is_heldout(text, 0.3) for text in TEXTS) > 0


def test_split_follows_the_text_not_the_order_or_the_number_of_copies(tmp_path):
    shuffled = TEXTS * 2
    random.Random(0).shuffle(shuffled)
    path = _jsonl(tmp_path / "x.jsonl", [{"text": text} for text in shuffled])
    train = {document.text for document in open_documents(path, heldout=0.5)}
    heldout = {document.text for document in open_documents(path, heldout=0.5, split="heldout")}
    assert not train & heldout
    ordered = _jsonl(tmp_path / "y.jsonl", [{"text": text} for text in TEXTS])
    assert {document.text for document in open_documents(ordered, heldout=0.5)} == train


def test_a_larger_heldout_share_holds_the_smaller_one():
    texts = [f"text {number}" for number in range(20_000)]
    small, large = ({t for t in texts if is_heldout(t, share)} for share in (0.1, 0.2))
    assert small < large
    assert 0.09 < len(small) / len(texts) < 0.11


def test_demo_is_labelled_shuffled_and_split():
    documents = list(open_documents("demo", split="all"))
    assert len(documents) == 10_033
    assert len({document.label for document in documents}) == 12
    # the file is sorted by topic; its beginning must not be one-sided
    assert len({document.label for document in documents[:100]}) >= 10
    assert [d.index for d in documents] == list(range(10_033))
    assert 900 < sum(1 for _ in open_documents("demo", split="heldout")) < 1100
    with pytest.raises(DataError, match=r"demo:de.*en, fr, es"):
        open_documents("demo:de")


def test_unusable_rows_are_skipped_counted_once_and_keep_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "TEXT_LIMIT", 100)
    values = ["a", None, "", "  \n", 7, "b" * 101, "\ud800", "last", ["x"]]
    path = _jsonl(tmp_path / "x.jsonl", [*({"text": value} for value in values), {"other": 1}])
    documents = open_documents(path, split="all")
    for _ in range(2):
        assert [(d.index, d.text) for d in documents] == [(0, "a"), (7, "last")]
    assert documents.skipped == {
        "null": 2,
        "empty": 2,
        "not text (int)": 1,
        "too long": 1,
        "not Unicode": 1,
        "not text (list)": 1,
    }


def test_mostly_unusable_rows_stop_the_run(tmp_path):
    path = _jsonl(tmp_path / "x.jsonl", [{"text": "kept" if number % 3 == 0 else None} for number in range(2000)])
    with pytest.raises(DataError, match="of 1000 rows are unusable: 666 null"):
        list(open_documents(path))


def test_only_unusable_rows_are_refused_at_once(tmp_path):
    path = _jsonl(tmp_path / "x.jsonl", [{"text": None}, {"text": ""}])
    with pytest.raises(DataError, match="no usable text in column 'text' of the first 2 rows: 1 null, 1 empty"):
        open_documents(path, text_field="text")


def test_lines_over_the_limit_are_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LINE_LIMIT", 64)
    path = _jsonl(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b" * 500}, {"text": "c"}])
    documents = open_documents(path, split="all")
    assert [d.index for d in documents] == [0, 2]
    assert documents.skipped == {"too long": 1}
    (tmp_path / "x.txt").write_text("a\n\n" + "line of text\n" * 20 + "\nb\n")
    documents = open_documents(tmp_path / "x.txt", split="all")
    assert [d.text for d in documents] == ["a", "b"]
    assert documents.skipped == {"too long": 1}


def test_only_well_known_columns_are_taken_without_asking(tmp_path):
    known = _jsonl(tmp_path / "known.jsonl", [{"n": 1, "title": "t", "content": "words"}])
    assert next(iter(open_documents(known, split="all"))).text == "words"
    only = _jsonl(tmp_path / "only.jsonl", [{"source": "src3", "n": 1}])
    with pytest.raises(
        DataError, match=r"no column of a well-known name .*--text-field; it has source \(text\) 'src3';"
    ):
        open_documents(only)
    assert next(iter(open_documents(only, text_field="source", split="all"))).text == "src3"
    with pytest.raises(DataError, match=r"has no column 'sourc'; it has source \(text\)"):
        open_documents(only, text_field="sourc")
    with pytest.raises(DataError, match=r"column 'n' of .* holds whole numbers; expected text, a conversation or"):
        open_documents(only, text_field="n")
    table = _parquet(tmp_path / "x.parquet", ["words"], n=[1], words=["w"])
    assert open_documents(table).provenance["text_field"] == "text"


@pytest.mark.parametrize(
    ("line", "message"),
    [("{broken", "not JSON"), ("[1]", "expected an object"), ("[" * 100_000, "not JSON"), ('{"text": "\xff"}', "JSON")],
)
def test_malformed_json_lines_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' * 30 + line.encode("latin-1") + b"\n")
    documents = open_documents(path, split="all")
    with pytest.raises(DataError, match=f"x.jsonl, line 61: .*{message}"):
        list(documents)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"x\.parquet: not a readable Parquet"):
        open_documents(tmp_path / "x.parquet")
    whole = _jsonl(tmp_path / "x.jsonl.gz", [{"text": f"{number}" * 50} for number in range(1000)])
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"x\.jsonl\.gz: cannot be read to its end"):
        list(open_documents(whole, split="all"))
    (tmp_path / "x.txt").write_bytes(b"fine\n\nna\xefve\n")
    with pytest.raises(DataError, match=r"x\.txt, line 3: not UTF-8"):
        list(open_documents(tmp_path / "x.txt", split="all"))
    saved = _saved(tmp_path / "saved", TEXTS)
    (saved / "state.json").write_text("{")
    with pytest.raises(DataError, match="saved: `datasets` cannot load"):
        open_documents(saved)


def test_parquet_strings_that_are_not_utf8_are_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"ab\xff\xfe"] * 3, pyarrow.binary())
    strings = pyarrow.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "texts.parquet")
    with pytest.raises(DataError, match=r"texts\.parquet: damaged near row 0 .*utf-8"):
        list(open_documents(str(tmp_path / "texts.parquet")))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.txt", "x.parquet"])
def test_empty_files_are_refused(tmp_path, name):
    path = tmp_path / name
    _parquet(path, []) if name == "x.parquet" else path.write_text("[]" if name == "x.json" else "")
    with pytest.raises(DataError, match=f"{name}: is empty"):
        open_documents(path)


def test_wrong_paths_name_what_is_there(tmp_path):
    _jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"corpsu\.jsonl: no such file or folder\. In .* there is corpus\.jsonl"):
        open_documents(tmp_path / "corpsu.jsonl")
    (tmp_path / "corpus.docx").write_text("")
    with pytest.raises(DataError, match=r"corpus\.docx: unknown ending; expected one of \.jsonl, \.json, \.csv"):
        open_documents(tmp_path / "corpus.docx")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"files of one kind.*holds 1 \.jsonl and 1 \.txt"):
        open_documents(tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="holds none"):
        open_documents(tmp_path / "bare")


def test_arguments_are_checked(tmp_path):
    for wrong in ({"split": "test"}, {"heldout": 1.0}, {"heldout": -0.1}, {"split": "heldout", "heldout": 0}):
        with pytest.raises(DataError, match=r"split|heldout"):
            open_documents("demo", **wrong)
    path = _jsonl(tmp_path / "x.jsonl", [{"text": "a"}])
    empty = "train" if is_heldout("a", 0.5) else "heldout"
    with pytest.raises(DataError, match=f"none of 1 rows is a document of the split '{empty}'"):
        list(open_documents(path, split=empty, heldout=0.5))


def test_saved_folder_without_train_split_lists_its_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    part = Dataset.from_dict({"text": ["a"]})
    DatasetDict({"test": part}).save_to_disk(tmp_path / "one")
    assert len(list(open_documents(tmp_path / "one", split="all"))) == 1
    DatasetDict({"test": part, "validation": part}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="no split `train` but test, validation"):
        open_documents(tmp_path / "two")


def test_tables_keep_quoted_lines_and_refuse_what_is_none(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('\ufeffid,text,label\n1,"two\nlines, one ""quoted""",a\n2,,b\n3,plain\n', encoding="utf-8")
    documents = open_documents(path, split="all")
    assert [(d.index, d.text) for d in documents] == [(0, 'two\nlines, one "quoted"'), (2, "plain")]
    assert documents.skipped == {"empty": 1}
    path.write_text("id,text\n1,a,b\n")
    with pytest.raises(DataError, match=r"x\.csv, line 2: more values than the first line names columns"):
        open_documents(path)
    path.write_bytes(b"text\nna\xefve\n")
    with pytest.raises(DataError, match=r"x\.csv, line .*: not a table in UTF-8"):
        open_documents(path)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz", "x.tsv.zst"])
def test_of_a_table_s_columns_of_strings_only_a_known_one_is_taken(tmp_path, name):
    def table(first, *rows):
        separator = "," if ".csv" in name else "\t"
        data = "".join(separator.join(row) + "\n" for row in (first, *rows)).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        if name.endswith(".zst"):
            import pyarrow

            with pyarrow.output_stream(str(path), compression="zstd") as stream:
                stream.write(data)
        return path

    known = table(("title", "author", "content", "source"), ("t", "a", "words", "src0"), ("u", "b", "more", "src1"))
    assert [d.text for d in open_documents(known, split="all")] == ["words", "more"]
    unknown = table(("source", "label", "1st line"), ("src0", "good", "words"), ("src1", "bad", "more"))
    with pytest.raises(DataError, match=r"name one with --text-field; it has source \(text\) 'src0', 'src1';"):
        open_documents(unknown)
    asked = open_documents(unknown, text_field="1st line", split="all")
    assert [d.text for d in asked] == ["words", "more"]


def test_damaged_zst_files_are_named(tmp_path):
    path = _jsonl(tmp_path / "x.jsonl.zst", [{"text": f"{number}" * 50} for number in range(1000)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.jsonl\.zst: cannot be read"):
        list(open_documents(path, split="all"))
    path.write_bytes(b"no zst at all")
    with pytest.raises(DataError, match=r"x\.jsonl\.zst: cannot be read"):
        open_documents(path)
