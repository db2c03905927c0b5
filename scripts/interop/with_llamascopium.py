"""llamascopium's side of the interop check: `SparseDictionary.from_pretrained`, `encode`, `decode`.

As in its trainer, inputs are normalised before and reconstructions scaled back after.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from exchange import Forward, Made, assign, inputs, main, weights
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from llamascopium.models.sparse_dictionary import SparseDictionary
from torch import Tensor

SITE, MLP = "blocks.1.hook_resid_post", ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
CASES: dict[str, dict[str, Any]] = {
    "relu": {"act_fn": "relu"},
    "relu-no_bias": {"act_fn": "relu", "use_decoder_bias": False},
    "jumprelu": {"act_fn": "jumprelu"},
    "jumprelu-no_norm": {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False},
    "jumprelu-inference": {"act_fn": "jumprelu", "norm_activation": "inference"},
    "jumprelu-token_wise": {"act_fn": "jumprelu", "norm_activation": "token-wise"},
    "topk": {"act_fn": "topk"},
    "topk-no_norm": {"act_fn": "topk", "sparsity_include_decoder_norm": False},
    "topk-inference": {"act_fn": "topk", "norm_activation": "inference"},
    "transcoder": {"act_fn": "jumprelu", "hook_point_in": MLP[0], "hook_point_out": MLP[1]},
    "jumprelu-folded": {"act_fn": "jumprelu"},
    "topk-folded": {"act_fn": "topk"},
    "glu": {"act_fn": "jumprelu", "use_glu_encoder": True},
}


def make(out: Path, dim: int, width: int) -> Iterator[Made]:
    values = weights(dim, width)
    for name, settings in CASES.items():
        given = {"hook_point_in": SITE, "hook_point_out": SITE, **settings}
        config = SAEConfig(
            d_model=dim, expansion_factor=width / dim, top_k=8, dtype=torch.float32, device="cpu", **given
        )
        coder = SparseAutoEncoder(config)
        # normalised inputs have a norm of sqrt(d), and so smaller pre-activations
        unit = 1.0 if config.norm_activation == "inference" else 0.1
        tensors = {
            "W_E": values["W_enc"].T,
            "b_E": unit * values["b_enc"],
            "W_D": values["W_dec"],
            "b_D": values["b_dec"],
        }
        if not config.use_decoder_bias:
            del tensors["b_D"]
        if config.use_glu_encoder:
            tensors |= {"W_E_glu": 0.1 * values["W_dec"].T, "b_E_glu": values["s"]}
        assign(coder, **tensors)
        if config.act_fn == "jumprelu":
            assign(coder, activation_function__log_jumprelu_threshold=(unit * values["threshold"]).log())
        norm = float(inputs(dim).norm(dim=1).mean())
        hooks = dict.fromkeys(config.associated_hook_points, norm)
        if len(hooks) == 2:
            hooks[MLP[1]] = 0.6 * norm
        coder.set_dataset_average_activation_norm(hooks)
        folder = out / name
        coder.save_pretrained(folder, fold_activation_scale=name.endswith("folded"))
        config.save_hyperparameters(folder)
        yield Made(name, load(folder))


def load(folder: Path) -> Forward:
    coder = SparseDictionary.from_pretrained(str(folder))
    config = coder.cfg

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        batch = dict.fromkeys(config.associated_hook_points, x)
        normed, factors = coder.normalize_activations(batch, return_scale_factor=True)
        codes = coder.encode(normed[config.hook_point_in])
        output = config.hook_point_out
        return codes, coder.denormalize_activations({output: coder.decode(codes)}, factors)[output]

    return forward


if __name__ == "__main__":
    main(make, load)
