"""Shared fixtures: a tiny model saved to disk with a tokenizer, a small corpus, the command line in a subprocess."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# read when torch is loaded, here and in subprocesses: threads that wait by spinning slow a shared machine down tenfold
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

WORDS = (
    "the river ran past a mill where grain was ground while children watched wheels turn and birds flew over green "
    "fields towards hills that hid an old stone town built by people who traded salt iron wool with ships from far "
    "coasts each spring until war closed every road and silence fell on markets once loud with many songs of home"
).split()


def corpus_texts(documents: int, seed: int = 0) -> list[str]:
    """Texts of 30 to 120 words drawn by a two-word Markov rule, so that a model's activations have structure."""
    draw = random.Random(seed)
    texts = []
    for _ in range(documents):
        place = draw.randrange(len(WORDS))
        words = []
        for _ in range(draw.randrange(30, 120)):
            words.append(WORDS[place])
            place = (place * 7 + draw.choice((1, 2, 5))) % len(WORDS)
        texts.append(" ".join(words) + ".")
    return texts


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 600 documents under the field `text`."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus_texts(600)))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of width 32 and 4 layers, and a byte-level tokenizer with BOS."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("model"))


def save_tiny_model(family: str, folder: Path) -> Path:
    """Save a tiny random model of a family of `tiny_models.FAMILIES` with a tokenizer of its vocabulary's size."""
    import torch

    from tiny_models import FAMILIES
    from tiny_tokenizers import byte_tokenizer

    torch.manual_seed(0)
    model = FAMILIES[family](vocab_size=300)
    tokenizer = byte_tokenizer(300)
    # a random model's activations have no structure; larger embeddings give tokens and contexts something to differ by
    model.get_input_embeddings().weight.data.mul_(25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_sae(*arguments: object, env: dict[str, str] | None = None, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run the command `sae` in a subprocess."""
    return subprocess.run(
        [sys.executable, "-m", "sae.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )


@pytest.fixture
def train_arguments(tiny_model: Path, corpus: Path) -> list[object]:
    """Arguments of a short training run on the tiny model; --out is left to the test."""
    return [
        "train", "--model", tiny_model, "--dataset", corpus, "--layer", 1, "--width", 128, "--k", 8,
        "--tokens", 12_288, "--batch", 256, "--context", 64, "--contexts", 8, "--buffer-mb", 1, "--log-every", 4,
    ]  # fmt: skip
