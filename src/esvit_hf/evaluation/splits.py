"""Training and test images of one data set with labels in one numbering, checked before anything is
computed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from esvit_hf.data.labels import names_in_common
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.extraction import shared_labels

__all__ = [
    "LabeledSplits",
    "check_classes",
    "check_images_per_class",
    "load_splits",
    "overlapping_images",
]

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class LabeledSplits:
    """What a classifier learns from, and what it is tested on.

    Attributes:
        train: images to learn from.
        test: images to test on.
        train_labels: (N,) int64 classes.
        test_labels: (M,) int64 classes in the numbering of `train_labels`.
        class_names: name of each class, its value where the data has no names.
    """

    train: ImageSource
    test: ImageSource
    train_labels: Tensor
    test_labels: Tensor
    class_names: list[str]


def load_splits(
    dataset: str,
    *,
    train_split: str,
    test_split: str,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> LabeledSplits:
    """Open the training and the test images of a data set.

    Args:
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        train_split: images to learn from.
        test_split: images to test on.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if None.
        label_column: column with the labels, integers or strings; found by its type if None.

    Returns:
        Both, with labels in one numbering.

    Raises:
        ValueError: as `load_image_source`, `shared_labels` and `check_classes`.
    """
    train, test = (
        load_image_source(
            dataset,
            split=split,
            config_name=config_name,
            image_column=image_column,
            label_column=label_column,
        )
        for split in (train_split, test_split)
    )
    train_labels, test_labels = shared_labels(train, test)
    assert train.classes is not None and test.classes is not None
    names = list(dict.fromkeys(train.classes.names + names_in_common(train.classes, test.classes)))
    check_classes(train_labels, test_labels, names)
    return LabeledSplits(train, test, train_labels, test_labels, names)


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
        known = dict(enumerate(class_names or ()))
        return repr(known[int(label)]) if int(label) in known else str(int(label))

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
