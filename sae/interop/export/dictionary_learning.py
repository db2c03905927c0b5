"""dictionary_learning (0.1): `ae.pt`, a bare state dict, and `config.json`.

load_dictionary(out, device="cpu")

Its top k and gated classes subtract their bias from the input as ours do; its JumpReLU class does not, so the bias of
the encoder takes that up. A run saved as JumpReLU whose latents share one threshold (batchtopk, temporal, matryoshka)
is written as BatchTopKSAE or MatryoshkaBatchTopKSAE, any other as JumpReluAutoEncoder. A relu is AutoEncoder where
atoms have unit norm; `load_dictionary` would rescale others, which are written as JumpReLU with thresholds of 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.files import write_file, write_json
from sae.config import SAEConfig, from_json
from sae.interop.export import Finished
from sae.models.variants.selecting import prefixes
from sae.modules.codes import Gated, JumpReLU, ReLU, TopK

FORMAT = "dictionary_learning"
State = dict[str, Tensor]


def write(run: Finished, out: Path) -> dict[str, Any]:
    model = run.model
    if model.transcodes or model.W_skip is not None:
        run.refuse(FORMAT, run.described)
    if model.per_token_norm:
        run.refuse(FORMAT, "a per-token norm")
    name, state, k = _state(run)
    state = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
    write_file(out / "ae.pt", lambda stream: torch.save(state, stream))
    site = run.inputs[0] if run.inputs else None
    trainer = {
        "trainer_class": None,
        "dict_class": name,
        "activation_dim": model.dim,
        "dict_size": model.width,
        **({} if k is None else {"k": k}),
        "layer": None if site is None else site.layer,
        "lm_name": run.language_model,
        "submodule_name": None if site is None else site.path or site.name,
        "wandb_name": f"sparsight-{run.variant}",
    }
    buffer = {"d_submodule": model.dim, "io": "out", "ctx_len": run.context}
    write_json(out / "config.json", {"trainer": trainer, "buffer": buffer})
    return {"class": name, "load": 'dictionary_learning.utils.load_dictionary("OUT", device="cpu")'}


@torch.no_grad()
def _state(run: Finished) -> tuple[str, State, int | None]:
    """Name of the class, its state dict, and k where the class has one.

    Raises:
        ConfigError: there is no such class.
    """
    model, code = run.model, run.model.code
    linear = {"encoder.weight": model.W_enc, "encoder.bias": model.b_enc, "decoder.weight": model.dictionary.W.T}
    bias = model.dictionary.b
    if isinstance(code, TopK):
        return "AutoEncoderTopK", {**linear, "b_dec": bias, **_selection(code.k, -1.0)}, code.k
    if isinstance(code, Gated):
        del linear["encoder.bias"]
        magnitude = code.s + code.r.exp() * model.b_enc
        gates = {"r_mag": code.r, "gate_bias": model.b_enc, "mag_bias": magnitude}
        return "GatedAutoEncoder", {**linear, "decoder_bias": bias, **gates}, None
    if isinstance(code, ReLU):
        norms = model.dictionary.W.norm(dim=1)
        # `torch.allclose(norms, 1)` is its own test for atoms that it leaves as they are
        if torch.allclose(norms, torch.ones_like(norms)):
            return "AutoEncoder", {**linear, "bias": bias}, None
        return "JumpReluAutoEncoder", _thresholded(run, torch.zeros(model.width)), None
    if isinstance(code, JumpReLU):
        if below := int((code.theta < 0).sum()):
            run.refuse(FORMAT, f"thresholds below 0 ({below} latents): a relu follows")
        settings = _settings(run)
        if settings is None or not bool((code.theta == code.theta[0]).all()):
            return "JumpReluAutoEncoder", _thresholded(run, code.theta), None
        selection = _selection(settings.k, float(code.theta[0]))
        if run.variant == "matryoshka":
            bounds = torch.tensor([0, *prefixes(settings)])
            whole = {"W_enc": model.W_enc.T, "b_enc": model.b_enc, "W_dec": model.dictionary.W, "b_dec": bias}
            return "MatryoshkaBatchTopKSAE", {**whole, **selection, "group_sizes": bounds.diff()}, settings.k
        return "BatchTopKSAE", {**linear, "b_dec": bias, **selection}, settings.k
    run.refuse(FORMAT, run.described)


def _selection(k: int, threshold: float) -> State:
    return {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(threshold)}


def _thresholded(run: Finished, theta: Tensor) -> State:
    """State of a JumpReluAutoEncoder, which encodes x and not x - b_dec."""
    model = run.model
    b_enc = model.b_enc.double() - model.W_enc.double() @ model.dictionary.b.double()
    return {
        "W_enc": model.W_enc.T,
        "b_enc": b_enc.float(),
        "W_dec": model.dictionary.W,
        "b_dec": model.dictionary.b,
        "threshold": theta,
    }


def _settings(run: Finished) -> SAEConfig | None:
    """The run's settings, if it selected k of the average token while it was trained."""
    described = run.record.get("train", {}).get("sae")
    if described is None or run.variant not in ("batchtopk", "matryoshka", "temporal"):
        return None
    return from_json(SAEConfig, described, f"{run.folder}: train.sae")
