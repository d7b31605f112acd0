"""Pictures that visitors choose: uploads read safely, pictures encoded as browsers show them."""

import io
from pathlib import Path

from PIL import Image

from esvit_hf.data.decoding import UndecodableImageError, finish_image, open_image

__all__ = [
    "MAX_UPLOAD_MEGABYTES",
    "MAX_UPLOAD_PIXELS",
    "PHOTOGRAPHS",
    "encode_picture",
    "read_upload",
]

PHOTOGRAPHS = Path(__file__).parent / "photographs"
"""The photographs that come with the page, with an index and their licenses."""

MAX_UPLOAD_MEGABYTES = 10
MAX_UPLOAD_PIXELS = 25_000_000
"""Larger images are refused before they are decoded."""

SMALLEST_SIDE = 16
"""Images with a shorter side, in pixels, show nothing."""

LARGEST_PICTURE = 1024
"""Longer side of an encoded picture, in pixels, at most."""

_LARGEST_LOSSLESS = 256
_JPEG_QUALITY = 92


def read_upload(content: bytes) -> Image.Image:
    """Read an uploaded file.

    Args:
        content: the bytes that a visitor sent.

    Returns:
        The image, upright, in mode RGB.

    Raises:
        ValueError: too many bytes or pixels, too small, or no image; the message is for visitors.
    """
    if len(content) > MAX_UPLOAD_MEGABYTES * 2**20:
        raise ValueError(
            f"The file has {len(content) / 2**20:.1f} MB: choose one of at most "
            f"{MAX_UPLOAD_MEGABYTES} MB."
        )
    try:
        opened = open_image(content)
        width, height = opened.size
        if width * height > MAX_UPLOAD_PIXELS:
            raise ValueError(
                f"The image has {width} x {height} pixels: choose one of at most "
                f"{MAX_UPLOAD_PIXELS // 10**6} million."
            )
        if min(width, height) < SMALLEST_SIDE:
            raise ValueError(
                f"The image has {width} x {height} pixels: both sides need at least "
                f"{SMALLEST_SIDE}."
            )
        return finish_image(opened)
    except UndecodableImageError as error:
        raise ValueError(
            f"This file cannot be read as an image ({error}): choose an intact JPEG, PNG, WebP, "
            f"GIF or TIFF file."
        ) from error


def encode_picture(image: Image.Image, largest: int = LARGEST_PICTURE) -> tuple[bytes, str]:
    """Encode an image for a browser: without loss if it is small, as JPEG otherwise.

    Args:
        image: RGB.
        largest: longer side of the picture in pixels, at most.

    Returns:
        The file, and its media type.
    """
    picture = image.copy()
    picture.thumbnail((largest, largest))
    file = io.BytesIO()
    if max(picture.size) <= _LARGEST_LOSSLESS:
        picture.save(file, "PNG")
        return file.getvalue(), "image/png"
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue(), "image/jpeg"
