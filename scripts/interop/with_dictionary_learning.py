"""dictionary_learning's side of the interop check: `load_dictionary`, `encode`, `decode`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from dictionary_learning import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from exchange import Forward, Made, assign, main, weights
from torch import Tensor

K = 8


def make(out: Path, dim: int, width: int) -> Iterator[Made]:
    values = weights(dim, width)
    linear = {
        "encoder__weight": values["W_enc"],
        "encoder__bias": values["b_enc"],
        "decoder__weight": values["W_dec"].T,
    }
    unit = {**linear, "decoder__weight": torch.nn.functional.normalize(values["W_dec"], dim=1).T}
    rows = {"W_enc": values["W_enc"].T, "b_enc": values["b_enc"], "W_dec": values["W_dec"], "b_dec": values["b_dec"]}
    groups = [width // 4, width // 4, width - 2 * (width // 4)]
    bias, threshold = values["b_dec"], torch.tensor(3.0)
    gates = {"encoder__weight": values["W_enc"], "decoder__weight": values["W_dec"].T, "decoder_bias": bias}
    gates |= {"r_mag": values["r"], "gate_bias": values["b_enc"], "mag_bias": values["s"]}
    cases = {
        "AutoEncoder": (AutoEncoder(dim, width), {**unit, "bias": bias}),
        "AutoEncoder-norms": (AutoEncoder(dim, width), {**linear, "bias": bias}),
        "AutoEncoderNew": (AutoEncoderNew(dim, width), {**linear, "decoder__bias": bias}),
        "GatedAutoEncoder": (GatedAutoEncoder(dim, width), gates),
        "JumpReluAutoEncoder": (JumpReluAutoEncoder(dim, width), {**rows, "threshold": values["threshold"]}),
        "AutoEncoderTopK": (AutoEncoderTopK(dim, width, K), {**linear, "b_dec": bias}),
        "BatchTopKSAE": (BatchTopKSAE(dim, width, K), {**linear, "b_dec": bias, "threshold": threshold}),
        "MatryoshkaBatchTopKSAE": (
            MatryoshkaBatchTopKSAE(dim, width, K, groups),
            {**rows, "threshold": threshold},
        ),
    }
    for name, (dictionary, tensors) in cases.items():
        assign(dictionary, **tensors)
        folder = out / name / "resid_post_layer_1" / "trainer_0"
        folder.mkdir(parents=True, exist_ok=True)
        # as `training.trainSAE` saves
        torch.save({key: value.cpu() for key, value in dictionary.state_dict().items()}, folder / "ae.pt")
        trainer = {
            "dict_class": type(dictionary).__name__,
            "activation_dim": dim,
            "dict_size": width,
            "k": K,
            "layer": 1,
            "lm_name": "tiny-llama",
            "submodule_name": "resid_post_layer_1",
        }
        buffer = {"d_submodule": dim, "io": "out", "ctx_len": 64}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
        yield Made(name, load(out / name))


def load(folder: Path) -> Forward:
    (place,) = [path.parent for path in folder.rglob("ae.pt")]
    dictionary, _ = load_dictionary(str(place), device="cpu")

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = dictionary.encode(x)
        return codes, dictionary.decode(codes)

    return forward


if __name__ == "__main__":
    main(make, load)
