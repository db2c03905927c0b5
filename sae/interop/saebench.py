"""An autoencoder of ours in the form that SAEBench (0.6) evaluates: dense codes, transposed weights, `cfg`.

    from sae_bench.evals.core.main import multiple_evals
    multiple_evals([("ours", bench_sae("runs/demo", model_name="gpt2"))], ...)

SAEBench asks for what its `custom_saes/base_sae.py` has, and calls `decode(encode(x))`: an autoencoder whose decoder
needs its inputs too (a skip connection, a per-token norm) or that writes another site cannot be measured so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae.config import ConfigError
from sae.interop.export import Finished, open_finished
from sae.models.autoencoder import Autoencoder
from sae.modules.codes import Gated
from sae_kernels import SparseCodes

ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}
"""Code -> its name there; other codes keep ours."""


@dataclass
class BenchConfig:
    """The fields of SAEBench's CustomSAEConfig; mutable, because SAEBench sets some of them."""

    model_name: str
    """Model in TransformerLens' spelling."""
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    """TransformerLens hook."""
    architecture: str
    dtype: str
    device: str
    context_size: int | None = None
    """Tokens a context in training."""
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -1
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class BenchSAE(nn.Module):
    """f = encode(x), x̂ = decode(f), over the last dimension of dense tensors; the weights are views of the model's.

    Args:
        model: the autoencoder.
        cfg: says where it belongs.

    Raises:
        ConfigError: decoding takes more than the codes, or the model reads and writes different sites.
    """

    def __init__(self, model: Autoencoder, cfg: BenchConfig) -> None:
        super().__init__()
        if model.transcodes or model.stem is not None or model.head is not None:
            raise ConfigError("SAEBench: measures autoencoders of one site; this one transcodes, or is of images")
        if model.W_skip is not None or model.per_token_norm:
            what = "per-token norm" if model.per_token_norm else "skip connection"
            raise ConfigError(f"SAEBench: decodes codes alone; this autoencoder's {what} also needs its inputs")
        self.model, self.cfg = model, cfg

    @property
    def W_enc(self) -> Tensor:  # noqa: N802 - the field's name
        """[d_in, d_sae]."""
        return self.model.W_enc.T

    @property
    def W_dec(self) -> Tensor:  # noqa: N802
        """[d_sae, d_in]."""
        return self.model.dictionary.W

    @property
    def b_enc(self) -> Tensor:
        """[d_sae], added to (x - b_dec) W_enc."""
        return self.model.b_enc

    @property
    def b_dec(self) -> Tensor:
        """[d_in]."""
        return self.model.dictionary.b

    @property
    def b_mag(self) -> Tensor:
        """Gated: the bias of the magnitude, e^r b + s [d_sae]."""
        if not isinstance(self.model.code, Gated):
            raise AttributeError("b_mag: of gated autoencoders alone")
        return self.model.code.r.exp() * self.model.b_enc + self.model.code.s

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_dec.dtype

    def to(self, *arguments: Any, **named: Any) -> BenchSAE:
        """As `torch.nn.Module.to`; `cfg` follows."""
        super().to(*arguments, **named)
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        return self

    def encode(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> dense codes [..., d_sae]."""
        return self.model.encode(x.reshape(-1, x.shape[-1]).to(self.dtype)).to_dense().view(*x.shape[:-1], -1)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Dense codes [..., d_sae] -> reconstruction [..., d_in]."""
        rows = SparseCodes.dense(feature_acts.reshape(-1, feature_acts.shape[-1]))
        return self.model.decode(rows).view(*feature_acts.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> reconstruction [..., d_in]."""
        return self.decode(self.encode(x))


def bench_sae(run: str | Path, *, model_name: str | None = None) -> BenchSAE:
    """A finished run as SAEBench takes it.

    Args:
        run: run folder, or a hub repository that holds one.
        model_name: the language model as TransformerLens calls it; by default the run's own name for it.

    Raises:
        ConfigError: a run without a language model or with a site that TransformerLens has no hook for; and as
            `BenchSAE`.
        CorruptError: the run is damaged.
    """
    finished = open_finished(run)
    hook, layer = _hook(finished)
    name = model_name or finished.language_model
    if name is None:
        raise ConfigError(f"{finished.folder}: it names no language model; give model_name")
    model = finished.model
    cfg = BenchConfig(
        model_name=name,
        d_in=model.dim,
        d_sae=model.width,
        hook_layer=layer,
        hook_name=hook,
        architecture=ARCHITECTURES.get(model.code.name, model.code.name),
        dtype=str(model.dictionary.W.dtype).removeprefix("torch."),
        device=str(model.dictionary.W.device),
        context_size=finished.context,
        prepend_bos=finished.bos is not False,
        dataset_path=finished.dataset or "",
    )
    return BenchSAE(model, cfg)


def _hook(finished: Finished) -> tuple[str, int]:
    """The TransformerLens hook that it reads, and its layer."""
    places = finished.inputs
    if len(places) != 1 or places[0].hook is None or places[0].layer is None:
        names = ", ".join(place.name for place in places) or "no site"
        raise ConfigError(f"{finished.folder}: SAEBench needs one site with a TransformerLens hook, got {names}")
    return places[0].hook, places[0].layer
