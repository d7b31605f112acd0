"""Labels of any kind as class numbers: one mapping from the values in a column to classes."""

import re
from typing import NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

__all__ = ["Labels", "find_label_column", "names_in_common", "read_labels"]

USUAL_LABEL_COLUMNS = ("label", "labels")
LIST_TYPES = ("List", "LargeList")
LABEL_TYPES = re.compile(r"u?int\d+|bool|(large_)?string")
UNKNOWN = -1
"""What stands for a missing label in columns of class numbers."""
_NUMBERS_OF_BOOLEANS = {"False": "0", "True": "1"}


class Labels(NamedTuple):
    """Classes of images.

    Attributes:
        numbers: (images,) int64 class numbers from 0 on.
        names: name of each class: that of the data, or its value written out.
        are_named: whether the data names its classes (``datasets.ClassLabel``).
    """

    numbers: np.ndarray
    names: list[str]
    are_named: bool


def find_label_column(features: Features, requested: str | None, name: str) -> str | None:
    """Find the column with the labels.

    Args:
        features: type of each column.
        requested: column that the user names.
        name: what to call the data in messages.

    Returns:
        `requested`, or the only column that has a usual name or holds class labels; None if there
        is none or a choice.

    Raises:
        ValueError: there is no such column.
    """
    if requested is not None:
        if requested not in features:
            raise ValueError(
                f"{name} has no column '{requested}'; set --label_column to one of: "
                f"{', '.join(features)}"
            )
        return requested
    # Among several class columns (coarse, fine, ...) only a usual name decides; pretraining needs
    # no labels.
    typed = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    usual = [column for column in USUAL_LABEL_COLUMNS if column in features]
    found = usual or typed
    return found[0] if len(found) == 1 else None


def read_labels(dataset: Dataset, column: str, name: str) -> Labels | None:
    """Read a column of labels: booleans, integers, strings or class labels.

    The classes of a column without names are its values in ascending order, so that years or
    product numbers make as many classes as there are different ones.

    Args:
        dataset: the rows.
        column: the column.
        name: what to call the data in messages.

    Returns:
        The labels; None where the Hub's convention says that they are kept secret (-1 everywhere).

    Raises:
        ValueError: the column is of another kind, or labels are missing.
    """
    feature = dataset.features[column]
    kind = feature.dtype if isinstance(feature, (ClassLabel, Value)) else type(feature).__name__
    if not LABEL_TYPES.fullmatch(kind):
        found = (
            "several labels an image, not one" if kind in LIST_TYPES else f"{kind}, no class labels"
        )
        raise ValueError(
            f"column '{column}' of {name} holds {found}; set --label_column to a column of "
            f"integers or strings"
        )
    values = dataset.select_columns([column]).with_format("arrow")[:].column(0)
    encoded = values.combine_chunks().dictionary_encode()
    present = encoded.dictionary.to_pylist()
    if present == [UNKNOWN]:
        return None
    missing = values.null_count
    if isinstance(feature, ClassLabel) and UNKNOWN in present:
        missing += int((values.to_numpy() == UNKNOWN).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {len(values)} labels in column '{column}' of {name} are missing; "
            f"drop those rows or set --label_column to another column"
        )
    if isinstance(feature, ClassLabel):
        return Labels(values.to_numpy().astype(np.int64), list(feature.names), True)
    classes = sorted(present)
    ranks = {value: rank for rank, value in enumerate(classes)}
    rank_of = np.array([ranks[value] for value in present], dtype=np.int64)
    return Labels(rank_of[encoded.indices.to_numpy()], list(map(str, classes)), False)


def names_in_common(train: Labels, test: Labels) -> list[str]:
    """Name the classes of test images as the training images name them.

    Args:
        train: classes of the training images.
        test: classes of the test images.

    Returns:
        Name of each class of `test`. Where only one of the two names its classes and the other
        holds their numbers, class n of the one is number n of the other; false and true are the
        numbers 0 and 1.
    """
    booleans, others = (train, test) if _are_booleans(train) else (test, train)
    if not _are_booleans(booleans) or set(booleans.names) <= set(others.names):
        return _names_by_number(train, test)
    found = _names_by_number(_numbered(train), _numbered(test))
    if booleans is test:
        return found
    written = {number: name for name, number in _NUMBERS_OF_BOOLEANS.items()}
    return [written.get(name, name) for name in found]


def _are_booleans(labels: Labels) -> bool:
    return not labels.are_named and set(labels.names) <= _NUMBERS_OF_BOOLEANS.keys()


def _numbered(labels: Labels) -> Labels:
    """Labels whose classes false and true are called by their numbers."""
    if not _are_booleans(labels):
        return labels
    return labels._replace(names=[_NUMBERS_OF_BOOLEANS[name] for name in labels.names])


def _names_by_number(train: Labels, test: Labels) -> list[str]:
    named, other = (train, test) if train.are_named else (test, train)
    numbers = list(map(str, range(len(named.names))))
    if named.are_named == other.are_named or set(other.names) <= set(named.names):
        return test.names
    if not set(other.names) <= set(numbers):
        return test.names
    return [named.names[int(number)] for number in test.names] if other is test else numbers
