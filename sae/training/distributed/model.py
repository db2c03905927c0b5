"""One latent rank's part of an autoencoder: F/L rows, with a code and a dictionary that answer for all F latents.

    model = part_of(recipe, mesh)        # an `Autoencoder` of width F/L; latent i is latent i_latent * F/L + i of all

Every rank lists candidates among its own latents; the ranks exchange their values, and the largest of all remain. A
reconstruction is the sum of the ranks' partial ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sae.models.autoencoder import Autoencoder
from sae.models.language import recipe_of
from sae.models.recipe import Recipe
from sae.modules.codes import BatchTopK, Code, TopK
from sae.modules.dictionary import Dictionary
from sae.training.distributed.mesh import Mesh, SumOverLatents
from sae.training.distributed.select import largest_of_batch
from sae_kernels import SparseCodes, batch_topk_encode, sparse_decode, topk_encode


class MeshTopK(TopK):
    """`TopK` among the latents of all ranks."""

    def __init__(self, k: int, mesh: Mesh) -> None:
        super().__init__(k)
        self.mesh = mesh

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """Rectangular codes [n, k] of this rank's latents, zero where k others are larger."""
        mesh = self.mesh
        listed = topk_encode(x, W_enc, b_enc, self.k, b_pre)
        if mesh.shape.latent == 1:
            return listed
        # ranks hold latents in order, and each lists equal values by latent: a stable sort lets the lowest latent win
        candidates = mesh.gather(listed.values.detach().float(), "latent").transpose(0, 1).flatten(1)
        largest = candidates.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        kept = torch.zeros_like(candidates, dtype=torch.bool).scatter(1, largest, True)
        kept = kept.unflatten(1, (mesh.shape.latent, self.k))[:, mesh.i_latent]
        return listed.with_values(torch.where(kept, listed.values, 0))


class MeshBatchTopK(BatchTopK):
    """`BatchTopK` over the rows and latents of all ranks."""

    def __init__(self, k: int, mesh: Mesh) -> None:
        super().__init__(k)
        self.mesh = mesh

    def select(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor | None) -> SparseCodes:
        """CSR codes of this rank's rows and latents; N k entries in all ranks together, some of them zeros unlisted."""
        mesh = self.mesh
        # one rank may have all of the N k largest: N = D n rows of k each
        most = min(mesh.shape.data * self.k, W_enc.shape[0])
        listed = batch_topk_encode(x, W_enc, b_enc, most, b_pre)
        return largest_of_batch(listed, mesh.shape.data * len(x) * self.k, mesh)


MESH_CODES: dict[type[Code], Callable[[int, Mesh], Code]] = {TopK: MeshTopK, BatchTopK: MeshBatchTopK}
"""Code that selects among latents -> the one that selects among those of all ranks."""


class MeshDictionary(Dictionary):
    """F/L of the atoms. The bias is the same in all ranks; its gradient is a sum over them, so the first one counts."""

    def __init__(self, width: int, dim: int, mesh: Mesh, *, unit: bool) -> None:
        super().__init__(width, dim, unit=unit)
        self.mesh = mesh

    @property
    def bias(self) -> Tensor:
        """b, with a gradient in the first latent rank alone."""
        return self.b if self.mesh.i_latent == 0 else self.b.detach()

    def decode(self, codes: SparseCodes) -> Tensor:
        """Codes of n tokens over this rank's latents -> the reconstruction [n, d] from all latents."""
        return self.partial(codes, self.W) + self.bias

    def partial(self, codes: SparseCodes, W: Tensor) -> Tensor:
        """Σ over the latents of all ranks, without the bias [n, d]; `W` are this rank's atoms."""
        dtype = codes.values.dtype
        zero = torch.zeros_like(self.b, dtype=dtype)
        own = codes.values @ W.to(dtype) if codes.in_order else sparse_decode(codes, W.to(dtype), zero)
        return self.sum(own)

    def sum(self, partial: Tensor) -> Tensor:
        """The float32 sum of partial results over latent ranks."""
        return SumOverLatents.apply(partial.float(), self.mesh)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def note_fired(self, codes: SparseCodes) -> None:
        """As in `Dictionary`, of the rows of all data ranks."""
        fired = torch.where(codes.values > 0, codes.indices, codes.width).flatten()
        mask = torch.zeros(codes.width + 1, dtype=torch.uint8, device=fired.device).index_fill_(0, fired, 1)
        self.tokens_since_fired += codes.tokens * self.mesh.shape.data
        self.tokens_since_fired.masked_fill_(self.mesh.largest(mask[:-1], "data").bool(), 0)


def part_of(recipe: Recipe, mesh: Mesh) -> Autoencoder:
    """This rank's part of the recipe's autoencoder, not yet initialised."""
    width = recipe.config.width // mesh.shape.latent
    narrow = dataclasses.replace(recipe.config, width=width)
    model = recipe_of(narrow, recipe.site_widths, recipe.target_widths).model
    whole = model.dictionary
    model.dictionary = MeshDictionary(width, whole.W.shape[1], mesh, unit=whole.unit)
    model.dictionary.b.requires_grad_(whole.b.requires_grad)
    if type(model.code) in MESH_CODES:
        model.code = MESH_CODES[type(model.code)](recipe.config.k, mesh)
    model.code.shares, model.code.mean = mesh.shape.data, mesh.mean
    return model


@torch.no_grad()
def copy_part(whole: nn.Module, part: nn.Module, mesh: Mesh) -> None:
    """Fill this rank's part with its rows of the whole autoencoder, which has the same names."""
    tensors = whole.state_dict()
    for name, tensor in part.state_dict().items():
        source = tensors[name]
        rows = slice(0, None) if source.shape == tensor.shape else _rows(mesh, len(tensor))
        tensor.copy_(source[rows] if source.ndim else source)


def _rows(mesh: Mesh, count: int) -> slice:
    return slice(mesh.i_latent * count, (mesh.i_latent + 1) * count)
