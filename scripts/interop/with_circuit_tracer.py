"""circuit-tracer's side of the interop check: `load_transcoders` on a set of one layer, `encode`, `decode`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from circuit_tracer.utils.hf_utils import load_transcoders
from exchange import Forward, Made, assign, main, of_layer, weights
from torch import Tensor

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
CPU = torch.device("cpu")
LAYERS = 3


def make(out: Path, dim: int, width: int) -> Iterator[Made]:
    values = weights(dim, width)
    for name, jumps, skips in (
        ("relu", False, False),
        ("relu-skip", False, True),
        ("jumprelu", True, False),
        ("jumprelu-skip", True, True),
        ("jumprelu-below_zero", True, False),
    ):
        theta = values["threshold"] - (2.5 if name.endswith("below_zero") else 0)
        act = JumpReLU(theta, 0.1) if jumps else torch.nn.functional.relu
        coder = SingleLayerTranscoder(
            dim, width, act, layer_idx=0, skip_connection=skips, device=CPU, dtype=torch.float32
        )
        assign(coder, **{key: values[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")})
        if skips:
            assign(coder, W_skip=values["W_skip"])
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        coder.to_safetensors(str(folder / "layer_0.safetensors"))
        config = {"model_name": "tiny-llama", "model_kind": "transcoder_set", "scan": "tiny", **HOOKS}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        yield Made(name, load(folder))
    yield from cross_layer(out, dim, width)


def cross_layer(out: Path, dim: int, width: int) -> Iterator[Made]:
    """Cross-layer transcoders of three layers."""
    for name, act in (("clt-relu", "relu"), ("clt-jumprelu", "jump_relu")):
        coder = CrossLayerTranscoder(LAYERS, width, dim, act, lazy_decoder=False, device=CPU, dtype=torch.float32)
        for layer in range(LAYERS):
            values = weights(dim, width, seed=layer)
            with torch.no_grad():
                for key in ("W_enc", "b_enc", "b_dec"):
                    getattr(coder, key)[layer] = values[key]
                for target in range(LAYERS - layer):
                    coder.W_dec[layer][:, target] = values["W_dec"].roll(target, 1)
                if act == "jump_relu":
                    coder.activation_function.threshold[layer] = values["threshold"]
        folder = out / name
        coder.to_safetensors(str(folder))
        config = {"model_name": "tiny-llama", "model_kind": "cross_layer_transcoder", "scan": "tiny", **HOOKS}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        yield Made(name, load(folder))


def load(folder: Path) -> Forward:
    if (folder / "W_enc_0.safetensors").exists():
        coder = load_clt(str(folder), device=CPU, dtype=torch.float32, lazy_decoder=False)

        def across(x: Tensor) -> tuple[Tensor, Tensor]:
            inputs = torch.stack([of_layer(x, layer) for layer in range(LAYERS)])
            return coder.encode(inputs).transpose(0, 1).flatten(1), coder(inputs).transpose(0, 1).flatten(1)

        return across
    config = yaml.safe_load((folder / "config.yaml").read_text())
    files = [str(path) for path in sorted(folder.glob("layer_*.safetensors"))]
    coders = load_transcoders({**config, "transcoders": files}, device=CPU)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = coders[0].encode(x)
        return codes, coders[0].decode(codes, x)

    return forward


if __name__ == "__main__":
    main(make, load)
