"""Passes that begin at a site give what whole passes give, in every family; where they cannot, they say so."""

from __future__ import annotations

import pytest
import torch

from sae.harvest.hooks import splice
from sae.harvest.replay import Passes
from sae.harvest.sites import SiteError, resolve_sites
from tiny_models import FAMILIES, example_inputs

IMAGES = {"vit", "deit", "dinov2", "dinov3", "clip_vision", "siglip_vision"}
TEXT = [name for name in FAMILIES if name not in IMAGES and name != "albert"]


def turned(activation: torch.Tensor) -> torch.Tensor:
    return activation.flip(-1)


@pytest.mark.parametrize("family", TEXT)
def test_a_pass_from_the_site_gives_the_logits_of_a_whole_pass(family: str) -> None:
    model = FAMILIES[family]()
    inputs = example_inputs(model, batch=2, length=9)
    for kind in ("resid_pre", "resid_post", "mlp_out", "mlp_in", "attn_out"):
        try:
            site = resolve_sites(model, f"{kind}.1")[0]
        except SiteError:
            continue
        passes = Passes(model)
        passes.verify(inputs, [[site]])
        assert (passes.whole, passes.head_joined) == (None, None), kind
        clean = passes.clean(inputs, [site], [[site]])
        hidden = passes.spliced(clean, {site: turned})
        with torch.no_grad(), splice(model, {site: turned}):
            expected = model(**inputs).logits
        assert torch.allclose(passes.logits(hidden[1]), expected[1], rtol=1e-5, atol=1e-5), kind
        assert not torch.allclose(passes.logits(clean.hidden[1]), expected[1], rtol=1e-2, atol=1e-3), kind


def test_several_sites_are_replaced_in_one_pass_from_the_first_of_them() -> None:
    model = FAMILIES["llama"]()
    inputs = example_inputs(model, batch=2, length=9)
    sites = resolve_sites(model, ["resid_post.2", "mlp_out.1"])
    passes = Passes(model)
    passes.verify(inputs, [sites])
    assert passes.start(sites) == 1
    clean = passes.clean(inputs, sites, [sites])
    hidden = passes.spliced(clean, dict.fromkeys(sites, turned))
    with torch.no_grad(), splice(model, dict.fromkeys(sites, turned)):
        assert torch.allclose(passes.logits(hidden[0]), model(**inputs).logits[0], rtol=1e-5, atol=1e-5)


def test_blocks_in_front_of_the_site_are_not_computed() -> None:
    model = FAMILIES["llama"]()
    inputs = example_inputs(model)
    sites = resolve_sites(model, ["resid_post.1"])
    passes = Passes(model)
    passes.verify(inputs, [sites])
    clean = passes.clean(inputs, sites, [sites])
    counts = [0] * 3
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: counts.__setitem__(number, counts[number] + 1))
    passes.spliced(clean, {sites[0]: turned})
    assert counts == [0, 0, 1]
    passes.clean(inputs, sites)
    assert counts == [1, 1, 2], "afterwards the model is as it was"


def test_a_model_that_hands_on_more_than_its_blocks_return_is_run_whole() -> None:
    """The last block adds what block 0 computed in the same pass, as families that share keys between layers do."""
    model = FAMILIES["llama"]()
    inputs = example_inputs(model)
    shared = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: shared.append(output))

    def add(module, args):
        return (args[0] + shared.pop(), *args[1:])

    model.model.layers[2].register_forward_pre_hook(add)
    sites = resolve_sites(model, ["resid_post.1"])
    passes = Passes(model)
    passes.verify(inputs, [sites])
    assert passes.whole is not None
    assert "resid_post.1" in passes.whole
    clean = passes.clean(inputs, sites, [sites])
    hidden = passes.spliced(clean, {sites[0]: turned})
    with torch.no_grad(), splice(model, {sites[0]: turned}):
        assert torch.allclose(passes.logits(hidden[0]), model(**inputs).logits[0], rtol=1e-5, atol=1e-5)


def test_layers_that_share_one_block_are_run_whole() -> None:
    model = FAMILIES["albert"]()
    sites = resolve_sites(model, ["resid_post.1"])
    assert Passes(model).start(sites) == 0


def test_a_head_that_cannot_run_alone_gives_the_same_logits() -> None:
    model = FAMILIES["llama"]()
    inputs = example_inputs(model)
    plain = type(model).forward

    def scaled(self, input_ids, **kwargs):
        output = plain(self, input_ids=input_ids, **kwargs)
        output.logits = output.logits * input_ids[..., None]
        return output

    model.forward = scaled.__get__(model)
    sites = resolve_sites(model, ["resid_post.1"])
    passes = Passes(model)
    passes.verify(inputs, [sites])
    assert passes.head_joined is not None
    clean = passes.clean(inputs, sites, [sites])
    with torch.no_grad():
        assert torch.equal(passes.logits(clean.hidden[0]), model(**inputs).logits[0])
        with splice(model, {sites[0]: turned}):
            expected = model(**inputs).logits
    assert torch.allclose(passes.spliced(clean, {sites[0]: turned}), expected, rtol=1e-5, atol=1e-5)
