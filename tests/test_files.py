"""The write seam: whole or not at all, and every change is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae.base.files import (
    CorruptError,
    check_folder,
    parse_json,
    publish_file,
    publish_folder,
    publish_json,
    read_json,
    remove_leftovers,
)


def make_folder(path: Path) -> Path:
    with publish_folder(path) as temporary:
        (temporary / "a.bin").write_bytes(bytes(range(200)))
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b.txt").write_text("text")
    return path


def test_a_published_folder_checks(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    check_folder(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("bit", [0, 77, 1599])
def test_one_flipped_bit_is_noticed_and_named(tmp_path: Path, bit: int) -> None:
    folder = make_folder(tmp_path / "x")
    data = bytearray((folder / "a.bin").read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    (folder / "a.bin").write_bytes(data)
    with pytest.raises(CorruptError, match=r"a\.bin"):
        check_folder(folder)


def test_a_cut_or_missing_file_is_noticed_and_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    (folder / "a.bin").write_bytes(b"short")
    with pytest.raises(CorruptError, match="5 bytes, 200 were written"):
        check_folder(folder)
    (folder / "a.bin").unlink()
    with pytest.raises(CorruptError, match="missing"):
        check_folder(folder)


def test_a_manifest_may_not_point_outside(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    publish_json(folder / "manifest.json", {"files": {"../secret": {"sha256": "0", "bytes": 1}}})
    with pytest.raises(CorruptError, match="outside"):
        check_folder(folder)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")

    def fail(path: Path) -> None:
        with publish_folder(path) as temporary:
            (temporary / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail(folder)
    check_folder(folder)
    publish_file(tmp_path / "f", b"old")

    def cut(stream) -> None:
        stream.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        publish_file(tmp_path / "f", cut)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "x"]


def test_replacing_a_folder_leaves_only_the_new_one(tmp_path: Path) -> None:
    make_folder(tmp_path / "x")
    with publish_folder(tmp_path / "x") as temporary:
        (temporary / "only").write_text("new")
    check_folder(tmp_path / "x")
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["manifest.json", "only"]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".partial-7-abc").mkdir()
    (tmp_path / ".partial-f").write_text("half")
    (tmp_path / "kept").write_text("whole")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "text",
    [b"{", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000, b'"\\uD800"', b'"\xed\xa0\x80"', b'"\xff"'],
    ids=["cut", "nan", "inf", "deep", "half a pair", "half a pair in bytes", "no UTF-8"],
)
def test_hostile_json_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "c.json").write_bytes(text)
    with pytest.raises(CorruptError, match=r"c\.json"):
        read_json(tmp_path / "c.json")


def test_json_with_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}') == {"a": "\U0001f600", "b": "\\ud800"}
