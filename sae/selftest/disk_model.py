"""A file system that loses power: which of the issued operations are on the disk is drawn at random.

    disk = DiskModel(root)                      # what is there is on the disk
    for operation in log[:at]:
        disk.perform(operation)
    disk.lose_power(draw).write(root)           # what the next start finds

What is promised, and no more: bytes of a file are on the disk after its fsync, and names in a folder (new, renamed,
removed) after the folder's. A rename is whole or not at all. Before that, of a file's new bytes none, all, the first or
any sectors are there, the rest zeros; and changes of names are there up to a point, or any of them without the earlier.
A transaction of SQLite (journal_mode DELETE, synchronous FULL) is taken as what SQLite says it is, whole and durable.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import NamedTuple

from sae.base.disk import Operation

SECTOR = 512


class Change(NamedTuple):
    """A name in a folder that gets another content: (folder, name) -> file or folder, None for removed."""

    folder: int
    name: str
    node: int | None


class Tree(NamedTuple):
    """Folders and files by number; 0 is the root."""

    folders: dict[int, dict[str, int]]
    files: dict[int, bytes]

    def copy(self) -> Tree:
        return Tree({number: dict(names) for number, names in self.folders.items()}, dict(self.files))

    def apply(self, changes: list[Change]) -> None:
        """Change names; a folder that was not known is empty."""
        for folder, name, node in changes:
            names = self.folders.setdefault(folder, {})
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node

    def paths(self, number: int = 0, prefix: str = "") -> dict[str, bytes | None]:
        """Path -> content of all files below a folder; None for a folder."""
        paths: dict[str, bytes | None] = {}
        for name, node in self.folders.get(number, {}).items():
            if node in self.files:
                paths[prefix + name] = self.files[node]
            else:
                paths |= {prefix + name: None, **self.paths(node, f"{prefix}{name}/")}
        return paths

    def write(self, root: Path) -> None:
        """Make the tree in an empty folder."""
        for path, content in self.paths().items():
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)


class DiskModel:
    """Folders and files as programs see them, and as the disk has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count(1)
        self.seen = Tree({0: {}}, {})
        self._scan(root, 0)
        self.durable = self.seen.copy()
        self._waiting: list[list[Change]] = []

    def perform(self, operation: Operation) -> None:
        """Take an operation as issued; `data` must have the bytes of a file that is written."""
        kind, data = operation.kind, operation.data or b""
        folder, name = self._place(operation.path)
        node = self.seen.folders[folder].get(name)
        if kind == "make_folder":
            if node is None:
                number = next(self._numbers)
                self.seen.folders[number] = {}
                self._change([Change(folder, name, number)])
        elif kind in ("write", "append", "commit"):
            if node is None or kind == "write":
                node = next(self._numbers)
                self.seen.files[node] = b""
                self._change([Change(folder, name, node)])
            self.seen.files[node] = self.seen.files[node] + data if kind == "append" else data
            if kind == "commit":
                self.durable.files[node] = data
                self._settle(folder)
        elif kind == "fsync":
            assert node is not None, operation
            self.durable.files[node] = self.seen.files[node]
        elif kind == "rename":
            assert operation.target is not None, operation
            self._change([Change(folder, name, None), Change(*self._place(operation.target), node)])
        elif kind in ("unlink", "remove_folder"):
            if node is not None:
                self._change([Change(folder, name, None)])
        else:
            self._settle(0 if operation.path == self.root else node or 0)

    def lose_power(self, draw: random.Random) -> Tree:
        """What is on the disk at the next start."""
        tree = self.durable.copy()
        if draw.random() < 0.5:  # a journal keeps the order
            waiting = self._waiting[: draw.randrange(len(self._waiting) + 1)]
        else:
            share = draw.choice((0.0, 0.2, 0.5, 0.8, 1.0))
            waiting = [changes for changes in self._waiting if draw.random() < share]
        for changes in waiting:
            tree.apply(changes)
        for number, content in self.seen.files.items():
            if tree.files.get(number) != content:
                tree.files[number] = _torn(tree.files.get(number, b""), content, draw)
        return tree

    def _change(self, changes: list[Change]) -> None:
        self.seen.apply(changes)
        self._waiting.append(changes)

    def _settle(self, folder: int) -> None:
        """The changes of names in a folder are on the disk."""
        rest = []
        for changes in self._waiting:
            if any(change.folder == folder for change in changes):
                self.durable.apply(changes)
            else:
                rest.append(changes)
        self._waiting = rest

    def _place(self, path: Path) -> tuple[int, str]:
        """The folder that a path lies in, and its name there."""
        if path == self.root:
            return 0, ""
        *above, name = path.relative_to(self.root).parts
        folder = 0
        for part in above:
            if part not in self.seen.folders[folder]:  # made past the seam: nothing says that it is on the disk
                number = next(self._numbers)
                self.seen.folders[number] = {}
                self._change([Change(folder, part, number)])
            folder = self.seen.folders[folder][part]
        return folder, name

    def _scan(self, path: Path, number: int) -> None:
        for child in sorted(path.iterdir()):
            node = next(self._numbers)
            self.seen.folders[number][child.name] = node
            if child.is_dir():
                self.seen.folders[node] = {}
                self._scan(child, node)
            else:
                self.seen.files[node] = child.read_bytes()


def _torn(old: bytes, new: bytes, draw: random.Random) -> bytes:
    """A file whose bytes `old` are on the disk, and of the others some."""
    kind = draw.randrange(4)
    if kind == 0:
        return old
    if kind == 1:
        return new
    if kind == 2:  # cut at a sector
        return new[: max(len(old), draw.randrange(len(new) // SECTOR + 1) * SECTOR)]
    data = bytearray(new)
    for begin in range(len(old) // SECTOR * SECTOR, len(new), SECTOR):
        if draw.random() < 0.5:
            lost = slice(max(begin, len(old)), min(begin + SECTOR, len(new)))
            data[lost] = bytes(max(0, lost.stop - lost.start))
    return bytes(data)
