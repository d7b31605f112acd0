"""Images and labels of one transfer data set, from the Hub or from a local copy."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from torch import Tensor

from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.labels import USUAL_LABEL_COLUMNS
from esvit_hf.data.loading import load_dataset_split, local_split_names
from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.multi_label import read_multi_labels
from esvit_hf.evaluation.splits import check_classes, shared_class_names
from esvit_hf.evaluation.transfer_datasets import TransferDataset
from esvit_hf.features.extraction import shared_labels

__all__ = ["TransferData", "load_transfer_data"]


@dataclass(frozen=True)
class TransferData:
    """The splits of one data set, with their labels in one numbering.

    Attributes:
        sources: images of `train`, `test` and, if there is such a split, `validation`.
        labels: (N,) int64 classes of each, or (N, C) of 1, 0 and -1.
        remarks: how this copy differs from the published data set.
    """

    sources: dict[str, ImageSource]
    labels: dict[str, Tensor]
    remarks: list[str]

    @property
    def label_digest(self) -> str:
        """Hexadecimal digest of all labels."""
        digest = hashlib.sha256()
        for split, labels in sorted(self.labels.items()):
            digest.update(f"{split} {tuple(labels.shape)}".encode() + labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def load_transfer_data(
    dataset: TransferDataset,
    path: str | None = None,
    *,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> TransferData:
    """Open the splits of a data set.

    A local copy has the splits and columns of the copy on the Hub, or the usual ones: train, test
    and, if there is one, validation; columns that are found by their type.

    Args:
        dataset: which one.
        path: local copy, in any layout that `load_dataset_split` reads; the Hub's copy if None.
        max_image_pixels: images with more pixels count as broken.

    Returns:
        Images and labels.

    Raises:
        ValueError: there is no copy, it lacks a split or a column, or a class to be tested has no
            training image.
    """
    if path is None and dataset.hub_name is None:
        raise ValueError(dataset.note)
    place, config_name = (
        (dataset.hub_name or "", dataset.config_name) if path is None else (path, None)
    )
    splits = {
        "train": dataset.train_split,
        "validation": dataset.validation_split,
        "test": dataset.test_split,
    }
    if path is not None:
        splits = _local_splits(dataset, Path(path).expanduser())
    try:
        rows = {
            name: load_dataset_split(place, split=split, config_name=config_name)
            for name, split in splits.items()
            if split is not None
        }
    except ValueError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        where = "from the Hub" if path is None else "from the local copy"
        raise ValueError(
            f"{place} cannot be loaded {where} ({reason}): give a local copy that has the splits"
        ) from error
    open_splits = _multi_label if dataset.multi_label else _single_label
    sources, labels = open_splits(dataset, rows, place, max_image_pixels)
    return TransferData(
        sources,
        labels,
        _size_remarks(dataset, {name: len(source) for name, source in sources.items()}),
    )


def _local_splits(dataset: TransferDataset, path: Path) -> dict[str, str | None]:
    available = local_split_names(path)
    test = "test" if "test" in available else dataset.test_split
    validation = next(
        (name for name in (dataset.validation_split, "validation") if name in available), None
    )
    lacking = next((name for name in (dataset.train_split, test) if name not in available), None)
    if available and lacking is not None:
        raise ValueError(
            f"the local copy {path} has no split {lacking!r} but {', '.join(available)}: give one "
            f"with training and test images"
        )
    return {
        "train": dataset.train_split,
        "validation": None if validation == test else validation,
        "test": test,
    }


def _single_label(
    dataset: TransferDataset, rows: dict[str, Dataset], place: str, max_image_pixels: int
) -> tuple[dict[str, ImageSource], dict[str, Tensor]]:
    sources = {
        name: ImageSource(
            split,
            image_column=_present(dataset.image_column, split),
            label_column=_present(dataset.label_column, split),
            name=f"{place} ({name})",
            max_image_pixels=max_image_pixels,
        )
        for name, split in rows.items()
    }
    if any(source.labels is None for source in sources.values()):
        found = ", ".join(rows["train"].column_names)
        raise ValueError(
            f"{place} has the columns {found}: the one with the classes must be called 'label'"
        )
    labels = {}
    for name in sources:
        labels["train"], labels[name] = shared_labels(sources["train"], sources[name])
        names = shared_class_names(sources["train"], sources[name])
        check_classes(labels["train"], labels[name], names)
    return sources, labels


def _multi_label(
    dataset: TransferDataset, rows: dict[str, Dataset], place: str, max_image_pixels: int
) -> tuple[dict[str, ImageSource], dict[str, Tensor]]:
    candidates = (dataset.label_column, *reversed(USUAL_LABEL_COLUMNS))
    column = next((name for name in candidates if name in rows["train"].column_names), None)
    if column is None:
        found = ", ".join(rows["train"].column_names)
        raise ValueError(
            f"{place} has the columns {found}: the one with lists of classes must be called "
            f"'labels'"
        )
    sources = {
        name: ImageSource(
            # A column of lists is no class label to the source.
            split.remove_columns([column]),
            image_column=_present(dataset.image_column, split),
            name=f"{place} ({name})",
            max_image_pixels=max_image_pixels,
        )
        for name, split in rows.items()
    }
    return sources, dict(zip(rows, read_multi_labels(list(rows.values()), column), strict=True))


def _present(column: str | None, rows: Dataset) -> str | None:
    return column if column in rows.column_names else None


def _size_remarks(dataset: TransferDataset, sizes: dict[str, int]) -> list[str]:
    """What differs from the published sizes; validation images may be counted among the training
    images.
    """
    remarks = []
    training, published = (
        sizes["train"] + sizes.get("validation", 0),
        dataset.train_images + dataset.validation_images,
    )
    if training != published:
        remarks.append(f"{training} images to train and validate on, {published} published")
    if sizes["test"] != dataset.test_images:
        remarks.append(f"{sizes['test']} test images, {dataset.test_images} published")
    return remarks
