"""Attached autoencoders: what they read, what they change, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from sae.config import ConfigError
from sae.harvest.attach import Session, attach
from sae.harvest.hooks import capture, harvest_forward, splice
from sae.harvest.intervene import TooStrongError
from sae.harvest.sites import SiteError, resolve_sites
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import ReLU, TopK
from tiny_models import FAMILIES, D

DECODERS = ["gpt2", "llama", "gemma3", "gpt_neox", "granite", "mamba"]
SITE = "resid_post.1"
IDS = torch.tensor([[11, 25, 37, 44, 52], [63, 71, 80, 94, 15]])


def autoencoder(code: Any = None, width: int = 64, dim: int = D, **settings: Any) -> Autoencoder:
    """A random one whose reconstruction is not the input."""
    model = Autoencoder(dim, width, code or TopK(6), **settings)
    draws = torch.Generator().manual_seed(3)
    model.initialise(draws)
    with torch.no_grad():
        model.b_enc.copy_(0.1 * torch.randn(model.b_enc.shape, generator=draws))
        model.dictionary.b.copy_(0.1 * torch.randn(model.dim_out, generator=draws))
    return model.eval()


@pytest.fixture(params=DECODERS)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@pytest.fixture
def llama() -> Any:
    return FAMILIES["llama"]()


def activations(model: nn.Module, ids: Tensor, site: str = SITE) -> Tensor:
    (place,) = resolve_sites(model, site)
    return harvest_forward(model, {"input_ids": ids}, [place])[place.name]


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **inputs: Any) -> Tensor:
    return model(input_ids=ids, **inputs).logits


def test_codes_are_those_of_the_activations_and_know_their_places(model: Any) -> None:
    a = autoencoder()
    plain = logits(model)
    with attach(model, {SITE: a}) as session:
        read = logits(model)
    torch.testing.assert_close(read, plain, rtol=0, atol=0)
    expected = a.encode(activations(model, IDS).flatten(0, 1)).to_dense()
    torch.testing.assert_close(session.codes[SITE].to_dense(), expected)
    torch.testing.assert_close(session.dense(SITE), expected.view(2, 5, -1))
    torch.testing.assert_close(session.latents(SITE, [7, 3]), expected.view(2, 5, -1)[..., [7, 3]])
    assert session.batch.tolist() == [0] * 5 + [1] * 5
    assert session.position.tolist() == [*range(5), *range(5)]
    assert session.shape == (2, 5)


@pytest.mark.parametrize("code", [TopK(6), ReLU()], ids=["topk", "relu"])
def test_generation_with_a_cache_reads_what_a_forward_of_the_whole_text_reads(model: Any, code: Any) -> None:
    places = {SITE: autoencoder(code)}
    with attach(model, places) as session:
        text = model.generate(IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    with attach(model, places) as whole:
        logits(model, text[:, :-1])  # the last token is never an input
    assert session.shape == (2, 10)
    torch.testing.assert_close(session.dense(SITE), whole.dense(SITE), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["splice", "steer", "set", "ablate"])
def test_generation_with_a_cache_is_generation_without(model: Any, mode: Any) -> None:
    a = autoencoder()
    latents: Any = {"splice": None, "steer": {3: 8.0}, "set": {3: 8.0}, "ablate": list(range(40))}[mode]
    texts = []
    for cached in (True, False):
        with attach(model, {SITE: a}, mode, latents=latents) as session:
            settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
            texts.append(
                model.generate(IDS, use_cache=cached, output_logits=True, return_dict_in_generate=True, **settings)
            )
        assert session.shape == (2, 9)
    assert texts[0].sequences.equal(texts[1].sequences)
    torch.testing.assert_close(torch.stack(texts[0].logits), torch.stack(texts[1].logits), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("mode", ["read", "splice", "set"])
def test_padding_on_either_side_leaves_codes_and_logits_of_the_tokens_alone(family: str, mode: Any) -> None:
    model, a = FAMILIES[family](), autoencoder()
    long, short = IDS[0], IDS[1, :3]
    latents = {5: 3.0} if mode == "set" else None
    alone = []
    for ids in (long, short):
        with attach(model, {SITE: a}, mode, latents=latents) as session:
            alone.append((logits(model, ids[None])[0], session.codes[SITE].to_dense()))
    for side in ("left", "right"):
        pad = (2, 0) if side == "left" else (0, 2)
        ids = torch.stack([long, nn.functional.pad(short, pad)])
        mask = torch.stack([torch.ones(5), nn.functional.pad(torch.ones(3), pad)]).long()
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with attach(model, {SITE: a}, mode, latents=latents) as session:
            rows = logits(model, ids, attention_mask=mask, position_ids=positions)
        codes = session.codes[SITE].to_dense()
        assert session.real.equal(mask.bool())
        for text, (own_logits, own_codes) in enumerate(alone):
            torch.testing.assert_close(codes[session.batch == text], own_codes, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(rows[text][mask[text].bool()], own_logits, rtol=1e-4, atol=1e-4)
        assert not session.dense(SITE)[~mask.bool()].any()


def test_a_padded_batch_generates_with_a_cache_what_each_text_does_alone(llama: Any) -> None:
    a = autoencoder()
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    ids, mask = torch.tensor([[0, 0, 63, 71, 80]]), torch.tensor([[0, 0, 1, 1, 1]])
    with attach(llama, {SITE: a}, "steer", latents={3: 4.0}) as alone:
        expected = llama.generate(ids[:, 2:], **settings)[:, 3:]
    with attach(llama, {SITE: a}, "steer", latents={3: 4.0}) as session:
        batch = torch.cat([IDS[:1], ids]), torch.cat([torch.ones_like(mask), mask])
        texts = llama.generate(batch[0], attention_mask=batch[1], **settings)
    assert texts[1:, 5:].equal(expected)
    assert session.position[session.batch == 1].tolist() == [2, 3, 4, 5, 6, 7]
    torch.testing.assert_close(session.dense(SITE)[1:, 2:], alone.dense(SITE), rtol=1e-4, atol=1e-4)


def test_splice_is_the_reconstruction_and_with_the_error_the_plain_model(model: Any) -> None:
    a = autoencoder()
    (site,) = resolve_sites(model, SITE)
    with splice(model, {site: lambda x: a(x.flatten(0, 1)).reconstruction.view_as(x)}):
        expected = logits(model)
    with attach(model, {SITE: a}, "splice"):
        spliced = logits(model)
    with attach(model, {SITE: a}, "splice", error=True):
        whole = logits(model)
    torch.testing.assert_close(spliced, expected)
    torch.testing.assert_close(whole, logits(model), rtol=1e-4, atol=1e-4)
    assert (spliced - whole).abs().max() > 1e-2


def test_steer_set_and_ablate_move_along_the_atom_by_their_formula(model: Any) -> None:
    a = autoencoder()
    x = activations(model, IDS)
    codes, atoms = a.encode(x.flatten(0, 1)).to_dense().view(2, 5, -1), a.dictionary.W.detach()
    latent = int(codes.sum((0, 1)).argmax())
    expected = {"steer": torch.full((2, 5), 2.5), "set": 4.0 - codes[..., latent], "ablate": -codes[..., latent]}
    (site,) = resolve_sites(model, SITE)
    for mode, delta in expected.items():
        latents: Any = {"steer": {latent: 2.5}, "set": {latent: 4.0}, "ablate": [latent]}[mode]
        with attach(model, {SITE: a}, cast(Any, mode), latents=latents), capture(model, [site]) as captured:
            moved = captured.run({"input_ids": IDS})[SITE] - x
        torch.testing.assert_close(moved, delta.unsqueeze(-1) * atoms[latent], rtol=1e-3, atol=1e-4)


def test_only_the_tokens_asked_for_are_changed_and_generated_ones_too(llama: Any) -> None:
    a = autoencoder()
    (site,) = resolve_sites(llama, SITE)
    x = activations(llama, IDS)
    for where in (torch.tensor([False, True]), torch.tensor([[False, True], [True, True]])):
        with attach(llama, {SITE: a}, "steer", latents={3: 2.0}, where=where), capture(llama, [site]) as captured:
            moved = (captured.run({"input_ids": IDS})[SITE] - x).norm(dim=-1) > 1e-3
        first = where[0] if where.ndim == 1 else where[:, 0]
        expected = torch.ones(2, 5, dtype=torch.bool)
        expected[:, 0] = first if where.ndim == 2 else False
        assert moved.equal(expected)
    with (
        pytest.raises(ConfigError, match=r"where: expected \[2, S\] for 2 texts, got \(3, 5\)"),
        attach(llama, {SITE: a}, "steer", latents={3: 2.0}, where=torch.ones(3, 5, dtype=torch.bool)),
    ):
        logits(llama)


@pytest.mark.parametrize("family", [name for name in DECODERS if name != "mamba"])  # which has no MLP
def test_a_transcoder_reads_one_site_and_writes_another(family: str) -> None:
    model = FAMILIES[family]()
    a = autoencoder(transcodes=True, skip=True)
    with torch.no_grad():
        assert a.W_skip is not None
        a.W_skip.copy_(0.1 * torch.eye(D))
    place = ("mlp_in.1", "mlp_out.1")
    x, (target,) = activations(model, IDS, "mlp_in.1"), resolve_sites(model, "mlp_out.1")
    with splice(model, {target: lambda t: a(x.flatten(0, 1)).reconstruction.view_as(t)}):
        expected = logits(model)
    with attach(model, {place: a}, "splice") as session:
        torch.testing.assert_close(logits(model), expected)
    torch.testing.assert_close(session.codes[place].to_dense(), a.encode(x.flatten(0, 1)).to_dense())
    with attach(model, {place: a}, "splice", error=True):
        whole = logits(model)
    torch.testing.assert_close(whole, logits(model), rtol=1e-4, atol=1e-4)


def test_a_crosscoder_reads_its_sites_side_by_side_and_adds_at_each(llama: Any) -> None:
    a, names = autoencoder(dim=2 * D), ("resid_post.0", "resid_post.1")
    place = "+".join(names)
    x = torch.cat([activations(llama, IDS, name) for name in names], dim=-1)
    with attach(llama, {place: a}) as session:
        logits(llama)
    torch.testing.assert_close(session.codes[place].to_dense(), a.encode(x.flatten(0, 1)).to_dense())
    sites = resolve_sites(llama, list(names))
    with attach(llama, {place: a}, "steer", latents={3: 2.0}), capture(llama, sites) as captured:
        moved = captured.run({"input_ids": IDS})["resid_post.0"] - x[..., :D]
    torch.testing.assert_close(moved, 2 * a.dictionary.W[3, :D].detach().expand_as(moved), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"reads resid_post\.1, which the model computes after resid_post\.0"):
        attach(llama, {place: a}, "ablate", latents=[3])


def test_several_autoencoders_read_and_one_of_them_changes(llama: Any) -> None:
    first, second = autoencoder(), autoencoder(TopK(3))
    places: dict[Any, Autoencoder] = {SITE: first, "blocks.1.hook_resid_post": second, "resid_mid.2": first}
    with attach(llama, places, "steer", latents={SITE: {2: 5.0}}) as session:
        logits(llama)
    x = activations(llama, IDS).flatten(0, 1)
    # both at one site read the activation as the model computed it
    torch.testing.assert_close(session.codes[SITE].to_dense(), first.encode(x).to_dense())
    torch.testing.assert_close(session.codes["blocks.1.hook_resid_post"].to_dense(), second.encode(x).to_dense())
    plain = first.encode(activations(llama, IDS, "resid_mid.2").flatten(0, 1)).to_dense()
    assert (session.codes["resid_mid.2"].to_dense() - plain).abs().max() > 1e-2


def test_per_token_norm_scales_an_atom_as_the_reconstruction_does(llama: Any) -> None:
    a = autoencoder(ReLU(), per_token_norm=True)
    x = activations(llama, IDS).flatten(0, 1)
    codes = a.encode(x)
    latent = int(codes.to_dense().sum(0).argmax())
    without = codes.with_values(torch.where(codes.indices == latent, 0, codes.values))
    expected = a.decode(without, x) - a.decode(codes, x)
    (site,) = resolve_sites(llama, SITE)
    with attach(llama, {SITE: a}, "ablate", latents=[latent]), capture(llama, [site]) as captured:
        moved = captured.run({"input_ids": IDS})[SITE].flatten(0, 1) - x
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("mode", ["splice", "steer", "set", "ablate"])
def test_gradients_through_a_session_are_those_of_finite_differences(family: str, mode: Any) -> None:
    model, a = FAMILIES[family]().double(), autoencoder(ReLU()).double()
    latents: Any = {"splice": None, "steer": {3: 2.0}, "set": {3: 2.0}, "ablate": [1, 2, 3]}[mode]
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()

    def outcome(x: Tensor) -> Tensor:
        return model(inputs_embeds=x).logits.log_softmax(-1)[..., 3].sum()

    with attach(model, {SITE: a}, mode, latents=latents):
        (gradient,) = torch.autograd.grad(outcome(embedded), embedded)
        # along the gradient and not too short: the norms of Llama and Gemma compute in float32
        step = 1e-2 * gradient / gradient.norm()
        with torch.no_grad():
            difference = outcome(embedded + step) - outcome(embedded - step)
    torch.testing.assert_close(2 * (gradient * step).sum(), difference, rtol=1e-2, atol=0)
    (plain,) = torch.autograd.grad(outcome(embedded), embedded)
    assert (gradient - plain).norm() > 1e-3 * plain.norm()


def test_with_the_error_gradients_reach_codes_and_weights_but_pass_no_error(llama: Any) -> None:
    a = autoencoder(ReLU())
    with attach(llama, {SITE: a}, "splice", error=True) as session:
        loss = llama(input_ids=IDS, labels=IDS).loss
    codes = session.codes[SITE]
    gradient, weights = torch.autograd.grad(loss, [codes.values, a.dictionary.W], retain_graph=True)
    assert gradient.abs().max() > 0
    assert weights.abs().max() > 0
    # dL/df_j = w_j · dL/dx at the site, of the plain model
    (site,) = resolve_sites(llama, SITE)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[-1]

    with splice(llama, {site: keep}):
        llama(input_ids=IDS, labels=IDS).loss.backward()
    assert kept[0].grad is not None
    expected = (kept[0].grad.flatten(0, 1) @ a.dictionary.W.detach().T).gather(1, codes.indices)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_hooks_are_gone_after_the_block_and_after_an_exception(llama: Any) -> None:
    before, plain = hooks_of(llama), logits(llama)
    session = attach(llama, {SITE: autoencoder()}, "splice")
    assert hooks_of(llama) == before
    with session:
        assert hooks_of(llama) > before
        logits(llama)
    assert hooks_of(llama) == before
    with pytest.raises(ZeroDivisionError), session:
        _ = 1 / 0
    with (
        pytest.raises(TooStrongError, match=r"resid_post\.1 overflow"),
        attach(llama, {SITE: autoencoder()}, "steer", latents={3: 1e38}),
    ):
        logits(llama)
    assert hooks_of(llama) == before
    torch.testing.assert_close(logits(llama), plain, rtol=0, atol=0)


def test_after_a_forward_that_failed_the_session_reads_the_next_one(llama: Any) -> None:
    places: dict[Any, Autoencoder] = {"resid_post.0": autoencoder(), "resid_post.2": autoencoder()}
    with attach(llama, places) as session:
        with pytest.raises(ConfigError, match="nothing was read yet"):
            _ = session.codes
        (between,) = resolve_sites(llama, SITE)
        with pytest.raises(ZeroDivisionError), splice(llama, {between: lambda x: x / (1 // 0)}):
            logits(llama)
        logits(llama, IDS[:1])
    assert session.shape == (1, 5)
    assert {codes.tokens for codes in session.codes.values()} == {5}


def test_a_cut_cache_forgets_the_tokens_that_were_cut(llama: Any) -> None:
    with torch.no_grad(), attach(llama, {SITE: autoencoder(ReLU())}) as session:
        cache = llama(input_ids=IDS, use_cache=True).past_key_values
        cache.crop(-2)
        llama(input_ids=IDS[:, 3:4] + 1, past_key_values=cache)
        with attach(llama, {SITE: autoencoder(ReLU())}) as late:
            llama(input_ids=IDS[:, 4:5], past_key_values=cache)
            assert late.shape == (2, 5)
            assert late.real.equal(torch.tensor([[False] * 4 + [True]] * 2))
    ids = IDS.clone()
    ids[:, 3] += 1
    with attach(llama, {SITE: autoencoder(ReLU())}) as whole:
        logits(llama, ids)
    torch.testing.assert_close(session.dense(SITE), whole.dense(SITE), rtol=1e-4, atol=1e-4)


def test_the_inner_of_two_sessions_sees_what_the_outer_changed(llama: Any) -> None:
    a = autoencoder()
    with attach(llama, {SITE: a}, "splice") as outer, attach(llama, {SITE: a}) as inner:
        logits(llama)
    x = activations(llama, IDS).flatten(0, 1)
    torch.testing.assert_close(outer.codes[SITE].to_dense(), a.encode(x).to_dense())
    torch.testing.assert_close(inner.codes[SITE].to_dense(), a.encode(a(x).reconstruction).to_dense())
    with attach(llama, {SITE: a}) as session, pytest.raises(ConfigError, match="in use already"):
        session.__enter__()


def test_models_in_half_precision_are_read_and_written_in_their_own(llama: Any) -> None:
    llama = llama.bfloat16()
    with attach(llama, {SITE: autoencoder()}, "splice") as session:
        assert logits(llama).dtype == torch.bfloat16
    assert session.codes[SITE].values.dtype == torch.float32


def refusals() -> list[tuple[Mapping[Any, Any], dict[str, Any], type[Exception], str]]:
    a = autoencoder()
    one = {SITE: a}
    return [
        ({}, {}, ConfigError, "autoencoders: none given"),
        ({"resid_post.9": a}, {}, SiteError, r"site 'resid_post\.9': no layer '9'"),
        ({"resid_post": a}, {}, SiteError, "needs a layer"),
        ({"resid_post.*": a}, {}, SiteError, "one place expected"),
        ({SITE: autoencoder(dim=16)}, {}, ConfigError, r"reads width 16, expected that of resid_post\.1 32"),
        ({SITE: nn.Linear(2, 2)}, {}, ConfigError, "expected an Autoencoder, got Linear"),
        (one, {"mode": "push"}, ConfigError, "mode 'push' is unknown"),
        (one, {"mode": "steer"}, ConfigError, "needs at least one"),
        (one, {"mode": "steer", "latents": [3]}, ConfigError, r"expects \{latent: value\}"),
        (one, {"mode": "steer", "latents": {64: 1.0}}, ConfigError, r"latent 64: expected 0 to 63"),
        (one, {"mode": "ablate", "latents": [-1]}, ConfigError, r"latent -1: expected 0 to 63"),
        (one, {"mode": "ablate", "latents": [3, 3]}, ConfigError, "latent 3: given twice"),
        (one, {"mode": "set", "latents": {3: -1.0}}, ConfigError, "0 or more"),
        (one, {"mode": "steer", "latents": {3: float("nan")}}, ConfigError, "finite"),
        (one, {"mode": "steer", "latents": {"mlp_out.1": {3: 1.0}}}, ConfigError, r"site 'mlp_out\.1' is unknown"),
        ({**one, "resid_post.0": a}, {"mode": "ablate", "latents": [3]}, ConfigError, "several autoencoders"),
        ({**one, "blocks.1.hook_resid_post": a}, {"mode": "splice"}, ConfigError, "spliced in at resid_post.1 already"),
        (one, {"latents": [3]}, ConfigError, "steer, set or ablate"),
        (one, {"error": True}, ConfigError, "mode='splice'"),
        (one, {"where": torch.ones(3)}, ConfigError, r"where: expected bool"),
        ({"resid_mid.1": a}, {"mode": "splice"}, SiteError, "can be read but not replaced"),
        ({("mlp_out.1", "mlp_in.1"): a}, {"mode": "splice"}, ConfigError, "computes after"),
    ]


@pytest.mark.parametrize(("places", "settings", "error", "said"), refusals())
def test_what_does_not_fit_is_refused_by_name_before_anything_runs(
    llama: Any, places: Any, settings: Any, error: type[Exception], said: str
) -> None:
    before = hooks_of(llama)
    with pytest.raises(error, match=said):
        attach(llama, places, **settings)
    assert hooks_of(llama) == before


def test_codes_of_an_unknown_site_or_latent_are_refused(llama: Any) -> None:
    with attach(llama, {SITE: autoencoder()}) as session:
        logits(llama)
    with pytest.raises(ConfigError, match=r"site 'resid_post\.2' is unknown"):
        session.dense("resid_post.2")
    with pytest.raises(ConfigError, match="expected 0 to 63"):
        session.latents(SITE, [64])
    assert isinstance(session, Session)
