"""SAELens' side of the interop check: `SAE.load_from_disk`, `encode`, `decode`, as a user's script has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sae_lens.saes as saes
import torch
from exchange import Forward, Made, assign, main, weights
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

K = 8
METADATA = {
    "model_name": "tiny-llama",
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": "blocks.1.hook_resid_post",
    "hook_head_index": None,
    "context_size": 64,
    "prepend_bos": True,
    "dataset_path": "texts",
    "model_from_pretrained_kwargs": {},
}
OUT = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
INFERENCE: dict[str, tuple[type, type, dict[str, Any]]] = {
    "standard": (saes.StandardSAE, saes.StandardSAEConfig, {}),
    "standard-layer_norm": (saes.StandardSAE, saes.StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "standard-no_b_dec": (saes.StandardSAE, saes.StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "topk": (saes.TopKSAE, saes.TopKSAEConfig, {"k": K}),
    "topk-by_norm": (saes.TopKSAE, saes.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "topk-by_norm-no_b_dec": (
        saes.TopKSAE,
        saes.TopKSAEConfig,
        {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False},
    ),
    "topk-layer_norm": (saes.TopKSAE, saes.TopKSAEConfig, {"k": K, "normalize_activations": "layer_norm"}),
    "jumprelu": (saes.JumpReLUSAE, saes.JumpReLUSAEConfig, {}),
    "gated": (saes.GatedSAE, saes.GatedSAEConfig, {}),
    "gated-no_b_dec": (saes.GatedSAE, saes.GatedSAEConfig, {"apply_b_dec_to_input": False}),
    "transcoder": (saes.Transcoder, saes.TranscoderConfig, {}),
    "skip_transcoder": (saes.SkipTranscoder, saes.SkipTranscoderConfig, {}),
    "jumprelu_transcoder": (saes.JumpReLUTranscoder, saes.JumpReLUTranscoderConfig, {}),
    "jumprelu_transcoder-below_zero": (saes.JumpReLUTranscoder, saes.JumpReLUTranscoderConfig, {}),
    "jumprelu_skip_transcoder": (saes.JumpReLUSkipTranscoder, saes.JumpReLUSkipTranscoderConfig, {}),
    "matching_pursuit": (saes.MatchingPursuitSAE, saes.MatchingPursuitSAEConfig, {"max_iterations": K}),
    "temporal": (saes.TemporalSAE, saes.TemporalSAEConfig, {"kval_topk": K, "n_heads": 4, "bottleneck_factor": 2}),
}
"""Case -> class, its configuration's class, settings; all that SAELens saves for inference."""


def tensors(sae: torch.nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values that a class has parameters for, in its spelling."""
    spelled = {
        "W_enc": values["W_enc"].T,
        "W_dec": values["W_dec"],
        "b_enc": values["b_enc"],
        "b_dec": values["b_dec"],
        "threshold": values["threshold"],
        "W_skip": values["W_skip"],
        "b_gate": values["b_enc"],
        "b_mag": values["s"],
        "r_mag": values["r"],
    }
    return {name: value for name, value in spelled.items() if name in dict(sae.named_parameters())}


def make(out: Path, dim: int, width: int) -> Iterator[Made]:
    values = weights(dim, width)
    for name, (cls, config, settings) in INFERENCE.items():
        transcodes = "transcoder" in name
        metadata = SAEMetadata(**{**METADATA, **(OUT if transcodes else {})})
        if transcodes:
            settings = {**settings, "d_out": dim, "apply_b_dec_to_input": False}
        sae = cls(config(d_in=dim, d_sae=width, metadata=metadata, **settings))
        assign(sae, **tensors(sae, values))
        if name == "matching_pursuit":
            assign(sae, W_dec=torch.nn.functional.normalize(values["W_dec"], dim=1))
        if name.endswith("below_zero"):
            assign(sae, threshold=values["threshold"] - 2.5)
        sae.save_model(out / name)
        yield Made(name, load(out / name))
    yield from trained(out, dim, width, values)


def trained(out: Path, dim: int, width: int, values: dict[str, Tensor]) -> Iterator[Made]:
    """What SAELens saves at the end of trainings whose selection depends on the batch, or that scale their inputs."""
    common: dict[str, Any] = {"d_in": dim, "d_sae": width, "metadata": SAEMetadata(**METADATA)}
    cases = {
        "batchtopk": saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(k=K, **common)),
        "matryoshka": saes.MatryoshkaBatchTopKTrainingSAE(
            saes.MatryoshkaBatchTopKTrainingSAEConfig(k=K, matryoshka_widths=[width // 4, width // 2, width], **common)
        ),
        "topk-folded_scale": saes.TopKTrainingSAE(
            saes.TopKTrainingSAEConfig(k=K, normalize_activations="expected_average_only_in", **common)
        ),
    }
    for name, sae in cases.items():
        assign(sae, **tensors(sae, values))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold = torch.tensor(3.0).to(sae.topk_threshold)
        if name == "topk-folded_scale":
            sae.fold_activation_norm_scaling_factor(0.4)
        sae.save_inference_model(out / name)
        yield Made(name, load(out / name))


def load(folder: Path) -> Forward:
    sae = SAE.load_from_disk(folder)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(sae, saes.TemporalSAE):  # attends to earlier tokens
            return sae.encode(x[None])[0], sae(x[None])[0]
        codes = sae.encode(x)
        # a transcoder's skip connection is in `forward` alone
        return codes, sae(x) if hasattr(sae, "W_skip") else sae.decode(codes)

    return forward


if __name__ == "__main__":
    main(make, load)
