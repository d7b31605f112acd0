"""Any encoded or decoded image becomes a correct 8-bit RGB image, or an error that says what is
wrong with it.
"""

import contextlib
import functools
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from esvit_hf.common.errors import one_line
from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.array_files import read_array
from esvit_hf.models.image_processing_esvit import convert_image, read_orientation, to_uint8

SIDEWAYS_ORIENTATIONS = frozenset({5, 6, 7, 8})
# Pillow recognizes these, but has no decoder of its own for them.
UNDECODABLE_FORMATS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})

# Pillow calls a JPEG file MPO if it holds further pictures, as those of many phones do.
_JPEG_FORMATS = frozenset({"JPEG", "MPO"})
_BROKEN_SHOWN = 5


@dataclass(frozen=True)
class BrokenImage:
    """What stands in the place of an image that cannot be decoded.

    Attributes:
        index: place of the image in its source.
        reason: what is wrong with it, in one line.
        name: what to call it in messages, with its path if it has one.
    """

    index: int
    reason: str
    name: str


def refuse_broken_images(broken: Sequence[BrokenImage], total: int) -> None:
    """Stop a measurement that would leave images out.

    Args:
        broken: images that cannot be decoded, in the order of the source.
        total: number of images of the source.

    Raises:
        BrokenImagesError: there are any; the message names the first of them.
    """
    if broken:
        raise BrokenImagesError(broken, total)


class BrokenImagesError(ValueError):
    """Images cannot be decoded that a measurement must not leave out.

    Args:
        broken: the images, in the order of the source.
        total: number of images of the source.
    """

    def __init__(self, broken: Sequence[BrokenImage], total: int) -> None:
        shown = "; ".join(f"{image.name}: {image.reason}" for image in broken[:_BROKEN_SHOWN])
        rest = f"; and {len(broken) - _BROKEN_SHOWN} more" if len(broken) > _BROKEN_SHOWN else ""
        self.places = [image.index for image in broken]
        self.summary = f"{len(broken)} of {total} images cannot be decoded"
        self.shown = f"{shown}{rest}"
        super().__init__(
            f"{self.summary}, and a measurement must not skip any ({self.shown}): repair or "
            f"remove them"
        )


class UndecodableImageError(ValueError):
    """An image is missing, truncated, too large, or in a form that cannot become RGB."""


def decode_image(
    value: object, *, keep_grayscale: bool = False, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Decode one image and bring it to 8-bit RGB.

    What becomes of each mode is said at
    :func:`esvit_hf.models.image_processing_esvit.convert_image`, and of arrays at `to_uint8` there.

    Args:
        value: encoded bytes, a path, a ``{"bytes", "path"}`` dictionary, a Pillow image, or an
            array or nested list of shape (height, width) or (height, width, 1, 3 or 4).
        keep_grayscale: leave a grayscale image in mode ``L`` (one channel; R = G = B).
        max_image_pixels: images with more pixels are refused.

    Returns:
        Pillow image in mode ``RGB``, or ``L`` where allowed.

    Raises:
        UndecodableImageError: the value is no image, is truncated, or has too many pixels.
    """
    image = open_image(value, max_image_pixels=max_image_pixels)
    return finish_image(image, keep_grayscale=keep_grayscale)


def open_image(value: object, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open an image without decoding its pixels: the size, the mode and the EXIF data are known
    afterwards.

    Args:
        value: as for :func:`decode_image`.
        max_image_pixels: images with more pixels are refused.

    Returns:
        Pillow image as stored, for :func:`upright_size` and :func:`finish_image`.

    Raises:
        UndecodableImageError: the value is no image or has too many pixels.
    """
    try:
        image = _open(value)
        _check_pixels(*image.size, max_image_pixels)
        return image
    except UndecodableImageError:
        raise
    # Pillow's readers raise nearly any exception on damaged files: struct.error, SyntaxError,
    # KeyError, EOFError, ...
    except Exception as error:
        raise UndecodableImageError(_reason(error)) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Give the size an opened image has once its EXIF rotation is applied.

    Args:
        image: from :func:`open_image`.

    Returns:
        (width, height) in pixels.

    Raises:
        UndecodableImageError: the EXIF data is damaged.
    """
    width, height = image.size
    try:
        is_sideways = read_orientation(image) in SIDEWAYS_ORIENTATIONS
    except Exception as error:
        raise UndecodableImageError(_reason(error)) from error
    return (height, width) if is_sideways else (width, height)


def finish_image(image: Image.Image, *, keep_grayscale: bool = False) -> Image.Image:
    """Decode the pixels of an opened image, turn it upright and convert it to RGB.

    Args:
        image: from :func:`open_image`.
        keep_grayscale: as for :func:`decode_image`.

    Returns:
        Pillow image in mode ``RGB``, or ``L`` where allowed.

    Raises:
        UndecodableImageError: the pixels are truncated, damaged or in a mode without a meaning as
            colors.
    """
    try:
        return convert_image(image, keep_grayscale=keep_grayscale)
    # The reason of open_image: damaged pixels end in any exception.
    except Exception as error:
        raise UndecodableImageError(_reason(error)) from error


def is_jpeg(image: Image.Image) -> bool:
    """Say whether an opened image is a JPEG file, which can be decoded at a part of its size."""
    return image.format in _JPEG_FORMATS


def decode_jpeg_pixels(image: Image.Image, content: bytes) -> Tensor | None:
    """Decode a JPEG file without the copies that Pillow makes, with torchvision.

    Args:
        image: from :func:`open_image`.
        content: the bytes that it was opened from.

    Returns:
        (3, H, W) uint8, the colors of a pixel beside each other: the numbers of
        :func:`finish_image`. None where that has to do it: the image is no upright JPEG file in
        RGB, or it is damaged.
    """
    try:
        if not is_jpeg(image) or image.mode != "RGB" or read_orientation(image) != 1:
            return None
        from torchvision.io import decode_jpeg

        pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return pixels
    # finish_image says what is wrong, and decodes where torchvision has no decoder any more.
    except Exception:
        return None


def decode_stored(
    value: object, *, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image | np.ndarray:
    """Decode one image of any number of channels, and leave its values as they are.

    Args:
        value: as for :func:`decode_image`.
        max_image_pixels: images with more pixels are refused.

    Returns:
        What :func:`esvit_hf.models.image_processing_esvit.convert_channels` takes.

    Raises:
        UndecodableImageError: the value is no image, is truncated, or has too many pixels.
    """
    try:
        content = read_content(value)
        array = read_array(content) if isinstance(content, bytes) else content
        if isinstance(array, Image.Image) or array is None:
            image = open_image(content, max_image_pixels=max_image_pixels)
            image.load()
            return image
        array = np.asarray(array)
        if array.ndim not in (2, 3) or array.size == 0:
            raise UndecodableImageError(f"an array of shape {array.shape} is no image")
        height, width = sorted(array.shape)[-2:]
        _check_pixels(width, height, max_image_pixels)
        return array
    except UndecodableImageError:
        raise
    except Exception as error:
        raise UndecodableImageError(_reason(error)) from error


def read_content(value: object) -> object:
    """Read the bytes of an encoded image.

    Args:
        value: as for :func:`decode_image`.

    Returns:
        bytes; a Pillow image, an array or a list as it is.

    Raises:
        UndecodableImageError: there is neither a path nor any bytes, or the file cannot be read.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UndecodableImageError("there is neither a path nor any bytes")
    if isinstance(value, (str, os.PathLike)):
        try:
            value = Path(value).read_bytes()
        # A path of characters that no file name has is a ValueError.
        except (OSError, ValueError) as error:
            raise UndecodableImageError(_reason(error)) from error
    return bytes(value) if isinstance(value, (bytearray, memoryview)) else value


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height == 0:
        raise UndecodableImageError(f"an image of {width} x {height} has no pixels")
    if width * height > limit:
        raise UndecodableImageError(
            f"{width} x {height} pixels are more than the limit of {limit} (max_image_pixels)"
        )


def _open(value: object) -> Image.Image:
    value = read_content(value)
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes):
        if (array := read_array(value, tiff=False)) is not None:
            return _image_from_array(array)
        with _without_limit_of_pillow():
            return Image.open(io.BytesIO(value), formats=_readable_formats())
    return _image_from_array(np.asarray(value))


@contextlib.contextmanager
def _without_limit_of_pillow() -> Iterator[None]:
    """Let Pillow open images of any size: the caller refuses them."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def image_endings() -> frozenset[str]:
    """Give the endings of the files that can be decoded, in lower case and with their dot."""
    formats = {*_readable_formats(), "MPO"} - UNDECODABLE_FORMATS
    endings = Image.registered_extensions()
    return frozenset(ending for ending, name in endings.items() if name in formats)


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    # The usual formats come first: some of the others recognize their files by trial alone.
    Image.preinit()
    Image.init()
    # To read PostScript, Pillow starts another program, which executes what is in the file.
    return tuple(name for name in Image.OPEN if name != "EPS")


def _image_from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})) or array.size == 0:
        raise UndecodableImageError(
            f"an array of shape {array.shape} is no image; it must be (height, width) or (height, "
            f"width, 1, 3 or 4)"
        )
    return Image.fromarray(to_uint8(array))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "the bytes are in no image format that Pillow knows"
    return f"{type(error).__name__}: {one_line(error)}"
