"""Any encoded or decoded image becomes a correct 8-bit RGB image, or an error that says what is
wrong with it.
"""

import functools
import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from esvit_hf.common.errors import one_line

ORIENTATION_TAG = 0x0112
SIDEWAYS_ORIENTATIONS = frozenset({5, 6, 7, 8})
# Pillow finds an orientation in these entries alone; to ask for it in every image is slow.
ORIENTATION_SOURCES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# Pillow recognizes these, but has no decoder of its own for them.
UNDECODABLE_FORMATS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
MAX_PIXELS = 89_478_485
"""Images with more pixels than this (Pillow's own limit) are refused before they are decoded."""

_BROKEN_SHOWN = 5


@dataclass(frozen=True)
class BrokenImage:
    """What stands in the place of an image that cannot be decoded.

    Attributes:
        index: place of the image in its source.
        reason: what is wrong with it, in one line.
    """

    index: int
    reason: str


def refuse_broken_images(broken: Sequence[BrokenImage], total: int) -> None:
    """Stop a measurement that would leave images out.

    Args:
        broken: images that cannot be decoded, in the order of the source.
        total: number of images of the source.

    Raises:
        ValueError: there are any; the message names the first of them.
    """
    if not broken:
        return
    shown = "; ".join(f"image {image.index}: {image.reason}" for image in broken[:_BROKEN_SHOWN])
    rest = f"; and {len(broken) - _BROKEN_SHOWN} more" if len(broken) > _BROKEN_SHOWN else ""
    raise ValueError(
        f"{len(broken)} of {total} images cannot be decoded, and a measurement must not skip any "
        f"({shown}{rest}): repair or remove them"
    )


class UndecodableImageError(ValueError):
    """An image is missing, truncated, too large, or in a form that cannot become RGB."""


def decode_image(value: object, *, keep_grayscale: bool = False) -> Image.Image:
    """Decode one image and bring it to 8-bit RGB.

    The EXIF rotation is applied. Transparency is composited on white. 16-bit images are scaled to 8
    bits. Float images are read as 0..1 if they lie in that range, as 0..255 if they lie in that
    one, and are stretched to it otherwise.

    Args:
        value: encoded bytes, a path, a ``{"bytes", "path"}`` dictionary, a Pillow image, or an
            array or nested list of shape (height, width) or (height, width, 1, 3 or 4).
        keep_grayscale: leave a grayscale image in mode ``L`` (one channel; R = G = B).

    Returns:
        Pillow image in mode ``RGB``, or ``L`` where allowed.

    Raises:
        UndecodableImageError: the value is no image, is truncated, or has more than ``MAX_PIXELS``
            pixels.
    """
    return finish_image(open_image(value), keep_grayscale=keep_grayscale)


def open_image(value: object) -> Image.Image:
    """Open an image without decoding its pixels: the size, the mode and the EXIF data are known
    afterwards.

    Args:
        value: as for :func:`decode_image`.

    Returns:
        Pillow image as stored, for :func:`upright_size` and :func:`finish_image`.

    Raises:
        UndecodableImageError: the value is no image or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        image = _open(value)
        width, height = image.size
        if width * height == 0:
            raise UndecodableImageError(f"an image of {width} x {height} has no pixels")
        if width * height > MAX_PIXELS:
            raise UndecodableImageError(
                f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}"
            )
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
        return (height, width) if _orientation(image) in SIDEWAYS_ORIENTATIONS else (width, height)
    except Exception as error:
        raise UndecodableImageError(_reason(error)) from error


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
        image.load()
        if _orientation(image) > 1:
            image = ImageOps.exif_transpose(image)
        is_plain = image.mode in {"RGB", "L"} and "transparency" not in image.info
        converted = image if is_plain else _convert(image)
        return converted if keep_grayscale or converted.mode == "RGB" else converted.convert("RGB")
    except UndecodableImageError:
        raise
    # The reason of open_image: damaged pixels end in any exception.
    except Exception as error:
        raise UndecodableImageError(_reason(error)) from error


def _open(value: object) -> Image.Image:
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UndecodableImageError("there is neither a path nor any bytes")
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, (str, os.PathLike)):
        value = Path(value).read_bytes()
    if isinstance(value, (bytes, bytearray, memoryview)):
        with warnings.catch_warnings():
            # Pillow warns where the caller refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(value), formats=_readable_formats())
    return _image_from_array(np.asarray(value))


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


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF files upright itself.
    if image.format == "TIFF" or not any(key in image.info for key in ORIENTATION_SOURCES):
        return 1
    return int(image.getexif().get(ORIENTATION_TAG, 1))


def _convert(image: Image.Image) -> Image.Image:
    """Bring a loaded image of any mode to ``RGB`` or ``L``."""
    if image.mode.startswith("I"):
        # Mode I is what Pillow makes of 16-bit PGM files and of 32-bit TIFF files.
        values = np.asarray(image.convert("I"))
        if values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max:
            return _image_from_array(values.astype(np.uint16))
        return _image_from_array(values.astype(np.float64))
    if image.mode == "F":
        return _image_from_array(np.asarray(image))
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _image_from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})) or array.size == 0:
        raise UndecodableImageError(
            f"an array of shape {array.shape} is no image; it must be (height, width) or (height, "
            f"width, 1, 3 or 4)"
        )
    return Image.fromarray(_to_uint8(array))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise UndecodableImageError(f"an array of {array.dtype} holds no pixels")
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UndecodableImageError("the pixels are not all finite numbers")
    if np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.rint(values).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "the bytes are in no image format that Pillow knows"
    return f"{type(error).__name__}: {one_line(error)}"
