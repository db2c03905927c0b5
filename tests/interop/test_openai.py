"""OpenAI's torch files against `model.py` of openai/sparse_autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.base.files import CorruptError
from sae.config import ConfigError
from sae.interop import read

D, F, K = 6, 24, 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(activation: str, /, **changes: Any) -> dict[str, Any]:
    weights = {
        "pre_bias": draw(D, seed=1),
        "latent_bias": draw(F, seed=2),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "latents_activation_frequency": torch.ones(F),
        "latents_mean_square": torch.zeros(F),
        "encoder.weight": draw(F, D, seed=3),
        "decoder.weight": draw(D, F, seed=4),
    }
    settings = {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {}
    return weights | {"activation": activation, "activation_state_dict": settings} | changes


def written(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
def test_latents_and_reconstruction_are_those_of_its_code(activation: str, tmp_path: Path) -> None:
    content = values(activation)
    path = written(tmp_path / "gpt2-small/resid_delta_mlp_v5_32k/autoencoders/8.pt", content)
    imported, x = read(path), draw(30, D, seed=9) * 3 + 1
    z, mean, deviation = x, 0, 1
    if activation == "TopK":
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        z = (x - mean) / (deviation + 1e-5)
    f = torch.relu((z - content["pre_bias"]) @ content["encoder.weight"].T + content["latent_bias"])
    if activation == "TopK":
        f = f * torch.zeros_like(f).scatter(-1, f.topk(K).indices, 1)
    x_hat = (f @ content["decoder.weight"].T + content["pre_bias"]) * deviation + mean
    codes, reconstruction = imported.model(x)
    torch.testing.assert_close(codes.to_dense().detach(), f, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction.detach(), x_hat, rtol=1e-5, atol=1e-5)
    assert (imported.origin.model, imported.origin.sites) == ("gpt2", ("mlp_out.8",))


def test_a_file_without_a_place_in_its_path_has_no_site(tmp_path: Path) -> None:
    assert read(written(tmp_path / "here/8.pt", values("ReLU"))).origin.sites == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"activation": "JumpReLU"}, ConfigError, "activation 'JumpReLU' cannot be held"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, ConfigError, "postact_fn 'Identity' cannot"),
        ({"activation_state_dict": {}}, CorruptError, "k is missing"),
        ({"decoder.weight": draw(F, D, seed=0)}, CorruptError, r"decoder.weight has the shape \(24, 6\), expected \(6"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        read(written(tmp_path / "here/8.pt", values("TopK", **changes)))
