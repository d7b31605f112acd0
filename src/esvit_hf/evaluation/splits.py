"""Training and test images of one data set with labels in one numbering, checked before anything is
computed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets
from torch import Tensor
from tqdm.auto import tqdm

from esvit_hf.common.errors import one_line
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.extraction import shared_labels

__all__ = [
    "IN_MEMORY_DATA",
    "LabeledSplits",
    "check_classes",
    "check_images_per_class",
    "held_out",
    "load_splits",
    "overlapping_images",
]

IN_MEMORY_DATA = "in-memory data"
"""What messages and reports call rows without a name."""

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class LabeledSplits:
    """What a classifier learns from, and what it is tested on.

    Attributes:
        train: images to learn from.
        test: images to test on.
        train_labels: (N,) int64 classes.
        test_labels: (M,) int64 classes in the numbering of `train_labels`.
        class_names: name of each class, its number where the data has no names.
    """

    train: ImageSource
    test: ImageSource
    train_labels: Tensor
    test_labels: Tensor
    class_names: list[str]


def load_splits(
    dataset: str | Dataset | DatasetDict,
    *,
    train_split: str,
    test_split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: bool = True,
) -> LabeledSplits:
    """Open the training and the test images of a data set.

    Args:
        dataset: Hub name, folder of parquet files or images, a parquet file, or rows in memory; a
            single `Dataset` is the split "train".
        train_split: images to learn from, for example train or train[:10%].
        test_split: images to test on.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if None.
        label_column: column with the labels, integers or strings; found by its type if None.
        labels: false if the images need none; then they have no labels and no classes.

    Returns:
        Both, with labels in one numbering.

    Raises:
        ValueError: as `load_image_source`, `shared_labels` and `check_classes`.
    """
    columns = {"image_column": image_column, "label_column": label_column}
    train, test = (
        load_image_source(dataset, split=split, config_name=config_name, **columns)
        if isinstance(dataset, str)
        else ImageSource(
            _rows_of(dataset, split), name=f"{IN_MEMORY_DATA} (split {split})", **columns
        )
        for split in (train_split, test_split)
    )
    if not labels:
        nothing = torch.empty(0, dtype=torch.int64)
        return LabeledSplits(train, test, nothing, nothing, [])
    train_labels, test_labels = shared_labels(train, test)
    names = list(train.class_names or ())
    if train.class_names is not None:
        names += [name for name in test.class_names or () if name not in train.class_names]
    count = 1 + max(int(train_labels.max()), int(test_labels.max()))
    names += map(str, range(len(names), count))
    check_classes(train_labels, test_labels, names)
    return LabeledSplits(train, test, train_labels, test_labels, names)


def _rows_of(dataset: Dataset | DatasetDict, split: str) -> Dataset:
    """Rows of a split, which may be a slice or a sum of several."""
    if not isinstance(dataset, Dataset | DatasetDict):
        raise ValueError(
            f"dataset is of type {type(dataset).__name__}: give a name, a path, a datasets.Dataset "
            f"or a datasets.DatasetDict"
        )
    parts = {"train": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    try:
        chosen = ReadInstruction.from_spec(split).to_absolute(
            {str(name): len(rows) for name, rows in parts.items()}
        )
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{IN_MEMORY_DATA} has no split {split!r} ({one_line(error)}): set train_split and "
            f"test_split to one of {', '.join(map(str, parts))}, or to a slice such as train[:80%]"
        ) from error
    return concatenate_datasets(
        [parts[part.splitname].select(range(part.from_, part.to)) for part in chosen]
    )


def check_classes(
    train_labels: Tensor, test_labels: Tensor, class_names: Sequence[str] | None = None
) -> None:
    """Check that a classifier can learn every class that it is tested on.

    Args:
        train_labels: (N,) integer classes.
        test_labels: (M,) integer classes.
        class_names: name of each class, for messages.

    Raises:
        ValueError: fewer than two classes, or test classes without a training image.
    """

    def name(label: Tensor) -> str:
        return str(int(label)) if class_names is None else repr(class_names[int(label)])

    known = train_labels.unique()
    if len(known) < 2:
        raise ValueError(
            f"all training images have class {name(known[0])}: a classifier needs two classes or "
            f"more"
        )
    absent = test_labels.unique()
    absent = absent[~torch.isin(absent, known.to(absent.device))]
    if len(absent):
        raise ValueError(
            f"{len(absent)} test classes have no training image, for example class "
            f"{name(absent[0])}: use a training split that holds every class, or drop those test "
            f"images"
        )


def check_images_per_class(
    labels: Tensor, needed: int, class_names: Sequence[str] | None = None
) -> None:
    """Check that every class has enough images.

    Args:
        labels: (N,) integer classes.
        needed: images that each class must have.
        class_names: name of each class, for the message.

    Raises:
        ValueError: a class has fewer.
    """
    classes, counts = labels.unique(return_counts=True)
    smallest = int(counts.argmin())
    if int(counts[smallest]) < needed:
        label = int(classes[smallest])
        name = str(label) if class_names is None else repr(class_names[label])
        raise ValueError(
            f"class {name} has {int(counts[smallest])} training images, and {needed} shots are "
            f"asked for: lower shots, or use a larger training split"
        )


def held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw a share of every class to validate on; each class keeps at least one image for training.

    Args:
        labels: (N,) integer classes on the CPU.
        fraction: the share, between 0 and 1.
        seed: of the draw.

    Returns:
        (N,) true for images to validate on.

    Raises:
        ValueError: no class is large enough to give an image.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    grouped = labels[order]
    # Evenly spaced picks from the classes laid end to end give each class its share, up to one
    # image.
    picks = ((torch.arange(len(labels) + 1, dtype=torch.float64) * fraction).floor().diff()) > 0
    picks[0] = False
    picks[1:] &= grouped[1:] == grouped[:-1]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[picks]] = True
    if not mask.any():
        raise ValueError(
            f"validation_fraction {fraction} of {len(labels)} training images leaves none to "
            f"choose a setting by: raise it or use more images"
        )
    return mask


def overlapping_images(train: ImageSource, test: ImageSource) -> list[int]:
    """Find test images that are training images too, by digests of the images as they are stored.

    Args:
        train: images to learn from.
        test: images to test on.

    Returns:
        Places in `test`, ascending. The same picture in another encoding is not found.
    """
    with tqdm(
        total=len(train) + len(test), desc="overlap with training", unit="image", leave=False
    ) as progress:
        known = set(_digests(train, progress))
        return [index for index, digest in enumerate(_digests(test, progress)) if digest in known]


def _digests(source: ImageSource, progress: "tqdm[Any]") -> Iterator[bytes]:
    for start in range(0, len(source), _ROWS_AT_ONCE):
        values = source.read_encoded(range(start, min(start + _ROWS_AT_ONCE, len(source))))
        for value in values:
            if isinstance(value, str) and Path(value).is_file():
                value = Path(value).read_bytes()
            content = value if isinstance(value, bytes) else repr(value).encode()
            yield hashlib.blake2b(content, digest_size=16).digest()
        progress.update(len(values))
