"""Files of OpenMOSS' llamascopium against its definitions, `models/{sae,crosscoder,clt}.py`, written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import read

D, F, K, L = 6, 24, 3, 3
IN, OUT = "blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out"
THETA = "activation_function.log_jumprelu_threshold"
HOOKS = [f"blocks.{i}.hook_resid_post" for i in range(L)]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settings_of(kind: str, **changes: Any) -> dict[str, Any]:
    hooks = {
        "sae": {"hook_point_in": IN, "hook_point_out": OUT, "use_glu_encoder": False},
        "crosscoder": {"hook_points": HOOKS},
        "clt": {"hook_points_in": HOOKS, "hook_points_out": [f"blocks.{i}.hook_mlp_out" for i in range(L)]},
    }
    shared = {
        "sae_type": kind,
        "d_model": D,
        "expansion_factor": F / D,
        "use_decoder_bias": True,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": K,
    }
    return shared | hooks.get(kind, {}) | changes


def averages(settings: dict[str, Any]) -> dict[str, float]:
    hooks = [h for name, value in settings.items() if name.startswith("hook_point") for h in [value]]
    flat = [h for hook in hooks for h in (hook if isinstance(hook, list) else [hook])]
    return {hook: 2.0 + number for number, hook in enumerate(dict.fromkeys(flat))}


def written(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any], suffix: str = ".safetensors") -> Path:
    folder.mkdir()
    if settings["norm_activation"] == "dataset-wise":
        named = {f"dataset_average_activation_norm.{hook}": torch.tensor(n) for hook, n in averages(settings).items()}
        tensors = tensors | named
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    if suffix == ".pt":
        torch.save({"sae": tensors, "version": "2.0"}, folder / "sae_weights.pt")
    else:
        save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def factor(settings: dict[str, Any], hook: str) -> float:
    return D**0.5 / averages(settings)[hook] if settings["norm_activation"] == "dataset-wise" else 1.0


def act(pre: Tensor, settings: dict[str, Any], log_theta: Tensor | None) -> Tensor:
    if settings["act_fn"] == "relu":
        return torch.relu(pre)
    if settings["act_fn"] == "jumprelu":
        assert log_theta is not None
        return pre * (pre > log_theta.exp())
    positive = torch.relu(pre)
    return positive * torch.zeros_like(pre).scatter(-1, positive.topk(K).indices, 1)


def gate(pre: Tensor, norms: Tensor, settings: dict[str, Any], log_theta: Tensor | None) -> Tensor:
    return act(pre * norms, settings, log_theta) / norms


def sae_tensors(**changes: Tensor) -> dict[str, Tensor]:
    tensors = {"W_E": draw(D, F, seed=1), "b_E": draw(F, seed=2), "W_D": draw(F, D, seed=3), "b_D": draw(D, seed=4)}
    return tensors | changes


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_an_sae_gives_the_numbers_of_its_code(
    act_fn: str, norm: str, by_norm: bool, suffix: str, tmp_path: Path
) -> None:
    settings = settings_of(
        "sae", act_fn=act_fn, norm_activation=norm, sparsity_include_decoder_norm=by_norm, hook_point_out=IN
    )
    tensors = sae_tensors(**({THETA: draw(F, seed=5) / 2} if act_fn == "jumprelu" else {}))
    imported, x = read(written(tmp_path / "theirs", tensors, settings, suffix)), draw(40, D, seed=9)
    s, norms = factor(settings, IN), tensors["W_D"].norm(dim=1)
    f = gate(x * s @ tensors["W_E"] + tensors["b_E"], norms if by_norm else torch.ones(F), settings, tensors.get(THETA))
    codes, reconstruction = imported.model(x)
    # selected by pre ||w||, a latent's value is that: the file's latents have unit atoms here
    scale = norms if act_fn == "topk" and by_norm else 1
    torch.testing.assert_close(codes.to_dense().detach(), f * scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction.detach(), (f @ tensors["W_D"] + tensors["b_D"]) / s, rtol=1e-5, atol=1e-5)
    assert bool(imported.origin.notes) == (act_fn == "topk" and by_norm)


def test_a_transcoder_has_a_scale_at_each_end(tmp_path: Path) -> None:
    settings, tensors = settings_of("sae", use_decoder_bias=False), sae_tensors(**{THETA: draw(F, seed=5) / 2})
    del tensors["b_D"]
    imported, x = read(written(tmp_path / "theirs", tensors, settings)), draw(40, D, seed=9)
    pre = x * factor(settings, IN) @ tensors["W_E"] + tensors["b_E"]
    f = gate(pre, tensors["W_D"].norm(dim=1), settings, tensors[THETA])
    torch.testing.assert_close(
        imported.model(x).reconstruction.detach(), f @ tensors["W_D"] / factor(settings, OUT), rtol=1e-5, atol=1e-5
    )
    assert (imported.origin.sites, imported.origin.targets) == ((IN,), (OUT,))


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu"])
def test_a_crosscoder_gives_the_numbers_of_its_code(act_fn: str, tmp_path: Path) -> None:
    settings = settings_of("crosscoder", act_fn=act_fn)
    tensors = {
        "W_E": draw(L, D, F, seed=1),
        "b_E": draw(L, F, seed=2),
        "W_D": draw(L, F, D, seed=3),
        "b_D": draw(L, D, seed=4),
    }
    if act_fn == "jumprelu":
        tensors[THETA] = draw(F, seed=5) / 2 + 1
    imported, x = read(written(tmp_path / "theirs", tensors, settings)), draw(40, L, D, seed=9)
    s = torch.tensor([factor(settings, hook) for hook in HOOKS])
    pre = torch.einsum("nhd,hdf->nf", x * s[:, None], tensors["W_E"]) + tensors["b_E"].sum(0)
    f = gate(pre[:, None], tensors["W_D"].norm(dim=2), settings, tensors.get(THETA))  # [n, sites, F]
    x_hat = (torch.einsum("nhf,hfd->nhd", f, tensors["W_D"]) + tensors["b_D"]) / s[:, None]
    codes, reconstruction = imported.model(x.flatten(1))
    expected = f.flatten(1) if act_fn == "jumprelu" else f[:, 0]
    torch.testing.assert_close(codes.to_dense().detach(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(reconstruction.detach().view_as(x_hat), x_hat, rtol=1e-5, atol=1e-4)
    assert imported.origin.sites == tuple(HOOKS)


def clt_tensors(**changes: Tensor) -> dict[str, Tensor]:
    tensors = {"W_E": draw(L, D, F, seed=1), "b_E": draw(L, F, seed=2), THETA: draw(L, F, seed=5) / 2 + 1}
    for layer in range(L):
        tensors |= {f"W_D.{layer}": draw(layer + 1, F, D, seed=10 + layer), f"b_D.{layer}": draw(D, seed=20 + layer)}
    return tensors | changes


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_layers_of_a_cross_layer_transcoder_sum_to_it(suffix: str, tmp_path: Path) -> None:
    settings, tensors = settings_of("clt"), clt_tensors()
    folder, x = written(tmp_path / "theirs", tensors, settings, suffix), draw(40, L, D, seed=9)
    s_in, s_out = (
        torch.tensor([factor(settings, hook) for hook in settings[end]])
        for end in ("hook_points_in", "hook_points_out")
    )
    squares = torch.zeros(L, F)
    for target in range(L):
        squares[: target + 1] += tensors[f"W_D.{target}"].square().sum(-1)
    pre = torch.einsum("nld,ldf->nlf", x * s_in[:, None], tensors["W_E"]) + tensors["b_E"]
    f = gate(pre, squares.sqrt(), settings, tensors[THETA])
    whole = torch.zeros(40, L, D)
    for layer in range(L):
        imported = read(f"{folder}:{layer}")
        codes, part = imported.model(x[:, layer])
        torch.testing.assert_close(codes.to_dense().detach(), f[:, layer], rtol=1e-5, atol=1e-5)
        whole[:, layer:] += part.detach().view(40, L - layer, D)
        assert imported.origin.targets == tuple(settings["hook_points_out"][layer:])
    for target in range(L):
        x_hat = torch.einsum("nlf,lfd->nd", f[:, : target + 1], tensors[f"W_D.{target}"]) + tensors[f"b_D.{target}"]
        torch.testing.assert_close(whole[:, target], x_hat / s_out[target], rtol=1e-5, atol=1e-4)


def test_a_layer_must_be_named_and_exist(tmp_path: Path) -> None:
    folder = written(tmp_path / "theirs", clt_tensors(), settings_of("clt"))
    with pytest.raises(ConfigError, match=r"name a layer, .*theirs:0 to .*theirs:2"):
        read(folder)
    with pytest.raises(ConfigError, match="no such layer; expected 0 to 2"):
        read(f"{folder}:3")
    plain = written(tmp_path / "plain", sae_tensors(), settings_of("sae", act_fn="relu"))
    with pytest.raises(ConfigError, match="'sae' has no layers to select"):
        read(f"{plain}:0")


@pytest.mark.parametrize(
    ("settings", "tensors", "error", "message"),
    [
        ({"sae_type": "lorsa"}, {}, ConfigError, "'lorsa' cannot be held: it replaces attention"),
        ({"sae_type": "molt"}, {}, ConfigError, "'molt' cannot be held: its latents are linear maps"),
        ({"use_glu_encoder": True}, {}, ConfigError, "use_glu_encoder cannot be held"),
        ({}, {"W_E_glu": draw(D, F, seed=0)}, ConfigError, "W_E_glu cannot be held"),
        ({"act_fn": "batchtopk"}, {}, ConfigError, "'batchtopk' cannot be held: a token's code depends on others"),
        ({"norm_activation": "token-wise"}, {}, ConfigError, "'token-wise' cannot be held"),
        ({"act_fn": "jumprelu"}, {}, CorruptError, r"log_jumprelu_threshold \(24,\) is missing"),
        ({}, {"W_D": draw(D, F, seed=0)}, CorruptError, r"W_D has the shape \(6, 24\), expected \(24, 6\); it is tran"),
        ({"expansion_factor": 5}, {}, CorruptError, r"W_E has the shape \(6, 24\), expected \(6, 30\)"),
        ({"hook_point_out": None}, {}, CorruptError, "dataset_average_activation_norm"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    settings: dict, tensors: dict, error: type, message: str, tmp_path: Path
) -> None:
    changed = settings_of("sae", **{"act_fn": "relu"} | settings)
    folder = written(tmp_path / "theirs", sae_tensors(**tensors), changed)
    if changed["hook_point_out"] is None:
        (folder / "config.json").write_text(json.dumps(changed | {"hook_point_out": "blocks.9.hook_mlp_out"}))
    with pytest.raises(error, match=message):
        read(folder)


def test_a_distributed_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "theirs", sae_tensors(), settings_of("sae", act_fn="relu"))
    (folder / "sae_weights.safetensors").unlink()
    (folder / "sae_weights.dcp").mkdir()
    with pytest.raises(ConfigError, match=r"a checkpoint of several processes; save it as .safetensors"):
        read(folder)
