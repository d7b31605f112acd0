"""Training and test images of one data set with labels in one numbering, checked before anything is
computed.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from tqdm.auto import tqdm

from esvit_hf.common.errors import flags_are_called
from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.labels import names_in_common
from esvit_hf.data.loading import split_names, take_slices
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
    "shared_class_names",
    "split_off_test",
]

IN_MEMORY_DATA = "in-memory data"
"""What messages and reports call rows without a name."""

_ROWS_AT_ONCE = 256
DEFAULT_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class LabeledSplits:
    """What a classifier learns from, and what it is tested on.

    Attributes:
        train: images to learn from.
        test: images to test on.
        train_labels: (N,) int64 classes.
        test_labels: (M,) int64 classes in the numbering of `train_labels`.
        class_names: name of each class, its value where the data has no names.
        test_name: what reports call the test images: the name of a split, or a share of one.
    """

    train: ImageSource
    test: ImageSource
    train_labels: Tensor
    test_labels: Tensor
    class_names: list[str]
    test_name: str


def load_splits(
    dataset: str | Dataset | DatasetDict,
    *,
    train_split: str = "train",
    test_split: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    labels: bool = True,
) -> LabeledSplits:
    """Open the training and the test images of a data set.

    Args:
        dataset: Hub name, folder of parquet files or images, a parquet file, or rows in memory; a
            single `Dataset` is the split "train".
        train_split: images to learn from, for example train or train[:10%].
        test_split: images to test on; if neither this nor `test_fraction` is given, the split
            `test`, else `validation`, else a fifth of the training images.
        test_fraction: share of every class of `train_split` to test on instead of a split; of all
            images where there are no labels and none are needed.
        seed: of the choice of these images.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if None.
        label_column: column with the labels, integers or strings; found by its type if None.
        max_image_pixels: images with more pixels count as broken.
        labels: false if the images need none; then they have no labels and no classes.

    Returns:
        Both, with labels in one numbering.

    Raises:
        ValueError: as `load_image_source`, `shared_labels`, `split_off_test` and `check_classes`,
            or both `test_split` and `test_fraction` are given.
    """
    if test_split is not None and test_fraction is not None:
        raise ValueError(
            f"test_split is {test_split} and test_fraction {test_fraction}: give one of them"
        )
    name = dataset if isinstance(dataset, str) else IN_MEMORY_DATA
    is_default = test_split is None and test_fraction is None
    if is_default:
        test_split = _find_test_split(dataset, config_name)
    if test_split is None and test_fraction is None:
        test_fraction = DEFAULT_TEST_FRACTION
    test_name = test_split or f"{test_fraction:.4g} of {train_split}"
    if is_default and test_split != "test":
        warnings.warn(
            f"{name} has no split 'test', so the test images are {test_name}: choose others with "
            f"--test_split or --test_fraction",
            stacklevel=2,
        )
    options: dict[str, Any] = {
        "image_column": image_column,
        "label_column": label_column,
        "max_image_pixels": max_image_pixels,
        # A share of each class is held out by labels.
        "labels": labels or test_fraction is not None,
    }

    def read_split(split: str, flag: str) -> ImageSource:
        with flags_are_called(split=flag):
            if isinstance(dataset, str):
                return load_image_source(dataset, split=split, config_name=config_name, **options)
            return ImageSource(
                _rows_of(dataset, split), name=f"{IN_MEMORY_DATA} (split {split})", **options
            )

    train = read_split(train_split, "train_split")
    if test_fraction is None:
        assert test_split is not None
        test = read_split(test_split, "test_split")
    else:
        train, test = split_off_test(train, test_fraction, seed, labels=labels)
    if not labels:
        nothing = torch.empty(0, dtype=torch.int64)
        return LabeledSplits(train, test, nothing, nothing, [], test_name)
    train_labels, test_labels = shared_labels(train, test)
    names = shared_class_names(train, test)
    check_classes(
        train_labels,
        test_labels,
        names,
        "use a training split that holds every class, hold out a share of each with "
        "--test_fraction 0.2",
    )
    untested = sorted(set(train_labels.unique().tolist()) - set(test_labels.unique().tolist()))
    if untested:
        warnings.warn(
            f"{len(untested)} of {len(train_labels.unique())} classes have no image in "
            f"{test_name}, for example {names[untested[0]]!r}: the accuracy says nothing about "
            f"them. Slices of class folders hold few classes: --test_fraction 0.2 holds out a "
            f"share of each class",
            stacklevel=2,
        )
    return LabeledSplits(train, test, train_labels, test_labels, names, test_name)


def split_off_test(
    source: ImageSource, fraction: float, seed: int, *, labels: bool = True
) -> tuple[ImageSource, ImageSource]:
    """Divide images at random into a part to learn from and a part to test on.

    Every class gives its share, rounded, to the test part: at least one image if it has two, and
    never all. Images without labels are one class.

    Args:
        source: images.
        fraction: share of the test part, between 0 and 1.
        seed: of the choice.
        labels: false if the images need none.

    Returns:
        Training part and test part, in the order of the source.

    Raises:
        ValueError: the fraction is out of range, labels are missing, or no class has two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction is {fraction}: give a number between 0 and 1")
    if labels and source.labels is None:
        raise ValueError(
            f"{source.description}: test_fraction takes a share of each class; name the column "
            f"with the labels (--label_column), or give each class a folder"
        )
    order = np.random.default_rng(seed).permutation(len(source))
    numbers = np.zeros(len(source), np.int64) if source.labels is None else source.labels
    order = order[np.argsort(numbers[order], kind="stable")]
    classes, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    shares = np.minimum(np.maximum(np.rint(fraction * counts).astype(np.int64), 1), counts - 1)
    chosen = np.concatenate(
        [order[start : start + share] for start, share in zip(starts, shares, strict=True)]
    )
    if not len(chosen):
        raise ValueError(
            f"each of the {len(classes)} classes has one image, which leaves none to test on: add "
            f"images, or name a test split"
        )
    is_test = np.zeros(len(source), dtype=bool)
    is_test[chosen] = True
    train, test = (
        source.take(np.flatnonzero(mask).tolist(), f"{source.name}, images to {use}")
        for mask, use in ((~is_test, "learn from"), (is_test, "test on"))
    )
    return train, test


def _find_test_split(dataset: str | Dataset | DatasetDict, config_name: str | None) -> str | None:
    names = split_names(dataset, config_name) if isinstance(dataset, str) else _rows_in(dataset)
    return next((name for name in ("test", "validation") if name in names), None)


def shared_class_names(train: ImageSource, test: ImageSource) -> list[str]:
    """Name the classes of two sources in the numbering of `shared_labels`.

    Args:
        train: images with labels.
        test: images with labels.

    Returns:
        Name of each class, those of `train` first.
    """
    assert train.classes is not None and test.classes is not None
    known = train.classes.names + names_in_common(train.classes, test.classes)
    return list(dict.fromkeys(known))


def _rows_in(dataset: Dataset | DatasetDict) -> dict[str, Dataset]:
    """Rows of each split of data in memory."""
    if not isinstance(dataset, Dataset | DatasetDict):
        raise ValueError(
            f"dataset is of type {type(dataset).__name__}: give a name, a path, a datasets.Dataset "
            f"or a datasets.DatasetDict"
        )
    return {"train": dataset} if isinstance(dataset, Dataset) else dict(dataset)


def _rows_of(dataset: Dataset | DatasetDict, split: str) -> Dataset:
    """Rows of a split, which may be a slice or a sum of several."""
    rows = _rows_in(dataset)
    return take_slices(
        IN_MEMORY_DATA, split, list(rows), lambda names: {name: rows[name] for name in names}
    )


def check_classes(
    train_labels: Tensor,
    test_labels: Tensor,
    class_names: Sequence[str] | None = None,
    remedy: str = "use a training split that holds every class",
) -> None:
    """Check that a classifier can learn every class that it is tested on.

    Args:
        train_labels: (N,) integer classes.
        test_labels: (M,) integer classes.
        class_names: name of each class, for messages.
        remedy: what else helps than to drop test images, for the message.

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
            f"{name(absent[0])}: {remedy}, or drop those test images"
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

    Where the share of so few images is none, one of each class that has two is drawn.

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
    follows = grouped[1:] == grouped[:-1]
    picks[1:] &= follows
    if not picks.any():
        picks[1:] = follows
        picks[2:] &= ~follows[:-1]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[picks]] = True
    if not mask.any():
        raise ValueError(
            "each class has one training image, which leaves none to choose a setting by: use "
            "more images"
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
