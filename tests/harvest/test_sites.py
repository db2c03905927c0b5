"""Every family's sites mean what they promise, in whichever way they are named, read or replaced."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sae.harvest.hooks import capture, harvest_forward, splice
from sae.harvest.sites import KINDS, Site, SiteError, find_blocks, resolve_sites
from tiny_models import FAMILIES, example_inputs

STATE_SPACE = {"mamba", "mamba2"}  # one mixer in a block, neither attention nor MLP
# These normalise the residual after each sum, so it isn't the sum; the norms that they use after attention and MLP.
POST_NORM = {
    "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
    "roberta": ("attention.output.LayerNorm", "output.LayerNorm"),
    "albert": ("albert_layers.0.attention.LayerNorm", "albert_layers.0.full_layer_layer_norm"),
    "opt_350m": ("self_attn_layer_norm", "final_layer_norm"),
}
ADDITIVE = [family for family in FAMILIES if family not in STATE_SPACE and family not in POST_NORM]
PARALLEL = {"gptj", "gpt_neox", "falcon", "falcon_7b", "phi", "cohere"}
SCALED = {"granite", "granite_moe"}


@cache
def model_of(family: str) -> Any:
    return FAMILIES[family]()


@cache
def inputs_of(family: str) -> dict[str, Tensor]:
    return example_inputs(model_of(family))


@cache
def sites_of(family: str) -> tuple[Site, ...]:
    """All sites of all kinds that the family has."""
    return tuple(_all_sites(model_of(family)))


@cache
def activations_of(family: str) -> dict[str, Tensor]:
    return harvest_forward(model_of(family), inputs_of(family), sites_of(family))


@cache
def output_of(family: str) -> Tensor:
    return run(model_of(family), inputs_of(family))


def run(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def _all_sites(model: Any) -> list[Site]:
    return [site for kind in KINDS for site in (_sites_or_none(model, f"{kind}.*") or [])]


def _sites_or_none(model: Any, name: str) -> list[Site] | None:
    try:
        return resolve_sites(model, [name])
    except SiteError:
        return None


def site_of(family: str, name: str) -> Site:
    (site,) = resolve_sites(model_of(family), [name])
    return site


def is_causal(family: str) -> bool:
    return model_of(family).can_generate()


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def layers_of(family: str) -> range:
    return range(find_blocks(model_of(family)).n_layers)


def assert_equal_up_to_rounding(actual: Tensor, expected: Tensor) -> None:
    """Largest difference relative to the largest entry; fp32 sums of a few terms stay far below this."""
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 5e-6, f"relative error {error:.1e}"


# Meaning


@pytest.mark.parametrize("family", ADDITIVE)
def test_attention_and_mlp_contributions_sum_to_the_residual_update(family: str) -> None:
    acts = activations_of(family)
    for layer in layers_of(family):
        update = acts[f"resid_post.{layer}"] - acts[f"resid_pre.{layer}"]
        assert_equal_up_to_rounding(acts[f"attn_out.{layer}"] + acts[f"mlp_out.{layer}"], update)
        # Neither part may be negligible: the sum would then hold for a wrong place as well.
        assert acts[f"attn_out.{layer}"].std() > 1e-3 * update.std()
        assert acts[f"mlp_out.{layer}"].std() > 1e-3 * update.std()


@pytest.mark.parametrize("family", ADDITIVE)
def test_resid_mid_is_the_residual_after_attention_except_in_parallel_blocks(family: str) -> None:
    acts = activations_of(family)
    assert (family in PARALLEL) == ("resid_mid.0" not in acts)
    for layer in () if family in PARALLEL else layers_of(family):
        assert_equal_up_to_rounding(acts[f"resid_mid.{layer}"], acts[f"resid_pre.{layer}"] + acts[f"attn_out.{layer}"])


@pytest.mark.parametrize("family", POST_NORM)
def test_post_norm_blocks_normalise_the_sum_with_the_contribution(family: str) -> None:
    acts, model = activations_of(family), model_of(family)
    for layer in layers_of(family):
        block = model.get_submodule(find_blocks(model).block(layer)[0])
        after_attention, after_mlp = (block.get_submodule(path) for path in POST_NORM[family])
        with torch.no_grad():
            mlp_in = after_attention(acts[f"resid_pre.{layer}"] + acts[f"attn_out.{layer}"])
            resid_post = after_mlp(acts[f"mlp_in.{layer}"] + acts[f"mlp_out.{layer}"])
        assert_equal_up_to_rounding(acts[f"mlp_in.{layer}"], mlp_in)
        assert_equal_up_to_rounding(acts[f"resid_post.{layer}"], resid_post)


@pytest.mark.parametrize("family", sorted(STATE_SPACE))
def test_state_space_blocks_add_their_mixer(family: str) -> None:
    acts = activations_of(family)
    assert {site.kind for site in sites_of(family)} == {"resid_pre", "resid_post"}
    mixer = harvest_forward(
        model_of(family), inputs_of(family), resolve_sites(model_of(family), "backbone.layers.*.mixer")
    )
    for layer in layers_of(family):
        update = acts[f"resid_post.{layer}"] - acts[f"resid_pre.{layer}"]
        assert_equal_up_to_rounding(mixer[f"backbone.layers.{layer}.mixer"], update)


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_sites_agree_with_each_other_and_with_hidden_states(family: str) -> None:
    acts, model = activations_of(family), model_of(family)
    with torch.no_grad():
        hidden = model(**inputs_of(family), output_hidden_states=True).hidden_states
    *_, last = layers_of(family)
    for layer in layers_of(family):
        # Mamba's list starts after the first block, other lists with the embedding.
        same = "resid_post" if family in STATE_SPACE else "resid_pre"
        assert torch.equal(acts[f"{same}.{layer}"], hidden[layer])
        if layer < last:
            assert torch.equal(acts[f"resid_post.{layer}"], acts[f"resid_pre.{layer + 1}"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_reads_the_last_resid_post(family: str) -> None:
    blocks = find_blocks(model_of(family))
    if blocks.final_norm is None:
        assert family in POST_NORM
        return
    sites = resolve_sites(model_of(family), [f"resid_post.{blocks.n_layers - 1}", f"{blocks.final_norm}:in"])
    resid_post, norm_in = harvest_forward(model_of(family), inputs_of(family), sites).values()
    # CLIP normalises the class token alone.
    assert torch.equal(resid_post[:, :1] if family == "clip_vision" else resid_post, norm_in)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_activation_has_its_batch_rows_positions_and_width(family: str) -> None:
    acts, alone = activations_of(family), []
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in inputs_of(family).items()}
        alone.append(harvest_forward(model_of(family), one, sites_of(family)))
    for site in sites_of(family):
        batch = acts[site.name]
        assert batch.ndim == 3
        assert batch.shape[0] == 3
        assert batch.shape[2] == site.width
        if "input_ids" in inputs_of(family):
            assert batch.shape[1] == inputs_of(family)["input_ids"].shape[1]
        assert not torch.equal(batch[0], batch[1])
        one_by_one = torch.cat([acts_of_row[site.name] for acts_of_row in alone])
        assert (one_by_one - batch).abs().max() < 1e-4 * batch.abs().max()


# Replacing


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_splice_at_every_site_leaves_the_output_bit_identical(family: str) -> None:
    sites = [site for site in sites_of(family) if site.kind != "resid_mid"]
    seen = []
    with splice(model_of(family), {site: lambda x: seen.append(x.shape) or x.clone() for site in sites}):
        spliced = run(model_of(family), inputs_of(family))
    assert len(seen) == len(sites)
    if family in SCALED:  # times the residual multiplier and divided by it again
        torch.testing.assert_close(spliced, output_of(family), rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(spliced, output_of(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_at_any_single_site_changes_the_output(family: str) -> None:
    for site in sites_of(family):
        if site.kind == "resid_mid":
            continue
        # Along one dimension: a shift of all of them is invisible behind a LayerNorm.
        shift = torch.eye(site.width)[0]
        with splice(model_of(family), {site: lambda x, shift=shift: x + shift}):
            changed = run(model_of(family), inputs_of(family))
        assert not torch.equal(changed, output_of(family)), site.name


@pytest.mark.parametrize("family", ADDITIVE)
@pytest.mark.parametrize("ablated", ["attn_out", "mlp_out"])
def test_ablating_a_contribution_leaves_the_other_one_in_the_residual(family: str, ablated: str) -> None:
    names = ["resid_pre.1", "resid_post.1", "attn_out.1", "mlp_out.1"]
    sites = resolve_sites(model_of(family), names)
    kept = "mlp_out.1" if ablated == "attn_out" else "attn_out.1"
    with splice(model_of(family), {site_of(family, f"{ablated}.1"): torch.zeros_like}):
        acts = harvest_forward(model_of(family), inputs_of(family), sites)
    assert acts[f"{ablated}.1"].abs().max() == 0
    assert_equal_up_to_rounding(acts["resid_post.1"], acts["resid_pre.1"] + acts[kept])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replacement_is_what_the_model_goes_on_with(family: str) -> None:
    """The replaced values, scale and all, are read back at the same site."""
    for site in sites_of(family):
        if site.kind == "resid_mid":
            continue
        with splice(model_of(family), {site: lambda x: x.roll(1, dims=0) + 0.5}):
            acts = harvest_forward(model_of(family), inputs_of(family), [site])
        assert_equal_up_to_rounding(acts[site.name], activations_of(family)[site.name].roll(1, dims=0) + 0.5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if "vi" not in family and is_causal(family)])
def test_generation_goes_through_the_splice_token_by_token(family: str) -> None:
    model, prompt = model_of(family), example_inputs(model_of(family), batch=2, length=5)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    names = ["resid_post.1"] if family in STATE_SPACE else ["resid_post.1", "mlp_out.0"]
    shift = torch.linspace(-1, 1, find_blocks(model).width)
    lengths: list[int] = []

    def steer(x: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return x + shift

    plain = model.generate(**prompt, **options)
    with splice(model, {site: lambda x: x for site in resolve_sites(model, names)}):
        same = model.generate(**prompt, **options)
    assert torch.equal(plain.sequences, same.sequences)
    with splice(model, {site: steer for site in resolve_sites(model, names)}):
        cached = model.generate(**prompt, **options, use_cache=True)
        n_cached = len(lengths)
        whole = run(model, {"input_ids": cached.sequences[:, :-1]})
    assert lengths[:n_cached] == [length for length in (5, 1, 1, 1) for _ in names]
    assert not torch.allclose(cached.scores[0], plain.scores[0])
    # One pass over the finished text gives the same logits as generating it with a cache did.
    last = whole[:, -1]
    allowed = torch.isfinite(cached.scores[-1])  # min_new_tokens forbids the end of text
    assert (last - cached.scores[-1])[allowed].abs().max() < 1e-3 * last.abs().max()


def test_gradients_flow_through_a_splice() -> None:
    gain = torch.ones((), requires_grad=True)
    with splice(model_of("llama"), {site_of("llama", "mlp_out.1"): lambda x: x * gain}):
        model_of("llama")(**inputs_of("llama")).logits.square().sum().backward()
    assert gain.grad is not None
    assert gain.grad != 0


def test_a_float32_replacement_keeps_a_bfloat16_model_in_bfloat16() -> None:
    model = FAMILIES["llama"]().to(torch.bfloat16)
    (site,) = resolve_sites(model, "resid_post.1")
    with splice(model, {site: lambda x: x.float()}):
        assert torch.equal(run(model, inputs_of("llama")), run_plain := run(model, inputs_of("llama")))
    assert run_plain.dtype == torch.bfloat16


def test_a_replacement_of_another_shape_is_refused() -> None:
    before = n_hooks(model_of("llama"))
    with (
        splice(model_of("llama"), {site_of("llama", "resid_post.1"): lambda x: x[:, :1]}),
        pytest.raises(SiteError, match=r"resid_post.1 must have shape \(3, 7, 32\), got \(3, 1, 32\)"),
    ):
        run(model_of("llama"), inputs_of("llama"))
    assert n_hooks(model_of("llama")) == before


def test_resid_mid_can_be_read_but_not_replaced() -> None:
    with (
        pytest.raises(SiteError, match=r"resid_mid\.1 can be read but not replaced"),
        splice(model_of("llama"), {site_of("llama", "resid_mid.1"): torch.zeros_like}),
    ):
        pass


class Pair(NamedTuple):
    hidden: Tensor
    extra: str


@pytest.mark.parametrize("output_type", [tuple, list, Pair])
def test_containers_keep_their_type_and_other_items(output_type: type) -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Pair(x, "kept") if output_type is Pair else output_type([x, "kept"])

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, x: Tensor) -> Any:
            return self.part(x)

    whole = Whole()
    (site,) = resolve_sites(whole, "part")
    with splice(whole, {site: lambda x: x + 1}):
        output = whole(torch.zeros(2, 3, 4))
    assert type(output) is output_type
    assert output[0].sum() == 24
    assert output[1] == "kept"


def test_model_outputs_can_be_read_and_replaced() -> None:
    model = model_of("dinov3")
    (encoder,) = resolve_sites(model, "model")
    acts = harvest_forward(model, inputs_of("dinov3"), [encoder])
    assert torch.equal(acts["model"], activations_of("dinov3")["resid_post.2"])
    with splice(model, {encoder: torch.zeros_like}):
        assert run(model, inputs_of("dinov3")).std(dim=1).max() == 0


# Stopping and cleaning up


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_runs_after_the_last_site(family: str) -> None:
    model, ran = model_of(family), []
    blocks = find_blocks(model)
    names = [f"{blocks.path}.{blocks.n_modules - 1}", blocks.final_norm, blocks.head]
    watched = [name for name in names if name is not None]
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in watched
    ]
    try:
        site = site_of(family, "resid_post.0")
        acts = harvest_forward(model, inputs_of(family), [site])
        n_before = len(ran)
        with capture(model, [site], stop=False) as captured:
            run(model, inputs_of(family))
    finally:
        for handle in handles:
            handle.remove()
    shared_calls = 1 if family == "albert" else 0  # its only block computes layer 0 too
    assert n_before <= shared_calls
    assert set(ran) == set(watched)
    assert torch.equal(acts["resid_post.0"], captured.activations["resid_post.0"])


def test_a_captured_tensor_survives_what_the_model_does_in_place_later() -> None:
    """Falcon adds the attention's output into the memory of the MLP's."""
    alone = harvest_forward(model_of("falcon"), inputs_of("falcon"), [site_of("falcon", "mlp_out.1")])
    assert torch.equal(alone["mlp_out.1"], activations_of("falcon")["mlp_out.1"])


@pytest.mark.parametrize("family", ["llama", "albert"])
def test_capture_serves_many_forwards_and_keeps_earlier_results(family: str) -> None:
    other = {"input_ids": inputs_of(family)["input_ids"].flip(0)}
    sites = resolve_sites(model_of(family), ["resid_pre", "mlp_out"], layer=1)
    with capture(model_of(family), sites) as captured:
        first, second = captured.run(inputs_of(family)), captured.run(other)
    for site in sites:
        assert torch.equal(first[site.name], activations_of(family)[site.name])
        assert torch.allclose(second[site.name], first[site.name].flip(0), atol=1e-6)


def test_a_harvest_builds_neither_a_graph_nor_a_cache_of_keys() -> None:
    seen = []
    handle = (
        model_of("llama")
        .model.layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((torch.is_grad_enabled(), kwargs["past_key_values"])),
            with_kwargs=True,
        )
    )
    try:
        harvest_forward(model_of("llama"), inputs_of("llama"), [site_of("llama", "resid_post.1")])
    finally:
        handle.remove()
    assert seen == [(False, None)]


def test_a_plain_call_is_stopped_too() -> None:
    with capture(model_of("llama"), [site_of("llama", "resid_post.1")]) as captured:
        model_of("llama")(**inputs_of("llama"))
    (activation,) = captured.activations.values()
    assert torch.equal(activation, activations_of("llama")["resid_post.1"])
    assert not activation.requires_grad


def test_hooks_are_gone_after_success_and_after_errors() -> None:
    model, inputs = FAMILIES["opt"](), inputs_of("opt")
    sites = resolve_sites(model, ["*.1"])
    before = n_hooks(model)  # transformers has some of its own
    with capture(model, sites), splice(model, {sites[0]: torch.zeros_like}):
        assert n_hooks(model) > before
    assert n_hooks(model) == before
    assert harvest_forward(model, inputs, sites)
    assert n_hooks(model) == before
    with pytest.raises(ValueError, match="input_ids"), capture(model, sites) as captured:
        captured.run({})
    assert n_hooks(model) == before
    with pytest.raises(ZeroDivisionError), splice(model, {sites[0]: lambda x: x / (1 // 0)}):
        run(model, inputs)
    assert n_hooks(model) == before


def test_a_site_that_the_forward_does_not_reach_is_an_error() -> None:
    sites = resolve_sites(model_of("gemma3_vision"), ["resid_post.0", "model.vision_tower.encoder.layers.0.mlp"])
    with pytest.raises(SiteError, match=r"never reached model\.vision_tower\.encoder\.layers\.0\.mlp"):
        harvest_forward(model_of("gemma3_vision"), inputs_of("gemma3_vision"), sites)


def test_the_vision_tower_of_a_multimodal_model_is_reached_by_module_paths() -> None:
    model, pixels = model_of("gemma3_vision"), torch.randn(2, 3, 16, 16)
    image_token = torch.full((2, 4), model.config.image_token_index)
    ids = torch.cat([image_token, inputs_of("gemma3_vision")["input_ids"][:2]], dim=1)
    sites = resolve_sites(model, ["model.vision_tower.encoder.layers.*.mlp", "resid_post.1"])
    acts = harvest_forward(model, {"input_ids": ids, "pixel_values": pixels}, sites)
    assert [tuple(value.shape) for value in acts.values()] == [(2, 4, 32)] * 3 + [(2, 11, 32)]


def test_tensors_whose_rows_are_not_the_tokens_are_refused() -> None:
    """Heads are a dimension of their own; harvesting by row would mix them up."""
    model = model_of("qwen3_moe")
    with pytest.raises(SiteError, match=r"q_norm must be \[B, S, d\].*got shape \(3, 7, 4, 8\)"):
        harvest_forward(model, inputs_of("qwen3_moe"), resolve_sites(model, "model.layers.0.self_attn.q_norm"))


def test_flat_tokens_inside_a_block_get_their_batch_back() -> None:
    """A mixture of experts works on [B*S, d]; batch rows must not be taken for one long text."""
    model = model_of("qwen3_moe")
    (site,) = resolve_sites(model, "model.layers.0.mlp.experts:in")
    acts = harvest_forward(model, inputs_of("qwen3_moe"), [site])
    assert torch.equal(acts[site.name], activations_of("qwen3_moe")["mlp_in.0"])


# Names


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["resid_post.1", "blocks.1.hook_resid_post", "model.layers.1"]),
        ("llama", ["resid_pre.1", "blocks.1.hook_resid_pre", "model.layers.1:in"]),
        ("llama", ["mlp_out.1", "blocks.1.hook_mlp_out", "model.layers.1.mlp", "model.*.1.mlp"]),
        ("llama", ["mlp_in.1", "blocks.1.mlp.hook_in", "model.layers.1.mlp:in"]),
        ("llama", ["attn_out.1", "blocks.1.hook_attn_out", "model.layers.1.self_attn"]),
        ("llama", ["resid_mid.1", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_in"]),
        ("gemma2", ["mlp_out.1", "blocks.1.hook_mlp_out", "model.layers.1.post_feedforward_layernorm"]),
        ("bloom", ["attn_out.1", "blocks.1.hook_attn_out", "transformer.h.1.self_attention.dense"]),
        ("opt", ["mlp_out.1", "blocks.1.hook_mlp_out", "model.decoder.layers.1.fc2"]),
        ("qwen3_5", ["attn_out.1", "model.layers.1.linear_attn"]),
        ("qwen3_5", ["attn_out.2", "model.layers.2.self_attn"]),
    ],
)
def test_all_spellings_name_one_site(family: str, names: list[str]) -> None:
    first = site_of(family, names[0])
    assert first.name == names[0]
    assert {site_of(family, name) for name in names} == {first}
    kind, _, layer = names[0].partition(".")
    assert resolve_sites(model_of(family), kind, layer=int(layer)) == [first]
    assert resolve_sites(model_of(family), names) == [first]


def test_bare_kinds_take_every_given_layer_and_full_names_keep_theirs() -> None:
    sites = resolve_sites(model_of("llama"), ["resid_post", "mlp_out.0"], layer=[1, 2])
    assert [site.name for site in sites] == ["resid_post.1", "resid_post.2", "mlp_out.0"]


def test_patterns_stay_within_a_part_of_a_dotted_name() -> None:
    model = model_of("llama")
    assert [site.name for site in resolve_sites(model, "model.layers.*.mlp")] == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert [site.name for site in resolve_sites(model, "resid_p*.[02]")] == [
        *("resid_pre.0", "resid_post.0", "resid_pre.2", "resid_post.2"),
    ]
    assert [site.name for site in resolve_sites(model, "blocks.*.hook_attn_out")] == [f"attn_out.{i}" for i in range(3)]
    assert [site.name for site in resolve_sites(model, "model.layers.1.mlp.*_proj:in")] == [
        f"model.layers.1.mlp.{name}_proj:in" for name in ("gate", "up", "down")
    ]


def test_free_module_paths_know_their_width_where_weights_tell_it() -> None:
    model = model_of("llama")
    widths = {
        "model.embed_tokens": 32,
        "model.layers.0.mlp.up_proj": 48,
        "model.layers.0.mlp.down_proj:in": 48,
        "model.layers.0.input_layernorm": 32,
        "lm_head": 128,
        "model.layers.0.mlp.act_fn": None,
    }
    sites = resolve_sites(model, list(widths))
    assert [(site.name, site.width) for site in sites] == list(widths.items())
    acts = harvest_forward(model, inputs_of("llama"), sites)
    assert [value.shape[-1] for value in acts.values() if value.shape[-1] != 48] == [32, 32, 128]
    assert acts["model.layers.0.mlp.act_fn"].shape == (3, 7, 48)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *(
            ("gemma2", "model.layers.1.mlp"),
            ("granite", "model.layers.1.self_attn"),
            ("mamba2", "backbone.layers.1.mixer"),
        ),
        *(("gpt2", "transformer.h.1.mlp.c_fc"), ("gpt2", "transformer.h.1.mlp.c_proj:in")),
        *(("qwen3_moe", "model.layers.1.mlp.gate"), ("olmo", "model.layers.1.mlp.act_fn")),
    ],
)
def test_a_stated_width_is_the_width_that_a_run_finds(family: str, path: str) -> None:
    site = site_of(family, path)
    assert site.kind is None
    (activation,) = harvest_forward(model_of(family), inputs_of(family), [site]).values()
    assert site.width in (None, activation.shape[-1])
    assert (site.width is None) == path.endswith(("act_fn", "gate"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_the_meta_device_resolves_like_the_real_one(family: str) -> None:
    with torch.device("meta"):
        unloaded = FAMILIES[family]()
    assert all(parameter.is_meta for parameter in unloaded.parameters())
    assert tuple(_all_sites(unloaded)) == sites_of(family)
    assert find_blocks(unloaded) == find_blocks(model_of(family))


def test_the_stack_norm_embedding_and_head_are_found() -> None:
    found = {
        family: (blocks.path, blocks.final_norm, blocks.embedding, blocks.head)
        for family in ("gpt2", "gpt_neox", "gemma3_vision", "bert", "modernbert", "dinov3", "albert")
        for blocks in [find_blocks(model_of(family))]
    }
    language = "model.language_model"
    assert found == {
        "gpt2": ("transformer.h", "transformer.ln_f", "transformer.wte", "lm_head"),
        "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm", "gpt_neox.embed_in", "lm_head"),
        "gemma3_vision": (f"{language}.layers", f"{language}.norm", f"{language}.embed_tokens", "lm_head"),
        "bert": ("bert.encoder.layer", None, "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
        "modernbert": ("model.layers", "model.final_norm", "model.embeddings.tok_embeddings", "decoder"),
        "dinov3": ("model.layer", "norm", "embeddings.patch_embeddings", None),
        "albert": (
            *("albert.encoder.albert_layer_groups", None),
            *("albert.embeddings.word_embeddings", "predictions.decoder"),
        ),
    }


def test_a_list_of_other_modules_as_long_as_the_stack_is_not_taken_for_it() -> None:
    model = FAMILIES["llama"]()
    model.model.experts = nn.ModuleList(nn.Linear(2, 2) for _ in model.model.layers)
    assert find_blocks(model) == find_blocks(model_of("llama"))


def test_a_model_with_layer_classes_of_its_own_is_found_by_the_length_of_its_stack() -> None:
    model = FAMILIES["llama"]()
    model.model.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32)) for _ in range(3))
    assert find_blocks(model).path == "model.layers"
    assert resolve_sites(model, "resid_post.2")[0].path == "model.layers.2"
    model.model.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(SiteError, match=r"several stacks of layers \(model.layers, model.experts\)"):
        find_blocks(model)


# Refusals


@pytest.mark.parametrize(
    ("family", "name", "parts"),
    [
        ("llama", "resid_post.3", ["'resid_post.3'", "no layer '3'", "layers 0..2", "nearest: resid_post."]),
        ("llama", "resid_post.-1", ["no layer '-1'", "layers 0..2"]),
        ("llama", "resid_post", ["needs a layer", "layers 0..2"]),
        ("llama", "residpost.1", ["'residpost.1'", "layers 0..2", "resid_pre, resid_post", "nearest: resid_post.1"]),
        ("llama", "model.layers.1.mpl", ["nearest: model.layers.1.mlp"]),
        ("llama", "model.layers.9.mlp", ["'model.layers.9.mlp'", "layers 0..2", "nearest: model.layers."]),
        ("llama", "model.layers.1.mlp:out", ["no site 'model.layers.1.mlp:out'", "nearest: model.layers.1.mlp"]),
        ("llama", "model.layers.*.mpl", ["no site 'model.layers.*.mpl'"]),
        ("llama", "blocks.1.hook_resid_pots", ["nearest: blocks.1.hook_resid_post"]),
        ("llama", "blocks.1.ln2.hook_normalized", ["is no site", "blocks.L.mlp.hook_in"]),
        ("llama", "blocks.7.hook_resid_post", ["'blocks.7.hook_resid_post'", "no layer '7'", "layers 0..2"]),
        ("mamba", "attn_out.1", ["no attention", "`mixer`", "Layer 1 has resid_pre, resid_post"]),
        ("mamba", "mlp_out.*", ["no MLP"]),
        ("gptj", "resid_mid.1", ["no residual between attention and MLP"]),
        ("gpt_neox", "resid_mid.1", ["in parallel"]),
    ],
)
def test_a_wrong_name_is_refused_with_what_exists(family: str, name: str, parts: list[str]) -> None:
    with pytest.raises(SiteError) as refused:
        resolve_sites(model_of(family), [name])
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("llama", "model.layers.1.self_attn.o_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj"),
        ("gpt_neox", "gpt_neox.layers.1.attention.dense"),
        ("gptj", "transformer.h.1.attn.out_proj"),
    ],
)
def test_the_heads_of_transformerlens_are_the_input_of_the_output_projection(family: str, path: str) -> None:
    (site,) = resolve_sites(model_of(family), "blocks.1.attn.hook_z")
    assert (site.path, site.side) == (path, "input")
    (same,) = resolve_sites(model_of(family), f"{path}:in")
    assert site == same


def test_heads_that_are_not_there_are_refused() -> None:
    with pytest.raises(SiteError, match=r"no layer 7; layers 0\.\.2"):
        resolve_sites(model_of("llama"), "blocks.7.attn.hook_z")
    with pytest.raises(SiteError, match="has no attention"):
        resolve_sites(model_of("mamba"), "blocks.1.attn.hook_z")


@pytest.mark.parametrize("name", ["residpost.1", "model.layers.1.mpl", "resid_post.3", "blocks.1.hook_resid_pots"])
def test_refusals_name_three_near_matches(name: str) -> None:
    with pytest.raises(SiteError) as refused:
        resolve_sites(model_of("llama"), [name])
    near = str(refused.value).split("nearest: ")[1].split(";")[0].split(", ")
    assert len(near) == 3
    for one in near:
        assert one in KINDS or resolve_sites(model_of("llama"), one)


def test_a_layer_that_contradicts_the_names_is_refused() -> None:
    assert resolve_sites(model_of("llama"), "resid_post.1", layer=1)
    with pytest.raises(SiteError, match=r"layer=2 contradicts resid_post\.1"):
        resolve_sites(model_of("llama"), "resid_post.1", layer=2)
    with pytest.raises(SiteError, match="no layer '-1'"):
        resolve_sites(model_of("llama"), "resid_post", layer=-1)


def test_contributions_of_blocks_with_unknown_parts_are_refused() -> None:
    """A family that does something new to its branches must not be misread as one that is known."""
    model = FAMILIES["llama"]()
    model.model.layers[1].branch_gate = nn.Linear(1, 1)
    model.model.layers[2].attn_multiplier = 0.5
    for layer, part in [(1, "branch_gate"), (2, "attn_multiplier")]:
        with pytest.raises(SiteError, match=f"also uses `{part}`: its contribution is not known"):
            resolve_sites(model, "mlp_out", layer=layer)
        assert resolve_sites(model, "resid_post", layer=layer)


def test_a_model_without_a_stack_has_module_paths_only() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    assert resolve_sites(model, "0")[0].width == 6
    with pytest.raises(SiteError, match="no list of blocks"):
        resolve_sites(model, "resid_post.0")
