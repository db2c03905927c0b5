"""Every file that the package writes goes through `sae/base/disk.py`, where it is seen and can be made to fail."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("sae/**/*.py"), *ROOT.glob("kernels/**/*.py")])
WRITERS = {
    "write_text", "write_bytes", "touch", "unlink", "rmdir", "symlink_to", "truncate", "save_file", "save_pretrained",
    "savefig", "to_file", "to_csv", "to_parquet", "copyfile", "copyfileobj", "copytree", "copy2", "rmtree",
    "make_archive", "extractall",
}  # fmt: skip
"""Names of functions and methods that change the disk, whatever they belong to."""
QUALIFIED = {
    "os.replace", "os.rename", "os.remove", "os.open", "shutil.copy", "shutil.move", "sqlite3.connect",
    "torch.save", "np.save", "np.savez",
}  # fmt: skip
EXCEPTIONS = {
    "sae/base/disk.py": "the one place",
    "sae/base/files.py": "safetensors writes a file whose name disk.write_by got",
    "sae/base/locks.py": "a note of the owner's pid, which may be lost",
    "sae/base/npz.py": "NumPy writes to the stream that publish_file gave",
    "sae/browser/lists.py": "a folder that is deleted before the answer is sent",
    "sae/cli/main.py": "/dev/null",
    "sae/data/convert.py": "transformers writes into a folder that publish_folder gave",
    "sae/features/store/database.py": "SQLite writes a file whose name disk.write_by got, or commits by disk.commit",
    "sae/features/store/writer.py": "an array in memory",
    "sae/interop/export/dictionary_learning.py": "torch writes to the stream that write_file gave",
    "sae/pictures/page.py": "a picture in memory",
    "sae/cli/l0.py": "a picture in memory",
    "sae/reporting/figures.py": "a picture in memory",
    "sae/training/run_folder.py": "removes its lock with the folder of a run that was refused",
    "sae/selftest/": "works in a folder of its own, which it damages on purpose",
    "kernels/sae_kernels/": "a cache of timings, of a package that knows nothing of sae",
}
"""File or folder -> why it may."""


def writes(path: Path) -> list[str]:
    """The calls in a file that change the disk, with their lines."""
    calls = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        ours = name.startswith("disk.")
        mode = next((k.value for k in node.keywords if k.arg == "mode"), node.args[1] if len(node.args) > 1 else None)
        opens = name == "open" and isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+")
        if not ours and (last in WRITERS or name in QUALIFIED or opens):
            calls.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    return calls


def test_every_write_goes_through_one_place() -> None:
    elsewhere = [
        call
        for path in SOURCES
        if not str(path.relative_to(ROOT)).startswith(tuple(EXCEPTIONS))
        for call in writes(path)
    ]
    assert not elsewhere, "write through sae/base/files.py"


def test_every_exception_is_needed() -> None:
    for place in EXCEPTIONS:
        files = [path for path in SOURCES if str(path.relative_to(ROOT)).startswith(place)]
        assert any(writes(path) for path in files), place


def test_a_write_elsewhere_would_be_noticed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "x.py"
    elsewhere = ["open(p, 'wb')", "open(p, mode='a')", "p.write_text('x')", "os.replace(a, b)"]
    source.write_text("\n".join([*elsewhere, "open(p)", "disk.unlink(p)"]))
    assert len(writes(source)) == len(elsewhere)
