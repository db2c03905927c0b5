"""Every route of attention gives the activations that each document has alone; what a model cannot take is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sae.config import ConfigError
from sae.data.documents import Document
from sae.data.packing import Contexts, pack
from sae.harvest.attention import Attention, choose_attention
from sae.harvest.forward import Forward
from sae.harvest.sites import resolve_sites
from sae.selftest.world import SENTENCES, byte_tokenizer
from tiny_models import FAMILIES

CONTEXT = 48
PACKED = ["gpt2", "llama", "mistral", "gemma3", "deepseek_v3"]
"""Learned and rotary positions, grouped heads, windows shorter than a document, keys wider than values."""


class Listed:
    def iterate(self, start: int = 0) -> Iterator[Document]:
        return (Document(number, text) for number, text in enumerate(SENTENCES) if number >= start)


def model_of(family: str) -> torch.nn.Module:
    return FAMILIES[family](vocab_size=512)


def batch_for(attention: Attention) -> Contexts:
    isolate = "pad" if attention.isolation == "pad" else "pack"
    return next(pack(Listed(), byte_tokenizer(), context=CONTEXT, batch=6, isolate=isolate))


def error_against_each_document_alone(model: torch.nn.Module, attention: Attention) -> float:
    """Largest relative error of a document's activations at the last layer; several documents share a context."""
    contexts, sites = batch_for(attention), resolve_sites(model, ["resid_post"], layer=1)
    together = Forward(model, attention, context=CONTEXT, tell=print).captured(contexts, sites)[sites[0].name]
    alone = Forward(model, Attention("padded", "pad", "", model), context=CONTEXT, tell=print)
    worst = 0.0
    for document in contexts.document.unique().tolist():
        for row in (contexts.document == document).any(1).nonzero().flatten().tolist() if document >= 0 else ():
            here = contexts.document[row] == document
            one = contexts._replace(
                tokens=contexts.tokens[row, here][None], document=contexts.document[row, here][None]
            )
            expected = alone.captured(one, sites)[sites[0].name][0]
            worst = max(worst, ((together[row, here] - expected).norm() / expected.norm()).item())
    return worst


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Flex attention by its own formula: compiling takes minutes on a CPU."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("route", ["varlen", "flex", "masked", "padded"])
@pytest.mark.parametrize("family", PACKED)
def test_documents_that_share_a_context_have_the_activations_of_each_alone(family: str, route: str) -> None:
    model = model_of(family)
    attention = choose_attention(model, CONTEXT, route)
    assert attention.route == route
    contexts = batch_for(attention)
    documents = max(len(set(row.tolist()) - {-1}) for row in contexts.document)
    assert (documents > 1) == (route != "padded")
    assert error_against_each_document_alone(model, attention) < 1e-5


def test_without_the_route_documents_see_each_other() -> None:
    model = model_of("llama")
    attention = choose_attention(model, CONTEXT, "varlen")
    contexts = batch_for(attention)
    sites = resolve_sites(model, ["resid_post"], layer=1)
    forward = Forward(model, attention, context=CONTEXT, tell=print)
    one_document = contexts._replace(position=torch.arange(CONTEXT).expand_as(contexts.tokens))
    apart, joined = (forward.captured(c, sites)[sites[0].name] for c in (contexts, one_document))
    assert (apart - joined).norm() > 1e-2 * apart.norm()


def test_the_varlen_route_makes_no_mask_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae.harvest import varlen

    model = model_of("mistral")
    attention = choose_attention(model, CONTEXT, "varlen")
    windows: list[int | None] = []
    attend = varlen._one_by_one

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: varlen.Segments, scale: float | None):
        windows.append(segments.window)
        return attend(q, k, v, segments, scale)

    monkeypatch.setattr(varlen, "_one_by_one", noted)
    sites = resolve_sites(model, ["resid_post"], layer=1)
    Forward(model, attention, context=CONTEXT, tell=print).captured(batch_for(attention), sites)
    assert windows == [4, 4]
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("family", "route", "said"),
    [
        ("gemma2", "varlen", "its attention has softcap"),
        ("gpt_neo", "varlen", "have an attention of their own"),
        ("opt", "flex", "does not tell documents apart by their positions"),
        ("bloom", "masked", "no mask cuts the attention of BloomForCausalLM; try padded"),
        ("mamba", "varlen", "does not tell documents apart"),
        ("bert", "varlen", "does not tell documents apart"),
    ],
)
def test_a_route_that_a_model_cannot_take_is_refused_with_the_reason(family: str, route: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        choose_attention(model_of(family), CONTEXT, route)
    assert str(refused.value).startswith(f"--attention {route}: ")


@pytest.mark.parametrize(("family", "route"), [("llama", "masked"), ("bloom", "padded"), ("opt", "masked")])
def test_on_a_cpu_auto_takes_the_models_default_attention(family: str, route: str) -> None:
    attention = choose_attention(model_of(family), CONTEXT)
    assert attention.route == route
    assert f"{route} attention (on a cpu); --attention sets another." in attention.line()
