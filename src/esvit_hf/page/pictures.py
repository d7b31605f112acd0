"""Images that visitors choose: read safely, shown at a useful size, clicked in their own pixels."""

from pathlib import Path

from PIL import Image, ImageDraw

from esvit_hf.data.decoding import UndecodableImageError, finish_image, open_image
from esvit_hf.figures.look import COLORS

__all__ = [
    "MAX_UPLOAD_MEGABYTES",
    "MAX_UPLOAD_PIXELS",
    "marked_picture",
    "point_of_click",
    "read_upload",
]

MAX_UPLOAD_MEGABYTES = 10
MAX_UPLOAD_PIXELS = 25_000_000
"""Larger images are refused before they are decoded."""

SMALLEST_SIDE = 16
"""Images with a shorter side, in pixels, show nothing."""

DISPLAY_SIDE = (384, 1024)
"""Smallest and largest longer side of a displayed picture, in pixels."""

OUTLINE_COLORS = ("white", COLORS[1])


def read_upload(path: str | Path) -> Image.Image:
    """Read an uploaded file.

    Args:
        path: where the upload was put; never a name that a visitor typed.

    Returns:
        The image, upright, in mode RGB.

    Raises:
        ValueError: too many bytes or pixels, too small, or no image; the message is for visitors
            and names no path.
    """
    size = Path(path).stat().st_size
    if size > MAX_UPLOAD_MEGABYTES * 2**20:
        raise ValueError(
            f"The file has {size / 2**20:.1f} MB: choose one of at most {MAX_UPLOAD_MEGABYTES} MB."
        )
    try:
        opened = open_image(Path(path).read_bytes())
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


def display_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Choose the size of a displayed picture: small images grow by a whole factor, large ones
    shrink.

    Args:
        image_size: (width, height) of the image in pixels.

    Returns:
        (width, height) of the picture.
    """
    longer = max(image_size)
    smallest, largest = DISPLAY_SIDE
    if longer < smallest:
        factor: float = -(-smallest // longer)
    else:
        factor = min(1.0, largest / longer)
    width, height = (max(1, round(side * factor)) for side in image_size)
    return width, height


def point_of_click(click: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Turn a click on the displayed picture into a pixel of the image.

    Args:
        click: (x, y) in pixels of the picture, from the left, from the top.
        image_size: (width, height) of the image.

    Returns:
        (x, y) of the pixel under the click, inside the image.
    """
    x, y = (
        min(max(int((place + 0.5) * side / shown), 0), side - 1)
        for place, side, shown in zip(click, image_size, display_size(image_size), strict=True)
    )
    return x, y


def marked_picture(
    image: Image.Image, point: tuple[int, int] | None = None, grid: tuple[int, int] | None = None
) -> Image.Image:
    """Draw an image as the page displays it, with a cross at a point and a frame around its region.

    Args:
        image: RGB.
        point: (x, y) in pixels of the image; no mark without it.
        grid: (h, w) rows and columns of regions; no frame without it.

    Returns:
        Picture of `display_size`.
    """
    size = display_size(image.size)
    grows = size[0] > image.width
    picture = image.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.BICUBIC)
    if point is None:
        return picture
    draw = ImageDraw.Draw(picture)
    x, y = (
        (place + 0.5) * shown / side
        for place, shown, side in zip(point, size, image.size, strict=True)
    )
    thickness = max(2, max(size) // 160)
    arm = max(size) // 30
    for color, width in zip(OUTLINE_COLORS, (thickness + 4, thickness), strict=True):
        draw.line((x - arm, y, x + arm, y), fill=color, width=width)
        draw.line((x, y - arm, x, y + arm), fill=color, width=width)
        if grid is not None:
            rows, columns = grid
            row, column = point[1] * rows // image.height, point[0] * columns // image.width
            left, right = (edge * size[0] / columns for edge in (column, column + 1))
            top, bottom = (edge * size[1] / rows for edge in (row, row + 1))
            draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=width)
    return picture
