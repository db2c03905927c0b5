"""Names, splits, limits, and what every set of images can do."""

import pytest
import torch

from sae.config import ConfigError
from sae.data.images import open_images
from sae.data.rows import DataError


def test_wrong_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'dsprite' is unknown; did you mean 'dsprites'\? .*folder:PATH.*planted"):
        open_images("dsprite")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits?size=8", r"digits: option 'size' is unknown \(known: \)"),
        ("dsprites?sise=32", "'sise' is unknown; did you mean 'size'"),
        ("dsprites?size=big", "dsprites: option size=big: expected int"),
    ],
)
def test_wrong_option_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        open_images(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split 'test' is unknown .known: all, heldout, train"),
        ({"heldout": 0.0}, "--heldout 0.0: expected a share between 0 and 1"),
        ({"heldout": 1.0}, "--heldout 1.0"),
        ({"limit": 0}, "--limit 0: expected 1 or more"),
        ({"seed": -1}, "--seed -1: expected 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        open_images("digits", **arguments)


def as_rows(name: str, **arguments) -> set[bytes]:
    return {row.numpy().tobytes() for row in open_images(name, **arguments).all()}


def test_train_and_heldout_part_the_whole():
    train, heldout, whole = (as_rows("mnist5k", split=split) for split in ("train", "heldout", "all"))
    assert (len(train), len(heldout)) == (4000, 1000)  # no two images of mnist5k are the same
    assert not train & heldout
    assert train | heldout == whole


@pytest.mark.parametrize("name", ["dsprites", "shapes3d"])
def test_drawn_grids_part_into_disjoint_positions(name):
    parts = [open_images(name, split=split) for split in ("train", "heldout")]
    seen = [part.factors.index_of(part.factor_values(torch.arange(part.count))) for part in parts]
    assert torch.equal(torch.cat(seen).sort()[0], torch.arange(parts[0].factors.count))
    assert len(seen[1]) == round(0.2 * parts[0].factors.count)


def test_split_repeats_by_seed_and_changes_with_it():
    first, again, other = (open_images("digits", seed=seed).all() for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_heldout_share_is_kept():
    assert open_images("digits", split="heldout", heldout=0.5).count == 898
    assert open_images("digits", split="train", heldout=0.5).count == 899


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_limit_takes_a_nested_random_subset_of_the_split(split):
    small, large = (open_images("digits", split=split, limit=limit) for limit in (100, 200))
    assert (small.count, large.count) == (100, 200)
    assert torch.equal(small.all(), large.all()[:100])
    assert as_rows("digits", split=split, limit=200) <= as_rows("digits", split=split)
    assert small.labels is not None
    assert len(small.labels.unique()) == 10


def test_limit_over_the_split_takes_all_of_it():
    assert open_images("digits", split="heldout", limit=10**6).count == 359


def test_provenance_says_what_was_opened():
    assert open_images("digits", split="heldout", seed=2, limit=7).provenance == {
        "name": "digits",
        "source": "scikit-learn's load_digits",
        "shape": [1, 8, 8],
        "split": "heldout",
        "heldout": 0.2,
        "seed": 2,
        "limit": 7,
        "count": 7,
    }


def test_select_renumbers_images_and_labels():
    images = open_images("digits", split="all")
    view = images.select(torch.tensor([5, 3, 1700])).select(torch.tensor([2, 0]))
    assert view.count == 2
    assert torch.equal(view.all(), images.render(torch.tensor([1700, 5])))
    assert view.labels is not None
    assert images.labels is not None
    assert torch.equal(view.labels, images.labels[[1700, 5]])


@pytest.mark.parametrize("name", ["digits", "dsprites?size=16", "planted"])
@pytest.mark.parametrize("split", ["train", "all"])
def test_positions_outside_the_set_are_refused(name, split):
    images = open_images(name, split=split)
    for wrong in (-1, images.count):
        with pytest.raises(IndexError, match=f"expected 0 to {images.count - 1}"):
            images.render(torch.tensor([0, wrong]))


def test_positions_of_another_type_are_refused():
    with pytest.raises(IndexError, match="expected int64"):
        open_images("digits").render(torch.tensor([0.0]))


def test_all_is_refused_where_it_would_fill_memory():
    with pytest.raises(DataError, match=r"dsprites: all 737,280 images take 11.2 GiB.*at most 131,072"):
        open_images("dsprites", split="all").all()


def test_factor_values_out_of_range_are_refused():
    images = open_images("dsprites", split="all")
    with pytest.raises(ValueError, match="0 <= value <"):
        images.factors.index_of(torch.tensor([[0, 6, 0, 0, 0]]))
    with pytest.raises(ValueError, match=r"expected \[n, 5\]"):
        images.factors.index_of(torch.tensor([[0, 0]]))
