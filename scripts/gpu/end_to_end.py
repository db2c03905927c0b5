"""The stage of the GPU kit that runs a randomly initialised GPT-2 small end to end: forward pass, harvest, training."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setting import Row, Setting, peak_memory

if TYPE_CHECKING:
    from sae.harvest.language_model import LanguageModel
    from sae.harvest.stream import Harvest

ROUTES = ("varlen", "masked", "padded", "flex")
"""Routes of attention in the order in which they are timed: flex compiles first, which takes longest."""


def training(setting: Setting) -> Iterator[Row]:
    """Tokens a second of the forward pass, of the harvest by every route of attention, and of harvest and training."""
    import torch

    from sae.config import ConfigError, HarvestConfig
    from sae.harvest.language_model import load_language_model, locate_model

    with tempfile.TemporaryDirectory() as folder:
        layer, context, contexts = (1, 32, 4) if setting.toy else (6, 1024, 16)
        model = random_model(Path(folder), toy=setting.toy)
        tokens = 2048 if setting.toy else 4_000_000
        # documents of 300 tokens: a few share a context
        text = random_text(Path(folder), words=tokens // 8 if setting.toy else tokens // 2)
        settings = HarvestConfig(
            model=str(model), dataset=str(text), layer=layer, context=context, contexts=contexts, bos="none"
        )
        device = torch.device(setting.device)
        lm = load_language_model(locate_model(settings.model, trust_remote_code=False), device=device, precision="auto")
        ids = torch.randint(100, (contexts, context), device=device)
        with torch.no_grad():
            bare: Any = lm.model
            yield {
                "what": "bare forward pass, all layers",
                "tokens/s": rate(partial(bare.get_decoder(), input_ids=ids), ids.numel(), setting),
            }
        reached = 0.0
        # the rate that training is compared with comes before what may be cut off
        for what, changes in (
            ("--contexts auto", {"contexts": "auto"}),
            *((f"--attention {route}", {"attention": route}) for route in ROUTES if route != "flex" or not setting.toy),
        ):
            if what == "--attention flex":
                yield from trained(setting, settings, tokens, Path(folder), reached)
            begun = time.perf_counter()
            try:
                harvest = harvest_of(lm, dataclasses.replace(settings, **changes))
            except ConfigError as error:
                yield {"what": f"harvest, {what}", "note": str(error)}
                continue
            seconds = time.perf_counter() - begun
            speed = harvest_rate(harvest, setting)
            reached = max(reached, speed if what == "--contexts auto" else 0.0)
            yield {
                "what": f"harvest to layer {layer}, {what}",
                "tokens/s": speed,
                "contexts": harvest.contexts_in_a_pass,
                "route": harvest.attention.route,
                "seconds to choose": seconds,
            }
            del harvest
        if setting.toy:
            yield from trained(setting, settings, tokens // 8, Path(folder), reached)


def trained(setting: Setting, settings: Any, tokens: int, folder: Path, harvest: float) -> Iterator[Row]:
    """A short training run, with its share of the harvest's rate in tokens a second."""
    from sae.config import OptimConfig, SAEConfig, TrainConfig
    from sae.training.run import train

    peak_memory(setting)
    with setting.kernels():
        result = train(
            TrainConfig(
                harvest=dataclasses.replace(settings, contexts="auto"),
                sae=SAEConfig(width=64 if setting.toy else 24_576, k=4 if setting.toy else 32),
                optim=OptimConfig(batch=128 if setting.toy else 8192),
                tokens=tokens,
                out=folder / "run",
                device=setting.device,  # type: ignore[arg-type]
            )
        )
    memory = peak_memory(setting)
    reached = result.samples / sum(result.seconds.values())
    yield {
        "what": f"harvest and training, {result.route} route",
        "tokens/s": reached,
        "share of the harvest's rate": reached / harvest,
        "FVU": result.last["fvu"],
        "peak GB": None if memory is None else memory / 2**30,
    }


def harvest_of(lm: LanguageModel, settings: Any) -> Harvest:
    """The harvest that `sae train` would make."""
    from sae.data.documents import open_documents
    from sae.harvest.language_model import measure_width
    from sae.harvest.sites import resolve_sites
    from sae.harvest.stream import Harvest

    site = measure_width(lm.model, resolve_sites(lm.model, ["resid_post"], layer=settings.layer)[0])
    documents = open_documents(settings.dataset, text_field=None, split="train", heldout=settings.heldout)
    return Harvest(lm, [site], documents, settings, tell=print)


def harvest_rate(harvest: Harvest, setting: Setting) -> float:
    """Rows a second of about a second of passes, after two."""
    import torch

    passes = harvest.batches()
    for _ in range(1 if setting.toy else 2):
        next(passes)
    begun, rows = time.perf_counter(), 0
    for harvested in passes:
        rows += harvested.rows.size
        if time.perf_counter() - begun > (0 if setting.toy else 1):
            break
    if not setting.toy:
        torch.cuda.synchronize()
    return rows / (time.perf_counter() - begun)


def rate(function: Callable[[], Any], tokens: int, setting: Setting) -> float:
    """Tokens a second of a call that reads `tokens` tokens: the median of some calls after two."""
    import torch

    seconds = []
    for turn in range(-1 if setting.toy else -2, 2 if setting.toy else 20):
        begun = time.perf_counter()
        function()
        if not setting.toy:
            torch.cuda.synchronize()
        if turn >= 0:
            seconds.append(time.perf_counter() - begun)
    return tokens / statistics.median(seconds)


def random_model(folder: Path, *, toy: bool) -> Path:
    """A randomly initialised GPT-2 small, or a tiny one, saved with a tokenizer of made-up words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number + 2 for number in range(2000)}
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    sizes: dict[str, Any] = {"n_embd": 32, "n_head": 2, "n_layer": 3, "vocab_size": 2002} if toy else {}
    transformers.set_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder / "model")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    return folder / "model"


def random_text(folder: Path, *, words: int) -> Path:
    """A .jsonl file of documents of 300 made-up words each."""
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(2000)]
    with open(folder / "text.jsonl", "w") as file:
        for _ in range(max(40, words // 300)):
            file.write(json.dumps({"text": " ".join(draw.choices(vocabulary, k=300))}) + "\n")
    return folder / "text.jsonl"
