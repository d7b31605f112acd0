"""The evaluation transform of EsViT as a transformers image processor, and what it makes of images
that are not 8-bit RGB.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)

ORIENTATION_TAG = 0x0112
# Pillow finds an orientation in these entries alone; to ask for it in every image is slow.
ORIENTATION_SOURCES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""

EXTRA_SAMPLES_TAG = 338
ALPHA_SAMPLES = {1, 2, 999}
LARGEST_VALUES = (255, 4095, 65535)
"""Of 8, 12 and 16 bits."""


def read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of an image.

    Args:
        image: opened, with or without its pixels.

    Returns:
        1 to 8; 1 (upright) where there is none, or none that is valid. TIFF files are upright:
        Pillow turns them itself.
    """
    if image.format == "TIFF" or not any(key in image.info for key in ORIENTATION_SOURCES):
        return 1
    value = image.getexif().get(ORIENTATION_TAG)
    return value if isinstance(value, int) and value in UPRIGHT else 1


def convert_image(image: Image.Image, *, keep_grayscale: bool = False) -> Image.Image:
    """Turn an image upright and convert it to 8-bit RGB.

    Transparency is composited on white. Integers and floating-point numbers are brought to 8 bits
    by :func:`to_uint8`. A fourth band that the file does not call transparency is dropped.

    Args:
        image: of any mode.
        keep_grayscale: leave a grayscale image in mode `L` (one channel; R = G = B).

    Returns:
        Image in mode `RGB`, or `L` where allowed.

    Raises:
        ValueError: the mode has no meaning as colors, or pixels are not finite.
    """
    image.load()
    orientation = read_orientation(image)
    if orientation > 1:
        image = image.transpose(UPRIGHT[orientation])
        for key in ORIENTATION_SOURCES:
            # What is upright must not be turned again.
            image.info.pop(key, None)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image if image.mode == "F" else image.convert("I"))
        image = Image.fromarray(to_uint8(values))
    elif image.mode == "1":
        image = image.convert("L")
    elif _is_transparent(image):
        rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode == "L" and keep_grayscale:
        return image
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    if image.format == "TIFF" and image.mode == "RGBA":
        # Without this tag Pillow takes any fourth band, such as near infrared, for transparency.
        samples = image.tag_v2.get(EXTRA_SAMPLES_TAG, ())  # type: ignore[attr-defined]
        return bool(ALPHA_SAMPLES & set(samples if isinstance(samples, tuple) else (samples,)))
    return image.has_transparency_data


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Bring pixels of any kind to 8 bits.

    Integers are scaled by the first of 255, 4095 and 65535 (8, 12 and 16 bits) that none exceeds.
    Floating-point numbers are read as 0..1 if they lie in that range, as 0..255 if they lie in
    that one. Everything else is stretched from its smallest to its largest value.

    Args:
        values: numbers or booleans of any shape.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: the values are no real numbers, or not all finite.
    """
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise ValueError(f"an array of {values.dtype} holds no pixels")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the pixels are not all finite numbers")
    exact = values.astype(np.float64)
    scales = (1.0, 255.0) if np.issubdtype(values.dtype, np.floating) else LARGEST_VALUES
    largest = next((scale for scale in scales if high <= scale), None)
    if low >= 0 and largest is not None:
        return np.rint(exact * (255 / largest)).astype(np.uint8)
    if high == low:
        return np.zeros_like(values, dtype=np.uint8)
    return np.rint((exact - low) * (255 / (high - low))).astype(np.uint8)


class EsvitImageProcessor(PilBackend):
    """Resize the shorter side to 256 (bicubic), crop the center 224 x 224, normalize with the
    ImageNet statistics.

    On RGB images the result equals torchvision's Resize + CenterCrop + ToTensor + Normalize bit for
    bit; torchvision itself is not needed. Pillow images of any mode become upright 8-bit RGB, see
    :func:`convert_image`. `size`, `crop_size` and the other settings of transformers' image
    processors can be changed.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def convert_to_rgb(
        self,
        image: Image.Image | np.ndarray,
        input_data_format: str | ChannelDimension | None = None,
    ) -> np.ndarray:
        """Bring an image to three channels.

        Args:
            image: PIL image of any mode, or an array of one, three or four channels.
            input_data_format: Where an array has its channels; inferred if None.

        Returns:
            Array of three channels, last for PIL images and where they were for arrays.
        """
        if isinstance(image, Image.Image):
            return np.array(convert_image(image))
        rgb: np.ndarray = super().convert_to_rgb(image, input_data_format=input_data_format)
        return rgb

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:  # type: ignore[override]
        """Cut out the center; where the image is smaller, pad with zeros.

        transformers rounds the corner down; torchvision, and so the reference, rounds half to even.

        Args:
            image: (channels, H, W).
            size: Height and width of the crop.
            **kwargs: Ignored, as in transformers.

        Returns:
            (channels, height, width).

        Raises:
            ValueError: If the size has no height or no width.
        """
        if size.height is None or size.width is None:
            raise ValueError(f"crop_size={size} needs 'height' and 'width'.")
        missing = [
            max(crop - side, 0)
            for crop, side in zip((size.height, size.width), image.shape[1:], strict=True)
        ]
        if any(missing):
            image = np.pad(image, [(0, 0), *((pad // 2, (pad + 1) // 2) for pad in missing)])
        top, left = (
            round((image.shape[1] - size.height) / 2),
            round((image.shape[2] - size.width) / 2),
        )
        return image[:, top : top + size.height, left : left + size.width]


__all__ = ["EsvitImageProcessor"]
