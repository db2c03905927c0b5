"""What `SparseCodes.validate` accepts, and what it says of codes that break the layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_kernels import SparseCodes

VALUES = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.5, 0.0]])
INDICES = torch.tensor([[4, 0, 2], [1, 3, 2]])
OFFSETS = torch.tensor([0, 2, 2, 6])


def csr(indices: Tensor = INDICES, offsets: Tensor = OFFSETS) -> SparseCodes:
    """Three tokens with 2, 0 and 4 entries."""
    return SparseCodes(VALUES.flatten(), indices.flatten(), 5, offsets)


@pytest.mark.parametrize(
    "codes",
    [
        SparseCodes(VALUES, INDICES, 5),
        csr(torch.tensor([4, 0, 2, 1, 3, 4])),
        SparseCodes.dense(VALUES),
        SparseCodes(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 5, torch.zeros(4, dtype=torch.int64)),
        SparseCodes(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), 5),
        SparseCodes(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64), 5),
    ],
    ids=["rectangular", "csr", "dense", "no entries", "no tokens", "no latents a token"],
)
def test_codes_in_every_layout_are_valid(codes: SparseCodes) -> None:
    assert codes.validate() is codes


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (SparseCodes(VALUES.long(), INDICES, 5), "values: expected a floating-point dtype; got torch.int64"),
        (SparseCodes(VALUES, INDICES.int(), 5), "indices: expected int64; got torch.int32"),
        (csr(offsets=OFFSETS.int()), "offsets: expected int64; got torch.int32"),
        (SparseCodes(VALUES, INDICES, 4), r"indices: expected in \[0, 4\); token 0 lists latent 4"),
        (SparseCodes(VALUES, INDICES - 1, 5), r"indices: expected in \[0, 5\); token 0 lists latent -1"),
        (SparseCodes(VALUES, torch.tensor([[4, 0, 2], [1, 3, 1]]), 5), "indices: token 1 lists latent 1 twice"),
        (csr(), "indices: token 2 lists latent 2 twice"),
        (csr(offsets=torch.tensor([0, 2, 5])), "offsets: expected from 0 to 6, the number of entries; got 0 to 5"),
        (csr(offsets=torch.tensor([1, 2, 6])), "offsets: expected from 0 to 6, the number of entries; got 1 to 6"),
        (csr(offsets=torch.tensor([0, 4, 2, 6])), "offsets: .*; token 1 has fewer than 0"),
        (csr(offsets=torch.zeros(0, dtype=torch.int64)), r"offsets: expected \[N \+ 1\]; got shape \(0,\)"),
        (SparseCodes(VALUES, INDICES, 3 + 2, in_order=True), "in_order: expected every token to list latents 0 to 4"),
    ],
)
def test_broken_codes_are_refused_by_name(codes: SparseCodes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codes.validate()


def layouts() -> list[SparseCodes]:
    """Rectangular, dense and CSR codes of three tokens over five latents."""
    dense = torch.tensor([[0.0, 2, 0, 1, 0], [0, 0, 3, 0, 0], [0, 0, 0, 0, 0]])
    rectangular = SparseCodes(torch.tensor([[2.0, 1], [3, 0], [0, 0]]), torch.tensor([[1, 3], [2, 0], [4, 1]]), 5)
    csr = SparseCodes(torch.tensor([2.0, 1, 3]), torch.tensor([1, 3, 2]), 5, torch.tensor([0, 2, 3, 3]))
    return [rectangular, SparseCodes.dense(dense), csr]


@pytest.mark.parametrize("codes", layouts(), ids=["rectangular", "dense", "csr"])
def test_codes_of_some_tokens_and_some_latents_are_those_of_the_dense_table(codes: SparseCodes) -> None:
    dense, tokens = codes.to_dense(), torch.tensor([True, False, True])
    assert codes.csr().validate().to_dense().equal(dense)
    assert codes.kept(tokens).validate().to_dense().equal(dense[tokens])
    assert codes.at(torch.tensor([2, 0, 1])).equal(dense[:, [2, 0, 1]])
    for other in layouts():
        assert SparseCodes.cat([codes, other]).validate().to_dense().equal(torch.cat([dense, other.to_dense()]))
    assert SparseCodes.cat([codes]) is codes


def test_codes_of_other_widths_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"widths \[5, 6\]"):
        SparseCodes.cat([layouts()[0], SparseCodes.dense(torch.zeros(1, 6))])
