"""Labels of images that have any number of classes."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

__all__ = ["read_multi_labels"]


def read_multi_labels(datasets: Sequence[Dataset], column: str) -> list[Tensor]:
    """Read a column of lists from several splits as one row an image and one column a class.

    Lists that all have one length and of which one repeats a number are taken as they are: one
    number a class, 1 present, 0 absent, -1 not to be counted (the difficult ones of PASCAL VOC).
    Others list the classes of the image.

    Args:
        datasets: splits of a data set.
        column: name of the column in each.

    Returns:
        For each split int64 (N, C) of 1, 0 and -1.

    Raises:
        ValueError: the column holds no lists of integers, no class at all, or numbers that are out
            of range.
    """
    rows = [
        [_read_row(value, column) for value in dataset.select_columns([column])[:][column]]
        for dataset in datasets
    ]
    flat = [row for split in rows for row in split]
    width = len(flat[0])
    if (
        width > 0
        and all(len(row) == width for row in flat)
        and any(len(np.unique(row)) < width for row in flat)
    ):
        return [_checked(np.stack(split), column) for split in rows]
    numbers = np.concatenate(flat)
    if not len(numbers) or numbers.min() < 0:
        raise ValueError(
            f"column '{column}' must list the classes of each image, numbered from 0 up"
        )
    matrices = []
    for split in rows:
        matrix = np.zeros((len(split), int(numbers.max()) + 1), dtype=np.int64)
        for index, row in enumerate(split):
            matrix[index, row] = 1
        matrices.append(torch.from_numpy(matrix))
    return matrices


def _read_row(value: object, column: str) -> np.ndarray:
    row = np.asarray(value if value is not None else "missing")
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iub"):
        raise ValueError(f"column '{column}' holds {value!r}: each image needs a list of integers")
    return row.astype(np.int64)


def _checked(matrix: np.ndarray, column: str) -> Tensor:
    found = np.unique(matrix)
    if not np.isin(found, (-1, 0, 1)).all():
        raise ValueError(
            f"column '{column}' holds one number a class, but also {found[0]} or {found[-1]}: use "
            f"1 for present, 0 for absent and -1 for ones not to be counted"
        )
    return torch.from_numpy(matrix)
