"""Settings of runs on files of activations: `sae train --data FILE`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sae.config.fields import Count, InnerShare, Limited, WholeNumber, check
from sae.config.run import OptimConfig, RunConfig
from sae.config.variants import SAEConfig

SUFFIXES = (".safetensors", ".npy", ".parquet")


def is_tensor_data(data: str) -> bool:
    """Whether --data names activations rather than images: by its suffix, or by the files of a folder."""
    path = Path(data).expanduser()
    if path.is_dir():
        return any(file.suffix.lower() in SUFFIXES for file in path.iterdir())
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True, kw_only=True)
class TensorDataConfig(Limited):
    """Which activations."""

    data: str
    """A .safetensors, .npy or .parquet file of activations [rows, width], or a folder of such files."""
    tensor: str | None = None
    """.safetensors: name of the tensor; needed where several could be meant."""
    column: str | None = None
    """.parquet: name of the column of lists; needed where several could be meant."""
    heldout: InnerShare = 0.1
    """Share of the rows set aside for evaluation, in runs of neighbouring rows."""
    split_seed: WholeNumber = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.data), "data", self.data, f"a file ({', '.join(SUFFIXES)}) or a folder of such files")
        object.__setattr__(self, "data", str(Path(self.data).expanduser().absolute()))


@dataclass(frozen=True, kw_only=True)
class TensorTrainConfig(RunConfig):
    """One training run on a file of activations."""

    rows: TensorDataConfig
    sae: SAEConfig = field(default_factory=SAEConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: Count = 1
    """Passes over the training rows."""
    buffer_mb: Count = 512
    """Memory of the shuffle buffer in MiB: rows are mixed within one buffer."""
