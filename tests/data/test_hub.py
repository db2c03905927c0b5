import json

import pytest

from sae.data import hub
from sae.data.documents import DataError, open_documents
from sae.data.hub import read_on


class Broken:
    """Rows 0 .. 9, breaking before each row of `breaks` once."""

    def __init__(self, breaks, error=None):
        self.breaks, self.error, self.opened = list(breaks), error or ConnectionError("reset"), []

    def __call__(self, start):
        self.opened.append(start)
        for row in range(start, 10):
            if row in self.breaks:
                self.breaks.remove(row)
                raise self.error
            yield row


def test_broken_stream_goes_on_without_gap_or_repeat():
    source, pauses = Broken([0, 4, 4, 9]), []
    assert list(read_on(source, 0, "name", sleep=pauses.append)) == list(range(10))
    assert source.opened == [0, 0, 4, 4, 9]
    assert pauses == [1, 1, 4, 1]


def test_stream_that_stays_broken_is_a_clean_error_naming_the_row():
    source = Broken([4] * 3)
    rows, got = read_on(source, 2, "name", pauses=(0, 0), sleep=lambda seconds: None), []
    with pytest.raises(DataError, match=r"name: the connection failed at row 4, and 2 more times \(ConnectionError: r"):
        got.extend(rows)
    assert got == [2, 3]


def test_rows_that_cannot_be_parsed_are_not_tried_again():
    source = Broken([4], ValueError("bad JSON"))
    with pytest.raises(DataError, match=r"name: row 4 cannot be read \(ValueError: bad JSON\)"):
        list(read_on(source, 0, "name", sleep=lambda seconds: pytest.fail("waited")))


@pytest.fixture
def hub_of_one(tmp_path, monkeypatch):
    """A hub whose only data set, `owner/name` with configuration `small`, is a local file, streamed."""
    import datasets
    import huggingface_hub

    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"n": n, "content": f"text {n}"}) + "\n" for n in range(30)))
    load, asked = datasets.load_dataset, []

    def load_dataset(name, config, **options):
        asked.append((name, config, options.pop("revision")))
        if config != "small":
            raise ValueError("Config name is missing. Please pick one among: ['small']")
        return load("json", data_files=str(path), **options)

    class Api:
        def dataset_info(self, name, revision=None):
            return type("Info", (), {"sha": "c0ffee"})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.chdir(tmp_path)
    return asked


def test_hub_data_set_is_streamed_at_one_commit(hub_of_one):
    documents = open_documents("owner/name:small", split="all")
    assert [(d.index, d.text) for d in documents.iterate(12)] == [(n, f"text {n}") for n in range(12, 30)]
    assert documents.provenance["revision"] == "c0ffee"
    assert documents.provenance["text_field"] == "content"
    assert set(hub_of_one) == {("owner/name", "small", "c0ffee")}


def test_missing_configuration_lists_them(hub_of_one):
    with pytest.raises(DataError, match=r"owner/name: Config name is missing.*'small'.*owner/name:NAME"):
        open_documents("owner/name")


def test_hub_out_of_reach_is_said_at_once(monkeypatch, tmp_path):
    import huggingface_hub

    class Api:
        def dataset_info(self, name, revision=None):
            raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    with pytest.raises(
        DataError, match=r"corpsu: no local file or folder, and the hub cannot be reached.*there is corpus"
    ):
        open_documents("corpsu")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "the hub has no such data set"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "no revision 'v2'"),
    ],
)
def test_hub_refusals_are_told_apart(monkeypatch, error, message):
    from unittest.mock import Mock

    import huggingface_hub

    # raised without going through a response
    refusal = getattr(huggingface_hub.errors, error)
    refused = refusal.__new__(refusal)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Mock(dataset_info=Mock(side_effect=refused)))
    with pytest.raises(DataError, match=message):
        hub.resolve_revision("owner/name", "v2")
