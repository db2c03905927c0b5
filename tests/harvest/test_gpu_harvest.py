"""What only a GPU can show of the harvest; scripts/gpu/check.sh runs these tests, and pytest where there is a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sae.config import HarvestConfig
from sae.data.documents import open_documents
from sae.harvest.attention import choose_attention
from sae.harvest.buffer import LiveBatches
from sae.harvest.language_model import LanguageModel, load_language_model, locate_model, measure_width
from sae.harvest.room import SHARE
from sae.harvest.rows import Rows
from sae.harvest.sites import resolve_sites
from sae.harvest.store import MemoryStore, fill_store
from sae.harvest.stream import Harvest
from sae.selftest.world import LLAMA, VOCABULARY, save_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")
WIDTH = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with heads as wide as those of real models, which kernels of GPUs ask for."""
    sizes = {**LLAMA, "hidden_size": WIDTH, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    built = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=VOCABULARY))
    return save_model(built, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lm(model: Path) -> LanguageModel:
    source = locate_model(str(model), trust_remote_code=False)
    return load_language_model(source, device=GPU, precision="bfloat16")


@pytest.fixture
def settings(model: Path, corpus: Path) -> HarvestConfig:
    return HarvestConfig(model=str(model), dataset=str(corpus), layer=1, context=64, contexts=16, precision="bfloat16")


def harvest_of(lm: LanguageModel, settings: HarvestConfig, **more: Any) -> Harvest:
    sites = [measure_width(lm.model, site) for site in resolve_sites(lm.model, ["resid_post"], layer=1)]
    return Harvest(lm, sites, open_documents(settings.dataset), settings, **more)


def all_rows(harvest: Harvest) -> Rows:
    return Rows.join([harvested.rows.cpu() for harvested in harvest.batches()])


def test_auto_takes_the_varlen_kernel(lm: LanguageModel) -> None:
    attention = choose_attention(lm.model, 64)
    assert attention.route == "varlen", attention.why


@pytest.mark.parametrize("route", ["varlen", "flex"])
def test_a_route_gives_the_rows_of_the_default_attention(
    lm: LanguageModel, settings: HarvestConfig, route: Any
) -> None:
    expected = all_rows(harvest_of(lm, dataclasses.replace(settings, attention="masked")))
    rows = all_rows(harvest_of(lm, dataclasses.replace(settings, attention=route)))
    for column, other in zip(rows[1:], expected[1:], strict=True):
        assert torch.equal(column, other)
    ours, theirs = rows.activations["resid_post.1"].float(), expected.activations["resid_post.1"].float()
    assert (ours - theirs).norm() <= 2e-2 * theirs.norm()


def test_batches_have_equal_bits_with_and_without_a_stream_beside(lm: LanguageModel, settings: HarvestConfig) -> None:
    def batches(overlap: bool) -> Iterator[torch.Tensor]:
        live = LiveBatches(
            harvest_of(lm, settings), ["resid_post.1"], ["resid_post.1"], batch=256, tokens=8192,
            # blocks of the same size: with overlap three share the memory
            buffer_bytes=(3 if overlap else 1) << 18, dtype=torch.bfloat16, seed=0, overlap=overlap,
            on_restart=lambda n: None, device=GPU,
        )  # fmt: skip
        for batch in live.iterate(None):
            # work of a training step, long enough to overtake the harvest were it not waited for
            weights = torch.randn(2048, 2048, device=GPU)
            for _ in range(5):
                weights = weights @ weights.T / 2048
            yield batch.input.clone()

    pairs = list(zip(batches(True), batches(False), strict=True))
    assert len(pairs) == 32
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_store_of_the_cpu_gets_the_rows_that_the_gpu_computed(lm: LanguageModel, settings: HarvestConfig) -> None:
    harvest = harvest_of(lm, settings)
    identity = {"sites": {"resid_post.1": WIDTH}, "precision": "bfloat16"}
    store = fill_store(MemoryStore(identity, 3000), harvest, tokens=3000, progress=lambda rows: None)
    again = harvest_of(lm, settings)
    rows = Rows.join([again.trained_on(harvested.rows).cpu() for harvested in again.batches()]).between(0, 3000)
    kept = store.read(range(3000), ["resid_post.1"])
    assert torch.equal(kept.activations["resid_post.1"], rows.activations["resid_post.1"])
    assert torch.equal(kept.token, rows.token)


@contextlib.contextmanager
def memory_hungry(model: torch.nn.Module) -> Iterator[None]:
    """A forward pass takes a fifth of the GPU's memory for each of its contexts beside what it needs."""
    share = torch.cuda.get_device_properties(GPU).total_memory // 5

    def take(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        torch.empty(len(kwargs["input_ids"]) * share, dtype=torch.uint8, device=GPU)

    hook = model.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        torch.cuda.empty_cache()


def test_a_pass_that_runs_out_of_memory_is_halved_and_loses_no_token(
    lm: LanguageModel, settings: HarvestConfig
) -> None:
    whole = all_rows(harvest_of(lm, settings))
    lines: list[str] = []
    with memory_hungry(lm.model):
        halved = all_rows(harvest_of(lm, settings, tell=lines.append))
    assert lines[0] == "Out of memory with 16 contexts in a forward pass: from now on 8."
    assert len(lines) in (2, 3)
    for column, other in zip(halved[1:], whole[1:], strict=True):
        assert torch.equal(column, other)


def test_auto_finds_a_number_that_leaves_the_memory_that_is_asked_for(
    lm: LanguageModel, settings: HarvestConfig
) -> None:
    lines: list[str] = []
    auto = dataclasses.replace(settings, contexts="auto")
    roomy = harvest_of(lm, auto, tell=lines.append).contexts_in_a_pass
    free = torch.cuda.mem_get_info()[0]
    tight = harvest_of(lm, auto, tell=lines.append, spare=free - int((64 << 20) / SHARE["cuda"]))
    assert 1 <= tight.contexts_in_a_pass <= roomy
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    next(tight.batches())
    assert torch.cuda.max_memory_allocated() - before <= 2 * (64 << 20)
    assert len(lines) == 2
