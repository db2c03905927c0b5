"""Pictures of one's own: a folder, and data sets that the `datasets` library reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from sae.config import ConfigError
from sae.data.images import open_images
from sae.data.images.hub import from_hub
from sae.data.rows import DataError


def noise(rows: int, columns: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    shape = (rows, columns, channels) if channels > 1 else (rows, columns)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def pets(tmp_path) -> Path:
    """12 pictures of 10x10 in two sub-folders, one of them deeper."""
    for i in range(6):
        save(tmp_path / "pets" / "cat" / f"{i}.png", noise(10, 10, i))
        save(tmp_path / "pets" / "dog" / ("old" if i > 3 else "") / f"{i}.png", noise(10, 10, 6 + i))
    return tmp_path / "pets"


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_folder_gives_exact_pixels_and_labels(pets, prefix):
    images = open_images(f"{prefix}{pets}", split="all")
    assert (images.shape, images.count, images.label_names) == ((3, 10, 10), 12, ("cat", "dog"))
    assert images.labels is not None
    assert images.labels.tolist() == [0] * 6 + [1] * 6
    expected = torch.from_numpy(noise(10, 10, 2)).permute(2, 0, 1).flatten() / 255
    assert torch.equal(images.render(torch.tensor([2]))[0], expected)


def test_folder_splits_are_disjoint(pets):
    train, heldout = (open_images(str(pets), split=split, heldout=0.25) for split in ("train", "heldout"))
    assert (train.count, heldout.count) == (9, 3)
    assert len(torch.cat([train.all(), heldout.all()]).unique(dim=0)) == 12


def test_folder_without_sub_folders_has_no_labels(tmp_path):
    save(tmp_path / "a.png", noise(8, 8))
    save(tmp_path / ".thumbnails" / "a.png", noise(2, 2))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    images = open_images(str(tmp_path), split="all")
    assert (images.count, images.labels, images.label_names) == (1, None, ())


def test_sizes_are_cropped_about_the_centre(tmp_path):
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = (255, 0, 0)  # only the middle square is red
    save(tmp_path / "wide.png", pixels)
    save(tmp_path / "tall.png", pixels.transpose(1, 0, 2))
    images = open_images(f"{tmp_path}?size=20", split="all")
    assert images.shape == (3, 20, 20)
    assert torch.equal(images.all().view(2, 3, 400).unique(dim=2), torch.tensor([[[1.0], [0.0], [0.0]]] * 2))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [([(30, 20), (30, 20)], (3, 30, 20)), ([(30, 20), (20, 30)], (3, 64, 64)), ([(200, 200)], (3, 64, 64))],
)
def test_size_unless_told_is_the_shared_small_one_or_64(tmp_path, sizes, shape):
    for i, (rows, columns) in enumerate(sizes):
        save(tmp_path / f"{i}.png", noise(rows, columns))
    assert open_images(str(tmp_path), split="all").shape == shape


def test_grey_pictures_stay_grey_and_colour_can_be_asked_for(tmp_path):
    save(tmp_path / "a.png", noise(8, 8, channels=1))
    assert open_images(str(tmp_path), split="all").shape == (1, 8, 8)
    coloured = open_images(f"{tmp_path}?channels=3", split="all")
    assert coloured.shape == (3, 8, 8)
    assert len(coloured.all().view(3, 64).unique(dim=0)) == 1


def test_grey_with_transparency_is_grey(tmp_path):
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "a.png")
    assert torch.equal(open_images(str(tmp_path), split="all").all(), torch.ones(1, 64))


def test_kinds_of_pixels_are_brought_to_one(tmp_path):
    deep = np.full((4, 4), 65535, dtype=np.uint16)
    deep[0] = 0x8000
    save(tmp_path / "1_sixteen_bits.png", deep)
    clear = np.zeros((4, 4, 4), dtype=np.uint8)  # wholly transparent, black below
    save(tmp_path / "2_transparent.png", clear)
    sideways = np.zeros((4, 4, 3), dtype=np.uint8)
    sideways[0] = 255  # bright line on top, to be turned a quarter clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "3_sideways.png", sideways, exif=exif)
    x = open_images(f"{tmp_path}?channels=1", split="all").all().view(3, 4, 4)
    assert torch.equal(x[0, :, 0], torch.tensor([128, 255, 255, 255]) / 255)
    assert torch.equal(x[1], torch.ones(4, 4))
    assert torch.equal(x[2, 0], torch.tensor([0.0, 0, 0, 1]))


def test_unreadable_files_are_named(pets):
    (pets / "cat" / "notes.txt").write_text("not a picture")
    (pets / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 14 pictures are unreadable:\n.*cat/notes.txt.*\n.*dog/empty.png"):
        open_images(str(pets))


def test_picture_cut_short_is_named(pets):
    path = pets / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-120])
    with pytest.raises(DataError, match=r"dog/3.png: not a readable picture"):
        open_images(str(pets), split="all")


def test_pixels_without_a_known_white_are_refused(tmp_path):
    save(tmp_path / "float.tiff", np.ones((4, 4), dtype=np.float32))
    with pytest.raises(DataError, match=r"float.tiff: its pixels have 32 bits \(mode 'F'\)"):
        open_images(str(tmp_path))


def test_pictures_beside_labelled_ones_are_refused(pets):
    save(pets / "stray.png", noise(10, 10))
    with pytest.raises(DataError, match=r"sub-folders are labels \(cat, dog\), but 1 files lie beside them, stray.png"):
        open_images(str(pets))


@pytest.mark.parametrize(("query", "message"), [("size=0", "option size=0"), ("channels=2", "option channels=2")])
def test_form_out_of_range_is_refused(pets, query, message):
    with pytest.raises(ConfigError, match=message):
        open_images(f"{pets}?{query}")


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        open_images(str(tmp_path))
    for name in (f"{tmp_path}/none", f"folder:{tmp_path}/none"):
        with pytest.raises(DataError, match="none: no such folder"):
            open_images(name)


def test_split_without_a_picture_is_refused(tmp_path):
    save(tmp_path / "a.png", noise(8, 8))
    with pytest.raises(DataError, match="of 1 images none is left for split 'heldout'"):
        open_images(str(tmp_path), split="heldout")


def test_provenance_of_a_folder_changes_with_a_file(pets):
    before = open_images(str(pets)).provenance["sha256"]
    assert open_images(str(pets)).provenance["sha256"] == before
    save(pets / "cat" / "0.png", noise(10, 10, 99))
    assert open_images(str(pets)).provenance["sha256"] != before


CLASSES = ClassLabel(names=["cat", "dog"])


def save_dataset(path: Path, features: dict, rows: int = 10, **columns) -> Path:
    pictures = [Image.fromarray(noise(8, 8, i)) for i in range(rows)]
    data = {name: pictures for name, kind in features.items() if isinstance(kind, ImageFeature)} | columns
    Dataset.from_dict(data, features=Features(features)).save_to_disk(path)
    return path


def test_saved_dataset_finds_its_columns(tmp_path):
    labels = [0, 1] * 5
    path = save_dataset(tmp_path / "d", {"picture": ImageFeature(), "kind": CLASSES}, kind=labels)
    images = open_images(str(path), split="all")
    assert (images.shape, images.count, images.label_names) == ((3, 8, 8), 10, ("cat", "dog"))
    assert images.labels is not None
    assert images.labels.tolist() == labels
    assert torch.equal(images.all()[4], torch.from_numpy(noise(8, 8, 4)).permute(2, 0, 1).flatten() / 255)
    assert images.provenance["files"]


def test_saved_dataset_dict_gives_train_or_the_part_asked_for(tmp_path):
    def part(rows: int) -> Dataset:
        pictures = [Image.fromarray(noise(8, 8, i)) for i in range(rows)]
        return Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()}))

    path = tmp_path / "d"
    DatasetDict({"train": part(6), "test": part(3)}).save_to_disk(path)
    assert open_images(str(path), split="all").count == 6
    assert open_images(f"{path}?part=test", split="all").count == 3
    with pytest.raises(DataError, match="has no split 'validation' but train, test"):
        open_images(f"{path}?part=validation")


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        (Value("string"), ["b", "a"] * 5, ("a", "b")),
        (Value("int64"), [7, -1] * 5, ("-1", "7")),
        (Value("bool"), [True, False] * 5, ("False", "True")),
    ],
)
def test_labels_may_be_text_numbers_or_truth_values(tmp_path, kind, values, names):
    path = save_dataset(tmp_path / "d", {"image": ImageFeature(), "smiles": kind}, smiles=values)
    assert open_images(str(path), split="all").labels is None
    images = open_images(f"{path}?label=smiles", split="all")
    assert images.label_names == names
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0] * 5


def test_columns_that_cannot_be_told_apart_are_to_be_named(tmp_path):
    features = {"left": ImageFeature(), "right": ImageFeature(), "fine": CLASSES, "coarse": CLASSES}
    path = save_dataset(tmp_path / "d", features, fine=[0] * 10, coarse=[1] * 10)
    with pytest.raises(DataError, match=r"image columns are left, right; name one: `\?image=COLUMN`"):
        open_images(str(path))
    with pytest.raises(DataError, match="could take its labels from fine, coarse; name one"):
        open_images(f"{path}?image=left")
    images = open_images(f"{path}?image=right&label=coarse", split="all")
    assert images.labels is not None
    assert images.labels.unique().tolist() == [1]
    assert open_images(f"{path}?image=right&label=", split="all").labels is None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("image=score", "its image columns are image; got image='score'"),
        ("label=nothing", "has no column 'nothing' for labels but image, score"),
        ("label=score", "column 'score' holds float; labels are"),
        ("part=test", "without splits"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, query, message):
    path = save_dataset(tmp_path / "d", {"image": ImageFeature(), "score": Value("float32")}, score=[0.5] * 10)
    with pytest.raises(DataError, match=message):
        open_images(f"{path}?{query}")


def test_dataset_without_pictures_and_rows_without_one_are_refused(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match="none of text holds images"):
        open_images(str(tmp_path / "text"))
    data = {"image": [Image.fromarray(noise(8, 8)), None]}
    Dataset.from_dict(data, features=Features({"image": ImageFeature()})).save_to_disk(tmp_path / "gap")
    with pytest.raises(DataError, match=r"1 of 2 pictures are unreadable:\n.*row 1, column 'image': empty"):
        open_images(str(tmp_path / "gap"))


def test_class_that_is_none_is_refused(tmp_path):
    path = save_dataset(tmp_path / "d", {"image": ImageFeature(), "label": CLASSES}, label=[0] * 9 + [-1])
    with pytest.raises(DataError, match="holds -1, which is none of its 2 classes"):
        open_images(str(path))


def test_damaged_dataset_is_refused_by_name(tmp_path):
    path = save_dataset(tmp_path / "d", {"image": ImageFeature()})
    (path / "state.json").write_text("{")
    with pytest.raises(DataError, match="`datasets` cannot load this folder"):
        open_images(str(path))


@pytest.fixture
def repository(tmp_path, monkeypatch) -> str:
    """A data set laid out as on the hub, in the folder owner/pictures; the hub's own answer is its newest commit."""
    import huggingface_hub

    for part, rows in (("train", 6), ("test", 3)):
        pictures = [Image.fromarray(noise(8, 8, i)) for i in range(rows)]
        features = Features({"image": ImageFeature(), "label": CLASSES})
        data = Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(rows)]}, features=features)
        (tmp_path / "owner" / "pictures").mkdir(parents=True, exist_ok=True)
        data.to_parquet(tmp_path / "owner" / "pictures" / f"{part}.parquet")
    answer = huggingface_hub.hf_api.DatasetInfo(id="owner/pictures", sha="abc123")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: answer)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return "owner/pictures"


def test_hub_dataset_gives_pictures_labels_and_its_revision(repository):
    images = from_hub(repository, None)
    assert (images.shape, images.count, images.label_names) == ((3, 8, 8), 6, ("cat", "dog"))
    assert torch.equal(images.all()[5], torch.from_numpy(noise(8, 8, 5)).permute(2, 0, 1).flatten() / 255)
    assert images.provenance["revision"] == "abc123"
    assert from_hub(repository, None, part="test").count == 3


def test_hub_dataset_names_the_parts_and_configurations_it_has(repository):
    with pytest.raises(DataError, match=r"Unknown split .nope.*train"):
        from_hub(repository, None, part="nope")
    with pytest.raises(DataError, match=r"owner/pictures: .*'nope' not found.*default"):
        from_hub(repository, "nope")


def test_hub_out_of_reach_says_so(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="nobody/nothing: no local file or folder, and the hub"):
        open_images("nobody/nothing")
