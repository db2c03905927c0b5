"""Files of EleutherAI's sparsify against its definition, `sparse_coder.py`; folders and settings of older versions."""

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

D, F, K = 6, 24, 3
TODAY = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(**more: Tensor) -> dict[str, Tensor]:
    weights = {"encoder.weight": draw(F, D, seed=1), "encoder.bias": draw(F, seed=2)}
    return weights | {"W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)} | more


def written(folder: Path, weights: dict[str, Tensor], settings: dict[str, Any], run: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in weights.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    if run is not None:
        (folder.parent / "config.json").write_text(json.dumps(run))
    return folder


def theirs(x: Tensor, w: dict[str, Tensor], transcode: bool, signed: bool = False) -> tuple[Tensor, Tensor]:
    pre = (x if transcode else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    pre = pre if signed else torch.relu(pre)
    kept = torch.zeros_like(pre).scatter(-1, pre.abs().topk(K).indices, 1)
    f = pre * kept
    out = f @ w["W_dec"] + w["b_dec"]
    return f, out + x @ w["W_skip"].T if "W_skip" in w else out


def check(folder: Path, w: dict[str, Tensor], **definition: bool) -> None:
    x = draw(40, D, seed=9) * 2
    codes, reconstruction = read(folder).model(x)
    f, x_hat = theirs(x, w, **definition)
    mine = codes.to_dense().detach()
    mine = mine[:, :F] - mine[:, F:] if definition.get("signed") else mine
    torch.testing.assert_close(mine, f, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction.detach(), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sae_and_transcoder_with_and_without_skip(transcode: bool, skip: bool, tmp_path: Path) -> None:
    weights = tensors(**({"W_skip": draw(D, D, seed=5)} if skip else {}))
    settings = TODAY | {"transcode": transcode, "skip_connection": skip, "multi_topk": True}
    folder = written(tmp_path / "layers.2.mlp", weights, settings)
    check(folder, weights, transcode=transcode)
    origin = read(folder).origin
    assert origin.sites == (("layers.2.mlp:in",) if transcode else ("layers.2.mlp",))
    assert origin.targets == (("layers.2.mlp",) if transcode else ())


def test_the_oldest_settings_are_enough(tmp_path: Path) -> None:
    weights = tensors()
    run = {"model": "EleutherAI/pythia-70m", "dataset": "some/text", "ctx_len": 2048, "exclude_tokens": [0]}
    folder = written(tmp_path / "layer_3", weights, {"expansion_factor": 4, "k": K, "d_in": D}, run)
    check(folder, weights, transcode=False)
    origin = read(folder).origin
    assert (origin.model, origin.context, origin.sites) == ("EleutherAI/pythia-70m", 2048, ("layers.3",))
    assert origin.left_out == "tokens [0]"


def test_signed_latents_are_two_latents_each(tmp_path: Path) -> None:
    weights = tensors()
    folder = written(tmp_path / "layers.2", weights, {"expansion_factor": 4, "k": K, "d_in": D, "signed": True})
    check(folder, weights, transcode=False, signed=True)
    assert "F + j its negative side" in read(folder).origin.notes[0]


def test_a_transcoder_of_the_time_when_only_its_run_said_so_still_centres_its_inputs(tmp_path: Path) -> None:
    weights = tensors()
    folder = written(tmp_path / "layers.2.mlp", weights, {"num_latents": F, "k": K, "d_in": D}, {"transcode": True})
    check(folder, weights, transcode=False)
    assert read(folder).origin.targets == ("layers.2.mlp",)


def test_older_names_and_mixed_precisions_are_read(tmp_path: Path) -> None:
    weights = {name: t.bfloat16().float() for name, t in tensors().items()}
    old = {
        "W_enc": weights["encoder.weight"].T.bfloat16(),
        "b_enc": weights["encoder.bias"],
        "decoder.weight": weights["W_dec"].T.bfloat16(),
        "b_dec": weights["b_dec"].half().float(),
    }
    folder = written(tmp_path / "embed_tokens", old, {"expansion_factor": 4, "k": K, "d_in": D})
    check(folder, weights | {"b_dec": old["b_dec"]}, transcode=False)
    assert read(folder).origin.sites == ("embed_tokens",)


def test_one_of_several_seeds_is_found_by_its_hookpoint(tmp_path: Path) -> None:
    folder = written(tmp_path / "h.4" / "seed1", tensors(), TODAY)
    (tmp_path / "config.json").write_text(json.dumps({"model": "gpt2"}))
    origin = read(folder).origin
    assert (origin.model, origin.sites) == ("gpt2", ("h.4",))


@pytest.mark.parametrize(
    ("settings", "weights", "error", "message"),
    [
        ({"activation": "groupmax"}, {}, ConfigError, "activation 'groupmax' cannot be held; expected topk"),
        ({"num_latents": 25}, {}, CorruptError, "25 latents, the weights have 24"),
        ({"skip_connection": True}, {}, CorruptError, "skip_connection is True, the weights differ"),
        ({"k": None}, {}, CorruptError, "k is missing"),
        (
            {},
            {"W_dec": draw(D, F, seed=0)},
            CorruptError,
            r"W_dec has the shape \(6, 24\), expected \(24, 6\); it is t",
        ),
        ({}, {"encoder.weight": draw(D, F, seed=0)}, CorruptError, r"encoder.weight has the shape \(6, 24\), expected"),
        ({}, {"W_dec": None}, CorruptError, "W_dec is missing: an encoder alone"),
        ({}, {"extra": draw(1, seed=0)}, CorruptError, "extra: not part of this format"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    settings: dict, weights: dict, error: type, message: str, tmp_path: Path
) -> None:
    changed = {name: t for name, t in (tensors() | weights).items() if t is not None}
    with pytest.raises(error, match=message):
        read(written(tmp_path / "layers.2", changed, TODAY | settings))
