import pytest
import torch

from sae.data.images import open_images
from sae.evaluation.baselines import PCA


def pca_fvu(name: str, sizes: list[int]) -> list[float]:
    """Share of the held-out variance (about the training mean) that the first k components leave."""
    pca = PCA.fit([open_images(name).all()])
    total, energies = pca.energies(open_images(name, split="heldout").all())
    return [(1 - energies[:, :k].sum() / total.sum()).item() for k in sizes]


def test_pca_of_mnist5k_leaves_what_was_measured():
    assert pca_fvu("mnist5k", [2, 10, 32, 64]) == pytest.approx([0.829, 0.507, 0.253, 0.138], abs=0.003)


def test_pca_of_digits_leaves_what_was_measured():
    assert pca_fvu("digits", [10, 16]) == pytest.approx([0.270, 0.156], abs=0.003)


@pytest.mark.parametrize(("name", "shape", "count"), [("digits", (1, 8, 8), 1797), ("mnist5k", (1, 28, 28), 5000)])
def test_fixed_sets_hold_images_and_their_digits(name, shape, count):
    images = open_images(name, split="all")
    assert (images.shape, images.count, images.dim) == (shape, count, shape[1] * shape[2])
    x = images.all()
    assert (x.shape, x.dtype) == ((count, images.dim), torch.float32)
    assert (x.min(), x.max()) == (0, 1)
    assert images.labels is not None
    assert images.labels.unique().tolist() == list(range(10))
    # a one has the least ink, a zero the most
    ink = torch.stack([x[images.labels == digit].sum(1).mean() for digit in range(10)])
    assert ink.argmin() == 1 if name == "mnist5k" else ink.argmax() != 1


def test_mnist5k_is_balanced_and_names_its_file():
    images = open_images("mnist5k", split="all")
    assert images.labels is not None
    assert images.labels.bincount().tolist() == [500] * 10
    assert len(images.provenance["sha256"]) == 64
