"""Where images come from: a Hub data set, parquet, an image folder or a ``datasets.Dataset``, all
behind one class.
"""

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.decoding import BrokenImage, UndecodableImageError, decode_image, decode_stored
from esvit_hf.data.fingerprints import fingerprint_rows
from esvit_hf.data.labels import Labels, find_label_column, read_labels
from esvit_hf.data.loading import load_dataset_split
from esvit_hf.data.sampling import EpochSampler

USUAL_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")


class ImageSource:
    """Images, and labels if there are any, by index.

    Images stay encoded until they are read, so that decoding happens in the workers of a
    DataLoader. A source is cheap to pickle: memory-mapped data travels as file names.

    Args:
        dataset: the rows.
        image_column: column with the images; found by its type (``datasets.Image``) or its name if
            None.
        label_column: column with the labels; found by its type (``datasets.ClassLabel``) or its
            name if None.
        name: what to call the data in messages.
        max_image_pixels: images with more pixels count as broken.
        labels: false if the images need none; then no column is read for them.

    Attributes:
        name: what to call the data in messages.
        image_column: name of the column with the images.
        label_column: name of the column with the labels, None without labels.
        classes: classes of the images, None without labels.

    Raises:
        ValueError: the data set is empty or streams, or a column is missing, ambiguous or of
            another kind.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        name: str = "in-memory data set",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        labels: bool = True,
    ) -> None:
        if not isinstance(dataset, Dataset):
            kind = type(dataset).__name__
            raise ValueError(
                f"{name} is of type {kind}; images are read by index, so pass a datasets.Dataset"
            )
        if len(dataset) == 0:
            raise ValueError(f"{name} has no rows; choose another --split or data set")
        self.name = name
        self.max_image_pixels = max_image_pixels
        self.image_column = find_image_column(dataset.features, image_column, name)
        self.label_column = (
            find_label_column(dataset.features, label_column, name) if labels else None
        )
        self._are_labels_known = labels
        self.classes: Labels | None = None
        if self.label_column is not None:
            self.classes = read_labels(dataset, self.label_column, name)
        self._images = dataset.select_columns([self.image_column]).with_format("arrow")

    def __len__(self) -> int:
        return len(self._images)

    @property
    def labels(self) -> np.ndarray | None:
        """(images,) int64 class numbers, None without labels."""
        return None if self.classes is None else self.classes.numbers

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class, None without labels."""
        return None if self.classes is None else self.classes.names

    @property
    def description(self) -> str:
        """One line for logs: the name, the number of images, and the columns."""
        text = f"{self.name}: {len(self)} images in column '{self.image_column}'"
        if not self._are_labels_known:
            return text
        if self.labels is None:
            return f"{text}, no labels"
        return f"{text}, labels '{self.label_column}' with {len(np.unique(self.labels))} classes"

    def describe(self, index: int) -> str:
        """Name an image in messages: its place, and its path if the data knows it."""
        row = self._images[[int(index)]].column(0).to_pylist()[0]
        path = row.get("path") if isinstance(row, dict) else row
        return f"image {index} ({path})" if path and isinstance(path, str) else f"image {index}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes with any image, label or order of them."""
        digest = hashlib.sha256(fingerprint_rows(self._images))
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def sampler(
        self,
        batch_size_per_process: int,
        seed: int,
        *,
        num_workers: int,
        **place: int,
    ) -> EpochSampler:
        """Give the order in which one process reads the images during training.

        Args:
            batch_size_per_process: images in one micro-batch of one process.
            seed: of the order.
            num_workers: processes of the loader that read for this process; the order of a stream
                depends on it.
            **place: `rank`, `world_size`, `accumulation`, `start_step` and `total_steps`, as for
                :class:`esvit_hf.data.sampling.EpochSampler`.

        Returns:
            The sampler.

        Raises:
            ValueError: a value is out of range, or one step needs more images than there are.
        """
        return EpochSampler(len(self), batch_size_per_process, seed, **place)

    def take(self, indices: Sequence[int], name: str) -> "ImageSource":
        """Choose some of the images, with the same numbering of the classes.

        Args:
            indices: places of the images, each in [0, len).
            name: what to call them in messages.

        Returns:
            The images in this order.
        """
        part = copy.copy(self)
        part.__dict__.pop("fingerprint", None)
        part.name = name
        part._images = self._images.select(indices)
        if self.classes is not None:
            numbers = self.classes.numbers[np.asarray(indices)]
            part.classes = self.classes._replace(numbers=numbers)
        return part

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """Fetch images as they are stored.

        Args:
            indices: places of the images, each in [0, len).

        Returns:
            One value an index, for :func:`esvit_hf.data.decoding.decode_image`: bytes, a path, or
            nested lists.

        Raises:
            IndexError: an index is out of range.
        """
        rows = self._images[list(indices)].column(0).to_pylist()
        return [
            (row["bytes"] if row["bytes"] is not None else row["path"])
            if isinstance(row, dict)
            else row
            for row in rows
        ]

    def read_stored(self, indices: Sequence[int]) -> list[Image.Image | np.ndarray | BrokenImage]:
        """Fetch and decode images of any number of channels.

        Args:
            indices: places of the images, each in [0, len).

        Returns:
            One value an index, for an image processor that keeps values, or a
            :class:`BrokenImage` where decoding failed.
        """
        return self._read(indices, decode_stored)

    def read(self, indices: Sequence[int]) -> list[Image.Image | BrokenImage]:
        """Fetch and decode images.

        Args:
            indices: places of the images, each in [0, len).

        Returns:
            One Pillow image in mode RGB an index, or a :class:`BrokenImage` where decoding failed.

        Raises:
            IndexError: an index is out of range.
        """
        return self._read(indices, decode_image)

    def _read(self, indices: Sequence[int], decode: Callable[..., Any]) -> list[Any]:
        images: list[Any] = []
        for index, value in zip(indices, self.read_encoded(indices), strict=True):
            try:
                images.append(decode(value, max_image_pixels=self.max_image_pixels))
            except UndecodableImageError as error:
                images.append(BrokenImage(int(index), str(error), self.describe(index)))
        return images


def load_image_source(
    name_or_path: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    labels: bool = True,
) -> ImageSource:
    """Open a data set of images.

    Args:
        name_or_path: name on the Hub, a folder of parquet files, one parquet file, a folder that
            ``save_to_disk`` wrote, or a folder of image files, with or without one folder a class,
            with or without folders train, ...
        split: which part of the data; slices such as ``train[:10%]`` work.
        config_name: configuration of a data set that has several.
        image_column: column with the images, where its type and name leave a doubt.
        label_column: column with the labels, where its type and name leave a doubt.
        max_image_pixels: images with more pixels count as broken.
        labels: false if the images need none; then no column is read for them.

    Returns:
        The source.

    Raises:
        ValueError: the data cannot be found or read, or lacks the split or a column; the message
            names the remedy.
    """
    dataset = load_dataset_split(name_or_path, split=split, config_name=config_name)
    return ImageSource(
        dataset,
        image_column=image_column,
        label_column=label_column,
        name=f"{name_or_path} (split {split})",
        max_image_pixels=max_image_pixels,
        labels=labels,
    )


def _can_hold_images(feature: object) -> bool:
    if isinstance(feature, ImageFeature):
        return True
    if isinstance(feature, Value):
        return feature.dtype in {"binary", "large_binary", "string", "large_string"}
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    # What is left is labels, and arrays and lists, which may hold pixels.
    return not isinstance(feature, ClassLabel)


def find_image_column(features: Features, requested: str | None, name: str) -> str:
    """Find the column with the images.

    Args:
        features: type of each column.
        requested: column that the user names.
        name: what to call the data in messages.

    Returns:
        `requested`, or the only column that is of type image or has a usual name; among several of
        type image the one with a usual name.

    Raises:
        ValueError: the column is missing, ambiguous or of another kind.
    """
    columns = ", ".join(features)
    if requested is not None:
        if requested not in features:
            raise ValueError(
                f"{name} has no column '{requested}'; set --image_column to one of: {columns}"
            )
        if not _can_hold_images(features[requested]):
            raise ValueError(
                f"column '{requested}' of {name} holds {features[requested]}, no images; "
                f"set --image_column to another one of: {columns}"
            )
        return requested
    typed = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    usual = [
        column
        for column in USUAL_IMAGE_COLUMNS
        if column in features and _can_hold_images(features[column])
    ]
    # Beside the images there may be masks, which are images too; then a usual name decides.
    found = [column for column in typed if column in usual] or typed or usual
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{name} has several image columns; set --image_column to one of: {', '.join(found)}"
        )
    raise ValueError(
        f"{name} has no column that is known to hold images; set --image_column to one of: "
        f"{columns}"
    )
