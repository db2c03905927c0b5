"""Changes to a file's bytes: of any bytes, of JSON, of .safetensors, of .npz and .npy, of SQLite pages.

    mutate("config.json", content, draw)

A change that knows the format gets further into a reader than one of random bytes; each is drawn half of the time.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
DEEP = 3_000
Mutation = Callable[[bytes, random.Random], bytes]


class Verbatim(str):
    """Text that stands in JSON as it is."""

    __slots__ = ()


HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, "", "x", "\0", "\ud800", "é" * 1_000,
    "x" * 100_000, "../../etc/passwd", "/etc/passwd", [], {}, [None], [[]], {"": None}, [0] * 1_000, {"name": "topk"},
    Verbatim("NaN"), Verbatim("-Infinity"), Verbatim("1e999"), Verbatim("[" * DEEP + "]" * DEEP),
    Verbatim('{"a":' * DEEP + "1" + "}" * DEEP), Verbatim('{"a": 1, "a": 2}'), Verbatim("1" * 5_000),
)  # fmt: skip
"""Values that a record should not have."""


def mutate(name: str, content: bytes, draw: random.Random) -> bytes:
    """The content of a file of that name, changed once or several times."""
    suffix = name[name.rfind(".") :].lower()
    aware = BY_SUFFIX.get(suffix)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if aware is not None and draw.random() < 0.5:
            try:
                content = aware(content, draw)
            except (TypeError, ValueError, LookupError, AttributeError):
                content = flip(content, draw)  # an earlier change left nothing of the format
        else:
            content = draw.choice(ANYWHERE)(content, draw)
    return content


def _place(content: bytes | bytearray, draw: random.Random) -> int:
    """A place in the file, half of the time in its first 512 bytes."""
    size = max(1, len(content))
    return draw.randrange(min(size, 512) if draw.random() < 0.5 else size)


def flip(content: bytes, draw: random.Random) -> bytes:
    """A few bits."""
    data = bytearray(content or b"\0")
    for _ in range(draw.randrange(1, 9)):
        data[_place(data, draw)] ^= 1 << draw.randrange(8)
    return bytes(data)


def number(content: bytes, draw: random.Random) -> bytes:
    """A number of 1, 2, 4 or 8 bytes at the edge of its range."""
    size, begin = draw.choice((1, 2, 4, 8)), _place(content, draw)
    order = "little" if draw.random() < 0.7 else "big"
    value = (draw.choice(INTERESTING) & ((1 << 8 * size) - 1)).to_bytes(size, order)
    return content[:begin] + value + content[begin + size :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """Cut short."""
    return content[: _place(content, draw)]


def remove(content: bytes, draw: random.Random) -> bytes:
    """A piece is missing."""
    begin = _place(content, draw)
    return content[:begin] + content[begin + draw.choice((1, 2, 8, 64, 4096)) :]


def insert(content: bytes, draw: random.Random) -> bytes:
    """Random bytes, or a piece of the file again."""
    begin, size = _place(content, draw), draw.choice((1, 2, 8, 64, 4096))
    source = _place(content, draw)
    piece = draw.randbytes(size) if draw.random() < 0.5 else content[source : source + size]
    return content[:begin] + piece + content[begin:]


def overwrite(content: bytes, draw: random.Random) -> bytes:
    """Another piece of the file, zeros or random bytes in place of one."""
    begin, size, source = _place(content, draw), draw.choice((4, 16, 512, 4096)), _place(content, draw)
    piece = draw.choice((bytes(size), draw.randbytes(size), content[source : source + size]))
    return content[:begin] + piece + content[begin + len(piece) :]


def anything(content: bytes, draw: random.Random) -> bytes:
    """Random bytes alone, or nothing."""
    return draw.randbytes(draw.choice((0, 1, 7, 8, 64, 1_000)))


ANYWHERE: tuple[Mutation, ...] = (flip, flip, number, number, cut, remove, insert, overwrite, anything)


def in_json(content: bytes, draw: random.Random) -> bytes:
    """One value replaced by a hostile one, one key removed, doubled or renamed."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return flip(content, draw)
    return dumped(_changed(value, draw)).encode("utf-8", "surrogatepass")


def dumped(value: Any) -> str:
    """A value as JSON, in which `Verbatim` text stands as it is."""
    if isinstance(value, Verbatim):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {dumped(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


def _changed(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """The value with one change at a random depth."""
    inside = isinstance(value, (dict, list)) and len(value) > 0
    if not inside or draw.random() < 0.1 * depth:
        return draw.choice(HOSTILE)
    if isinstance(value, list):
        index = draw.randrange(len(value))
        return [*value[:index], _changed(value[index], draw, depth + 1), *value[index + 1 :]]
    name = draw.choice(list(value))
    kind = draw.random()
    if kind < 0.1:
        return {k: v for k, v in value.items() if k != name}
    if kind < 0.15:
        return {k if k != name else k + draw.choice(("x", "\0", " ")): v for k, v in value.items()}
    if kind < 0.2:
        # the key twice, which a dict cannot hold
        both = f"{json.dumps(name)}: {dumped(value[name])}, {json.dumps(name)}: {dumped(draw.choice(HOSTILE))}"
        return Verbatim("{" + both + "}")
    return {**value, name: _changed(value[name], draw, depth + 1)}


def in_lines(content: bytes, draw: random.Random) -> bytes:
    """One line of a .jsonl file changed as JSON."""
    lines = content.split(b"\n")
    index = draw.randrange(len(lines))
    return b"\n".join([*lines[:index], in_json(lines[index], draw), *lines[index + 1 :]])


def in_safetensors(content: bytes, draw: random.Random) -> bytes:
    """The header's JSON changed and its length mended; or a length that lies."""
    if len(content) < 8:
        return flip(content, draw)
    size = struct.unpack("<Q", content[:8])[0]
    header, body = content[8 : 8 + size], content[8 + size :]
    kind = draw.random()
    if kind < 0.15:
        return struct.pack("<Q", draw.choice(INTERESTING)) + content[8:]
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError):
        return flip(content, draw)
    tensors = tensors if isinstance(tensors, dict) else {}
    names = [name for name in tensors if isinstance(tensors[name], dict) and "shape" in tensors[name]]
    if kind < 0.7 and names:
        entry = dict(tensors[draw.choice(names)])
        name = draw.choice(names)
        what = draw.choice(("shape", "dtype", "data_offsets"))
        if what == "shape":
            turned = entry["shape"][::-1] if isinstance(entry["shape"], list) else []
            entry["shape"] = draw.choice(([], [0], [1 << 40], [1 << 31, 1 << 31], [-1, 4], [1] * 70, turned))
        elif what == "dtype":
            entry["dtype"] = draw.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "nothing", "f32"))
        else:
            entry["data_offsets"] = draw.choice(([0, 0], [0, 4], [4, 0], [0, len(body)], [0, 1 << 62], [-4, 0]))
        header = dumped({**tensors, name: entry}).encode()
    else:
        header = dumped(_changed(tensors, draw)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + body


SHAPES = ((), (0,), (1 << 40,), (1 << 20, 1 << 20), (-1,), (2, 2), (3, 0, 5), (1,) * 40)
TYPES = ("<f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<c8", "|O", "<U9", "|V1", "<M8[s]", "[('a', '<f4')]", "x")


def in_npy(content: bytes, draw: random.Random) -> bytes:
    """The header's type or shape replaced, its length mended."""
    if content[:6] != b"\x93NUMPY" or len(content) < 12:
        return flip(content, draw)
    size = struct.unpack("<H", content[8:10])[0]
    body = content[10 + size :]
    text = content[10 : 10 + size].decode("latin1")
    kind = draw.random()
    if kind < 0.5:
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {draw.choice(SHAPES)!r}, }}"
    elif kind < 0.9:
        text = f"{{'descr': {draw.choice(TYPES)!r}, 'fortran_order': {draw.random() < 0.5}, 'shape': (4, 8), }}"
    else:
        text = draw.choice(("{}", "[" * 500, "{'descr': '<f4'}", "__import__('os')", text * 20, "9" * 60_000))
    header = text.encode("latin1") + b"\n"
    return content[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + body


def in_npz(content: bytes, draw: random.Random) -> bytes:
    """One member changed, with another name or packed so that a few bytes become many."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        return flip(content, draw)
    if not members:
        return flip(content, draw)
    name, kind = draw.choice(list(members)), draw.random()
    if kind < 0.5:
        members[name] = in_npy(members[name], draw)
    elif kind < 0.7:
        members[name] = draw.choice(ANYWHERE)(members[name], draw)
    elif kind < 0.8:
        members[draw.choice(("../x.npy", "x", "", name.upper()))] = members.pop(name)
    else:
        length = 48 << 20
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({length // 4},), }}\n".encode()
        members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(length)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, data in members.items():
            archive.writestr(
                zipfile.ZipInfo(member or "empty"), data, zipfile.ZIP_DEFLATED if len(data) > 1 << 20 else None
            )
    return stream.getvalue()


def in_sqlite(content: bytes, draw: random.Random) -> bytes:
    """A byte of a page's head, of the cells' places, or of the file's first 100 bytes."""
    page = draw.randrange(max(1, len(content) // 4096)) * 4096
    begin = page + draw.randrange(100 if page == 0 else 16)
    value = bytes([draw.choice((0, 1, 2, 5, 10, 13, 0x7F, 0x80, 0xFF, draw.randrange(256)))])
    return content[:begin] + value + content[begin + 1 :]


BY_SUFFIX: dict[str, Mutation] = {
    ".json": in_json,
    ".jsonl": in_lines,
    ".safetensors": in_safetensors,
    ".npy": in_npy,
    ".npz": in_npz,
    ".sqlite": in_sqlite,
}
"""Ending of a file -> a change that knows its format."""
