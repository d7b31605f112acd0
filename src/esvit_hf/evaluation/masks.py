"""Masks that say which class each pixel of an image belongs to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.decoding import UndecodableImageError, decode_stored
from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.splits import load_splits

__all__ = ["MaskSource", "check_mask_values", "decode_mask", "load_masks"]

# One number a pixel; in a palette image (P) it is the place in the palette.
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def decode_mask(value: object, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decode one mask.

    Args:
        value: an encoded image with one channel, its path, a Pillow image, or an array or nested
            list of shape (H, W), (1, H, W) or (H, W, 1).
        max_image_pixels: masks with more pixels are refused.

    Returns:
        (H, W) int64, the values as they are stored.

    Raises:
        ValueError: the value is damaged or too large, or holds something else than one integer a
            pixel.
    """
    try:
        stored = decode_stored(value, max_image_pixels=max_image_pixels)
    except UndecodableImageError as error:
        raise ValueError(f"cannot be decoded ({error}): repair it") from error
    if isinstance(stored, Image.Image) and stored.mode not in _MODES:
        raise ValueError(
            f"is an image of mode {stored.mode}: store one class number a pixel, for example as "
            f"8-bit gray PNG"
        )
    array = np.asarray(stored)
    shape = array.shape
    if array.ndim == 3 and 1 in (shape[0], shape[2]):
        array = array[0] if shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biu":
        raise ValueError(
            f"has shape {shape} and type {array.dtype}: store one integer a pixel, (height, width)"
        )
    return array.astype(np.int64)


class MaskSource:
    """Masks by index, in the order of their images.

    Args:
        source: the column with the masks, as it is stored.
        split: what messages call the images.
    """

    def __init__(self, source: ImageSource, split: str) -> None:
        self.split = split
        self._source = source
        self._values: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, index: int) -> str:
        """Name a mask in messages."""
        return f"the mask of {self._source.describe(index)} of split {self.split}"

    def read(self, index: int) -> np.ndarray:
        """Decode a mask.

        Args:
            index: in [0, len).

        Returns:
            (H, W) int64, the values as they are stored.

        Raises:
            ValueError: it is no mask; the message names it.
        """
        (value,) = self._source.read_encoded([index])
        try:
            return decode_mask(value, max_image_pixels=self._source.max_image_pixels)
        except ValueError as error:
            raise ValueError(f"{self.describe(index)} {error}") from error

    def values(self, accelerator: Accelerator) -> dict[int, int]:
        """Find the values of all masks; every process reads a share and must call this.

        Args:
            accelerator: the processes.

        Returns:
            For each value, ascending, the first mask that holds it. It is found once and kept.

        Raises:
            ValueError: something is no mask.
        """
        if self._values is None:
            found: dict[int, int] = {}
            problems: list[str] = []
            for index in range(accelerator.process_index, len(self), accelerator.num_processes):
                try:
                    mask = self.read(index)
                except ValueError as error:
                    # A process that left here would let the others wait for it.
                    problems.append(str(error))
                    break
                for value in np.unique(mask).tolist():
                    found.setdefault(value, index)
            parts = [found]
            if accelerator.num_processes > 1:
                parts, problems = gather_object([found]), gather_object(problems)
            if problems:
                raise ValueError(problems[0])
            values = sorted({value for part in parts for value in part})
            self._values = {
                value: min(part[value] for part in parts if value in part) for value in values
            }
        return self._values


def load_masks(mask_column: str, **images: Any) -> tuple[MaskSource, MaskSource]:
    """Open the masks of the training and the test images.

    Args:
        mask_column: column with the masks.
        **images: arguments of `load_splits` that open the images.

    Returns:
        Masks of both splits.

    Raises:
        ValueError: there is no such column.
    """
    try:
        splits = load_splits(**{**images, "image_column": mask_column}, labels=False)
    except ValueError as error:
        # The column is opened as any column of images; the flag that names it is another.
        message = str(error).replace("--image_column", "--mask_column")
        raise ValueError(f"masks cannot be read: {message}") from error
    return (
        MaskSource(splits.train, images["train_split"]),
        MaskSource(splits.test, splits.test_name),
    )


def check_mask_values(
    masks: MaskSource, classes: int, void: Sequence[int], accelerator: Accelerator
) -> None:
    """Check that masks hold nothing but classes and void; every process must call this.

    Args:
        masks: of one split.
        classes: number of classes.
        void: values of pixels that do not count.
        accelerator: the processes.

    Raises:
        ValueError: another value; the message names it and an image.
    """
    for value, index in masks.values(accelerator).items():
        if value not in void and not 0 <= value < classes:
            raise ValueError(
                f"{masks.describe(index)} holds the value {value}, and the classes are 0 to "
                f"{classes - 1}: correct the mask, name all classes with --dense.class_names, or "
                f"add the value to --dense.void if such pixels do not count"
            )
