"""The trainer of one rank: its slice of every batch, its part of the latents; sums and checkpoints with all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.ranks import Ranks
from sae.config import OptimConfig
from sae.models.recipe import Recipe
from sae.training.checkpoint import load_parts, prune, verified
from sae.training.distributed.checkpoint import save_parts
from sae.training.distributed.mesh import Mesh
from sae.training.distributed.model import copy_part, part_of
from sae.training.distributed.route import MeshRoute
from sae.training.routes import StepOutcome
from sae.training.schedules import default_peak
from sae.training.trainer import FIRST_ACTIVE, Trainer


class MeshTrainer(Trainer):
    """`Trainer` on a mesh. All ranks must call every method together.

    Args:
        make: gives the whole recipe; its weights are drawn in every rank, so that they are those of a single process.
        mesh, ranks: this rank's place.
        rest: as of `Trainer`.
    """

    def __init__(
        self,
        make: Callable[[], Recipe],
        optim: OptimConfig,
        *,
        mesh: Mesh,
        ranks: Ranks,
        steps: int,
        auxk: int,
        **rest: Any,
    ) -> None:
        self.mesh, self.ranks, self.make = mesh, ranks, make
        with torch.device("meta"):
            whole = make()
        self._width = whole.model.width
        peak = whole.lr or default_peak(self._width, steps, optim.optimizer)
        part = whole._replace(model=part_of(whole, mesh), lr=peak)
        super().__init__(part, optim, steps=steps, auxk=auxk, **rest)
        self.shares = mesh.shape.data
        self.route: MeshRoute = MeshRoute(
            self.model, self.optimizer, optim, auxk, self.compute, whole.target_widths, mesh
        )
        self.graph = None
        if self.sparsity is not None:
            self.sparsity.over_ranks, self.sparsity.shares = lambda values: mesh.total(values, "all"), self.shares

    @property
    def width(self) -> int:
        """Number of latents of all ranks, F."""
        return self._width

    def initialise(self, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, active: float = FIRST_ACTIVE) -> None:
        """As `Trainer.initialise`, on the whole first batches."""
        whole = [self._whole_batch(batch) for batch in inputs]
        same = all(x is y for x, y in zip(inputs, targets, strict=True))
        super().initialise(whole, whole if same else [self._whole_batch(batch) for batch in targets], active=active)

    def _whole_batch(self, rows: Tensor) -> Tensor:
        return self.mesh.gather(rows.to(self.device), "data").flatten(0, 1)

    def _draw_weights(self) -> None:
        model = self.make().model
        model.initialise(torch.Generator().manual_seed(self.seed))
        copy_part(model, self.model, self.mesh)

    def _refresh_dead(self) -> None:
        super()._refresh_dead()
        self._count_dead()

    def _count_dead(self) -> None:
        number = torch.tensor([len(self.dead)], device=self.device)
        self.route.counts = self.mesh.gather(number, "latent").flatten().tolist()

    @torch.no_grad()
    def _note(self, taken: StepOutcome, target: Tensor) -> None:
        """Add the step to the window; sums of all ranks in one exchange, in float64, where Σ t² - N mean² is exact."""
        data, latent = self.mesh.shape
        target = target.double()
        active = (taken.codes.values != 0).sum().double()
        over_data = torch.cat([taken.error.double().sum().view(1), target.square().sum().view(1), target.sum(0)])
        sums = self.mesh.total(torch.cat([active.view(1), over_data / latent]), "all")
        rows = data * len(target)
        variance = sums[2] - sums[3:].square().sum() / rows
        self._add(taken, variance, sums[1], sums[0] / rows)

    def _dead_share(self) -> float:
        dead = self.model.dictionary.dead(self.dead_after).double().sum()
        return (self.mesh.total(dead, "latent") / self.width).item()

    def save(self, folder: Path, data: dict[str, Any], *, keep: int) -> None:
        """Write a checkpoint of this step, every rank its part; it reads like one of a single process."""
        tensors, values = self._state()
        save_parts(folder, self.taken, tensors, values, data, keep=keep, ranks=self.ranks)

    def resume(self, folder: Path, *, keep: int) -> dict[str, Any] | None:
        """Restore the newest of `keep` checkpoints, of any number of ranks."""
        newest = self.ranks.share(verified(folder) if self.ranks.first else None)
        if newest is None:
            return None
        parts, _ = super()._state()
        views = {name: self.mesh.sharded(t.detach()) for name, t in parts.items() if self._of_latents(name)}
        tensors = load_parts(newest.path, views) | {name: view.to_local() for name, view in views.items()}
        number = self.width // self.mesh.shape.latent
        dead = tensors["dead"] - self.mesh.i_latent * number
        tensors["dead"] = dead[(dead >= 0) & (dead < number)]
        for name, rows in tensors.items():
            if name.startswith("recent."):
                tensors[name] = rows.chunk(self.shares)[self.mesh.i_data]
        self.restore(tensors, newest.trainer)
        if self.ranks.first:
            prune(folder, keep)
        self._count_dead()
        return newest.data

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As of `Trainer`, under the same names; what belongs to latents as DTensors."""
        tensors, values = super()._state()
        number = self.width // self.mesh.shape.latent
        for name, tensor in tensors.items():
            if self._of_latents(name):
                tensors[name] = self.mesh.sharded(tensor.detach())
            elif name.startswith("recent."):
                tensors[name] = self._whole_batch(tensor).cpu()
            else:
                tensors[name] = tensor.detach().clone()  # some share their memory, which safetensors refuses
        # a latent that is not dead takes the last place of all
        padded = torch.full((max(self.route.counts, default=0),), self.width, device=self.device)
        padded[: len(self.dead)] = self.dead + self.mesh.i_latent * number
        dead = self.mesh.gather(padded, "latent").flatten()
        tensors["dead"] = dead[dead < self.width]
        return tensors, values

    def _of_latents(self, name: str) -> bool:
        """Whether a tensor of the state has a row a latent."""
        place, _, rest = name.partition(".")
        if place == "optimizer":
            return rest.partition(".")[2] in self.route.of_latents
        return place == "model" and rest in (*self.route.of_latents, "dictionary.tokens_since_fired")

    @torch.no_grad()
    def join(self) -> None:
        """In the first rank, hold the whole autoencoder and the newest rows of all ranks, as `finished` needs them.

        No step can be taken after it.
        """
        whole = self.make().model.to(self.device) if self.ranks.first else None
        target = {} if whole is None else whole.state_dict()
        for name, tensor in self.model.state_dict().items():
            if self._of_latents(f"model.{name}"):
                tensor = self.mesh.gather(tensor, "latent").flatten(0, 1)
            if whole is not None:
                target[name].copy_(tensor)
        self._recent = [self._whole_batch(rows).cpu() for rows in self._recent]
        if whole is not None:
            self.model = whole
