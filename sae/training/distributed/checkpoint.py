"""Checkpoints of a mesh: every rank writes its part of the tensors into one folder, which is published at once.

The parts are those of torch.distributed.checkpoint, as safetensors; the names are those of a single process's
checkpoint. `sae.training.checkpoint.load_parts` reads them in one process or on another mesh.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, distributed

from sae.base import disk
from sae.base.files import publish_folder
from sae.base.ranks import Ranks
from sae.training.checkpoint import prune, publish_state


def save_parts(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    trainer: dict[str, Any],
    data: dict[str, Any],
    *,
    keep: int,
    ranks: Ranks,
) -> None:
    """Write `folder/<step>`, each rank its part, and delete all but the `keep` newest. All ranks must call this.

    Args:
        tensors: DTensors, and tensors that are the same in all ranks.
        trainer: the trainer's values.
        data: state of the last batch.
    """
    with _shared_folder(folder / f"{step:09d}", ranks) as temporary:
        disk.write_by(temporary, lambda: _write(temporary, tensors))
        if ranks.first:
            publish_state(temporary, folder, trainer, data)
    if ranks.first:
        prune(folder, keep)


def _write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's part of the tensors."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


@contextlib.contextmanager
def _shared_folder(target: Path, ranks: Ranks) -> Iterator[Path]:
    """`publish_folder` by the first rank, for the files of all: it becomes `target` once every rank has written."""
    if ranks.first:
        with publish_folder(target) as temporary:
            ranks.share(temporary)
            yield temporary
    else:
        yield ranks.share(None)
    distributed.barrier()
