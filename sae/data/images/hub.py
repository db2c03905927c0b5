"""Pictures of data sets that the `datasets` library reads: names on the hub, and folders it saved.

The column with the pictures is the only one of the library's type `Image`; labels are the column `label`, else the only
column of its type `ClassLabel`, else there are none. Both can be named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.data.hub import load, load_saved, resolve_revision
from sae.data.images.base import ImageSet
from sae.data.images.pictures import Picture, Pictures, choose_form, renderer
from sae.data.rows import DataError, stamp

LABEL_COLUMN = "label"  # what most image data sets call it
MOST_LABELS = 1000  # a column with more different values is no label


def from_hub(name: str, config: str | None, *, part: str | None = None, **options: Any) -> ImageSet:
    """A data set on the hub at its newest revision, fetched whole and kept by `datasets` in its own cache.

    Args:
        part: the split of the data set, by default `train`.
        options: as of `from_dataset`.

    Raises:
        DataError: no such data set, configuration or split, no network, or as `from_dataset`.
    """
    revision = resolve_revision(name, None)
    dataset = load(name, config, split=part or "train", revision=revision)
    origin = {"hub": name, "config": config, "part": part or "train", "revision": revision}
    return from_dataset(f"{name}:{config}" if config else name, dataset, origin, **options)


def is_saved(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def from_saved(path: Path, *, part: str | None = None, **options: Any) -> ImageSet:
    """A folder that `save_to_disk` wrote; of a DatasetDict the split `part`, default `train`, or the only one.

    Raises:
        DataError: a damaged folder, no such split, or as `from_dataset`.
    """
    dataset = load_saved(path, part)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    origin = {"path": str(path.absolute()), "part": part, "files": [stamp(file, path) for file in files]}
    return from_dataset(str(path), dataset, origin, **options)


def from_dataset(
    name: str,
    dataset: Any,
    origin: dict[str, Any],
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """The pictures of a `datasets.Dataset`, brought to one form (see `pictures.choose_form`).

    Args:
        origin: part of the provenance that says where they come from.
        image: the column with the pictures.
        label: the column with the labels: classes, whole numbers, text or truth values; "" for none.

    Raises:
        DataError: no such column, none or several that fit, or unreadable pictures.
        ConfigError: size or channels out of range.
    """
    from datasets import Image

    image = _image_column(name, dataset.features, image)
    label = _label_column(name, dataset.features, label)
    column = dataset.select_columns([image]).cast_column(image, Image(decode=False)).with_format(None)
    pictures = Pictures(len(column), lambda row: _picture(column[row][image], f"{name}, row {row}, column {image!r}"))
    form = choose_form(pictures, size, channels)
    labels, label_names = _labels(name, dataset, label) if label else (None, ())
    return ImageSet(
        name=name,
        shape=(form.channels, form.rows, form.columns),
        count=len(column),
        render=renderer(pictures, form),
        provenance={"name": name, **origin, "image": image, "label": label},
        labels=labels,
        label_names=label_names,
    )


def _picture(value: dict[str, Any] | None, where: str) -> Picture:
    if value is None:
        raise DataError(f"{where}: empty")
    return Picture(where, value["bytes"] if value["bytes"] is not None else Path(value["path"]))


def _image_column(name: str, features: Any, asked: str | None) -> str:
    from datasets import Image

    known = [column for column, feature in features.items() if isinstance(feature, Image)]
    if asked is None and len(known) == 1:
        return known[0]
    if asked in known and asked is not None:
        return asked
    existing = f"its image columns are {', '.join(known)}" if known else f"none of {', '.join(features)} holds images"
    wanted = "name one: `?image=COLUMN`" if asked is None else f"got image={asked!r}"
    raise DataError(f"{name}: {existing}; {wanted}")


def _label_column(name: str, features: Any, asked: str | None) -> str | None:
    from datasets import ClassLabel

    if asked == "":
        return None
    if asked is not None:
        if asked not in features:
            raise DataError(f"{name}: has no column {asked!r} for labels but {', '.join(features)}")
        return asked
    if LABEL_COLUMN in features:
        return LABEL_COLUMN
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) > 1:
        raise DataError(f"{name}: could take its labels from {', '.join(classes)}; name one: `?label=COLUMN`")
    return classes[0] if classes else None


def _labels(name: str, dataset: Any, column: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [count] and their names: a column of classes has names, of others the values in ascending order."""
    from datasets import ClassLabel

    values = list(dataset.with_format(None)[column])
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        if bad := [value for value in values if value is None or not 0 <= value < len(feature.names)]:
            raise DataError(
                f"{name}: column {column!r} holds {bad[0]}, which is none of its {len(feature.names)} classes"
            )
        return torch.tensor(values), tuple(feature.names)
    if not all(isinstance(value, (bool, int, str)) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(f"{name}: column {column!r} holds {kinds}; labels are whole numbers, text or truth values")
    known = sorted(set(values))
    if len(known) > MOST_LABELS:
        raise DataError(f"{name}: column {column!r} holds {len(known):,} different values; labels have at most 1,000")
    place = {value: label for label, value in enumerate(known)}
    return torch.tensor([place[value] for value in values]), tuple(str(value) for value in known)
