"""A step on a mesh: whole gradients by autograd, summed over the ranks that have a share in them.

Every rank computes the mean loss of its n = N/D rows; the gradient of the batch is the mean over data ranks. Parameters
of latents (rows of encoder and dictionary, thresholds) have their whole gradient in one latent rank; the others, the
same in all ranks, have parts of it everywhere, which are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.config import OptimConfig
from sae.models.autoencoder import Autoencoder
from sae.modules.losses import Term
from sae.modules.sums import total
from sae.modules.views import DeadRows, Everything, SquaredError
from sae.training.distributed.mesh import Mesh
from sae.training.distributed.model import MeshDictionary
from sae.training.optimizers import Optimizer, latent_rows
from sae.training.routes.autograd import AutogradRoute
from sae_kernels import SparseCodes, sparse_decode

OF_RECONSTRUCTION = ("squared_error", "nested_error", "gate_error", "auxk")
"""Terms of a reconstruction: every latent rank has their whole value."""
OF_LATENTS = ("l1", "tanh", "lp", "l0", "gate_l1", "pre_activation")
"""Terms that are sums over latents: every latent rank has its part."""


@dataclass(frozen=True, kw_only=True)
class MeshDeadRows(DeadRows):
    """The dead latents of this rank, among those of all."""

    mesh: Mesh
    dictionary: MeshDictionary
    counts: Sequence[int]
    """Dead latents of every latent rank."""

    def strongest(self) -> Tensor:
        """A code of the largest of all ranks' dead latents, at those of this rank [n, R]."""
        most, mesh = min(self.auxk, max(self.counts)), self.mesh
        if mesh.shape.latent == 1:
            return super().strongest()
        values, top = self.pre.detach().topk(min(most, self.pre.shape[1]), dim=-1)
        padded = torch.nn.functional.pad(values.float(), (0, most - values.shape[1]), value=-torch.inf)
        candidates = mesh.gather(padded, "latent").transpose(0, 1).flatten(1)
        largest = candidates.topk(min(self.auxk, sum(self.counts)), dim=-1).indices
        kept = torch.zeros_like(candidates, dtype=torch.bool).scatter(1, largest, True)
        kept = kept.unflatten(1, (mesh.shape.latent, most))[:, mesh.i_latent, : values.shape[1]]
        among = torch.zeros_like(self.pre, dtype=torch.bool).scatter(1, top, kept)
        return torch.where(among, torch.relu(self.pre), 0)

    def decoded(self, code: Tensor) -> Tensor:
        """The reconstruction from the dead latents of all ranks."""
        return self.dictionary.sum(code @ self.W_dec)

    def variance(self) -> Tensor:
        """Over the rows of all data ranks."""
        rows = len(self.residual) * self.mesh.shape.data
        mean = self.mesh.total(self.residual.sum(0), "data") / rows
        return self.mesh.total((self.residual - mean).pow(2).sum(), "data") / rows


@dataclass(frozen=True, kw_only=True)
class MeshEverything(Everything):
    """One forward pass over this rank's rows and latents."""

    mesh: Mesh
    dictionary: MeshDictionary
    counts: Sequence[int]
    """Dead latents of every latent rank."""

    @property
    def any_dead(self) -> bool:
        """Whether there are dead latents in any rank."""
        return sum(self.counts) > 0

    def dead_rows(self) -> DeadRows:
        """The rows of this rank's dead latents."""
        rows = super().dead_rows()
        mesh = {"mesh": self.mesh, "dictionary": self.dictionary, "counts": self.counts}
        return MeshDeadRows(**vars(rows), **mesh)

    def error(self, asked: SquaredError) -> Tensor:
        """The squared error that a term names [n]; prefixes count the latents of all ranks."""
        if asked.prefixes is None:
            return self.output.squared_error()
        codes, first = self.entries.codes, self.mesh.i_latent * self.entries.codes.width
        groups = []
        zero = torch.zeros_like(self.b_dec)
        for low, high in zip([0, *asked.prefixes[:-1]], asked.prefixes, strict=True):
            inside = (codes.indices >= low - first) & (codes.indices < high - first)
            group = codes.with_values(torch.where(inside, codes.values, 0))
            groups.append(sparse_decode(group, self.W_dec.to(group.values.dtype), zero).float())
        parts = self.dictionary.sum(torch.stack(groups)).cumsum(0) + self.dictionary.bias.float()
        return (self.output.target - parts).pow(2).sum(-1).mean(0)


class MeshRoute(AutogradRoute):
    """`AutogradRoute` on one rank's rows and latents."""

    name = "autograd"

    def __init__(
        self,
        model: Autoencoder,
        optimizer: Optimizer,
        config: OptimConfig,
        auxk: int,
        compute: torch.dtype,
        site_widths: Sequence[int],
        mesh: Mesh,
    ) -> None:
        super().__init__(model, optimizer, config, auxk, compute, site_widths)
        self.mesh = mesh
        self.of_latents = latent_rows(optimizer.parameters)
        self.counts: Sequence[int] = ()
        """Dead latents of every latent rank; the trainer refreshes them with its list."""
        assert isinstance(model.dictionary, MeshDictionary)
        self.dictionary = model.dictionary

    def _everything(self, **fields: object) -> Everything:
        return MeshEverything(mesh=self.mesh, dictionary=self.dictionary, counts=self.counts, **fields)  # type: ignore

    def _frozen_error(self, codes: SparseCodes, target: Tensor) -> Tensor:
        estimate = self.dictionary.partial(codes, self.dictionary.W.detach()) + self.dictionary.b.detach()
        return (target.detach() - estimate).float().pow(2).sum(-1)

    def _over_ranks(
        self, terms: Sequence[Term], loss: Tensor, parts: dict[str, Tensor], gradients: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        mesh = self.mesh
        data, latent = mesh.shape
        shares = [part / (data * latent if name in OF_RECONSTRUCTION else data) for name, part in parts.items()]
        sums = mesh.total(torch.stack(shares).float(), "all")
        parts = dict(zip(parts, sums, strict=True))
        loss = sum((term.weight * parts[term.name] for term in terms), loss.new_zeros(()))
        whole: dict[str, Tensor] = {}
        for name, gradient in gradients.items():
            if name in self.of_latents:
                whole[name] = mesh.total(gradient, "data") / data
                continue
            if name == "W_skip" and mesh.i_latent:  # every latent rank has the whole of it
                gradient = torch.zeros_like(gradient)
            whole[name] = mesh.total(gradient, "all") / data
        return loss, parts, whole

    def _norm(self, gradients: dict[str, Tensor]) -> Tensor:
        squares = {name: total(g.float().square()) for name, g in gradients.items()}
        zero = next(iter(squares.values())).new_zeros(())
        of_latents = sum((s for name, s in squares.items() if name in self.of_latents), zero)
        rest = sum((s for name, s in squares.items() if name not in self.of_latents), zero)
        return (self.mesh.total(of_latents, "latent") + rest).sqrt()
