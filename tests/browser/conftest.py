"""One server over two collected runs, and pages in a real browser that may neither err nor leave the machine."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import find_browser
from finished_runs import collected_run, finished_run
from sae.browser.serve import serve
from sae.config import (
    CollectConfig,
    EvalConfig,
    ExplainConfig,
    ImageDataConfig,
    ImageEvalConfig,
    ImageTrainConfig,
    OptimConfig,
    VisionConfig,
)
from sae.evaluation.images import evaluate_images
from sae.evaluation.run import evaluate
from sae.features.collect.collect import collect
from sae.features.explain.explain import explain
from sae.features.store.annotations import Annotations
from sae.training.run import train as train_run

PAYLOAD = "<img src=x onerror=alert(1)><script>alert(2)</script>"
# markup, controls, text that turns around, characters that tokens split, words without an end
HOSTILE = (
    f"{PAYLOAD} &amp; </script><b onmouseover=alert(3)>bold</b>",
    "a\tb\nc\x00d\x1b[31me\x7ff\u202egnirts\u202c \u2066in\u2069 \ufeff\u200bz\u2028line",
    "שלום עולם, זה טקסט מימין לשמאל. مرحبا بالعالم، هذا نص من اليمين إلى اليسار.",
    "日本語のテキスト 🏳️‍🌈 👩‍👩‍👧‍👦 नमस्ते ½ ﷽ ẞ",
    "Donaudampfschifffahrtselektrizitäten" * 8,
    "'; DROP TABLE latents; -- ${7*7} {{7*7}} %s %n \\ \" ' `",
)


@pytest.fixture(scope="session")
def run(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collected, evaluated run of 128 latents with three names, of which tests may change labels."""
    folder = tmp_path_factory.mktemp("browsed") / "first"
    shutil.copytree(collected_run(tiny_model, corpus).folder, folder)
    evaluate(folder, EvalConfig(tokens=1024, downstream_tokens=256, pca_tokens=512, resamples=20))
    # one by the toolkit itself, with what it rests on; two by hand, of which one is no harmless text
    explain(folder, ExplainConfig(latents=(second_most_frequent(folder),)))
    named = {"method": "rules", "score": 0.91, "low": 0.88, "high": 0.94, "precision": 0.8, "recall": 0.7}
    names = {most_frequent(folder): {**named, "name": "words of water"}, 9: {**named, "name": PAYLOAD, "score": 0.6}}
    Annotations(folder).set_names(names)
    return folder


@pytest.fixture(scope="session")
def hostile_run(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same autoencoder collected over texts that would break a careless page; labels and notes hold them too."""
    place = tmp_path_factory.mktemp("hostile")
    texts = place / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(8) for text in HOSTILE))
    folder = place / "<b>second & last"
    shutil.copytree(finished_run(tiny_model, corpus).folder, folder)
    collect(folder, CollectConfig(dataset=str(texts), split="all", tokens=8_192))
    Annotations(folder).set(most_frequent(folder), label=HOSTILE[0], note=HOSTILE[1], bookmark=True)
    return folder


def most_frequent(folder: Path) -> int:
    """The latent that fires most, which every test can rely on to have examples."""
    from sae.features.store.store import FeatureStore

    return int(FeatureStore(folder).scalars["count"].argmax())


def second_most_frequent(folder: Path) -> int:
    """The latent that `sae explain` has named."""
    from sae.features.store.store import FeatureStore

    return int(FeatureStore(folder).scalars["count"].argsort()[-2])


@pytest.fixture(scope="session")
def address(run: Path, hostile_run: Path) -> str:
    """Address of a server over both runs, token included; it ends with the tests."""
    return served([run, hostile_run])


def served(runs: list[Path]) -> str:
    """Address of a server over these runs, in a thread of its own."""
    addresses: queue.Queue[str] = queue.Queue()
    settings = {"ready": addresses.put, "device": "cpu"}
    threading.Thread(target=serve, args=([str(run) for run in runs],), kwargs=settings, daemon=True).start()
    return addresses.get(timeout=60)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    result = find_browser.search(os.environ)
    if result.path is None:
        pytest.skip(result.message)  # tests/conftest.py says so at the end and fails the whole
    with sync_playwright() as playwright:
        browser = find_browser.launch(playwright.chromium, result.path)
        yield browser
        browser.close()


Opened = Callable[..., Page]


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opened]:
    """Opens pages, and fails the test where one logs an error, shows a dialog, or asks another machine for something.

    `opened(address, refusals=True)` lets the browser log the 4xx answers that a test provokes.
    """
    faults: list[str] = []
    contexts = []

    def open_page(
        url: str, *, width: int = 1280, height: int = 800, refusals: bool = False, **settings: object
    ) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)  # pyright: ignore
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda m: m.type in ("error", "warning") and faults.append(f"{m.type}: {m.text}"))
        page.on("request", lambda request: is_local(request.url) or faults.append(f"request: {request.url}"))
        if refusals:
            page.on("console", lambda m: "Failed to load resource" in m.text and faults.pop())
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, faults


def is_local(url: str) -> bool:
    """Whether a request stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "file") or parts.hostname == "127.0.0.1"


def train(out: Path, vision: VisionConfig, data: str = "digits", epochs: int = 6) -> Path:
    """A finished, evaluated and collected run."""
    images, optim = ImageDataConfig(data=data), OptimConfig(batch=100)
    train_run(ImageTrainConfig(images=images, vision=vision, optim=optim, epochs=epochs, out=out, device="cpu"))
    evaluate_images(out, ImageEvalConfig(samples=0, resamples=20))
    collect(out, CollectConfig(device="cpu"))
    return out


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TopK on the pixels of digits."""
    return train(tmp_path_factory.mktemp("pixels") / "digits", VisionConfig(variant="topk", width=24, k=4))


@pytest.fixture(scope="session")
def codebook_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codebook over the 4 x 4 places of digits."""
    vision = VisionConfig(variant="vqvae", width=12, channels=(8,), code_dim=4)
    return train(tmp_path_factory.mktemp("codebook") / "places", vision)


@pytest.fixture(scope="session")
def image_address(image_run: Path, codebook_run: Path) -> str:
    """Address of a server over both runs, token included."""
    return served([image_run, codebook_run])
