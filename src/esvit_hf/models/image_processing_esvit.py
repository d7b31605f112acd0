"""The evaluation transform of EsViT as a transformers image processor, and what it makes of images
that are not 8-bit RGB.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size
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
STORED_MODES = {(2, "LA"), (4, "RGBA"), (4, "CMYK"), (4, "RGBX")}
"""Numbers of channels, and modes of Pillow that hold them."""
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
    image = _turn_upright(image)
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


def _turn_upright(image: Image.Image) -> Image.Image:
    image.load()
    orientation = read_orientation(image)
    if orientation > 1:
        image = image.transpose(UPRIGHT[orientation])
        for key in ORIENTATION_SOURCES:
            # What is upright must not be turned again.
            image.info.pop(key, None)
    return image


def convert_channels(
    image: Image.Image | np.ndarray,
    num_channels: int,
    value_range: Sequence[float] | None = None,
) -> np.ndarray:
    """Bring an image of any number of channels to values of 0..255 that are not rounded.

    With `value_range`, this range becomes 0..255, and what lies beyond is cut. Without it, 8 bits
    stay as they are, 16 bits are divided by 257, and floating-point numbers of 0..1 are multiplied
    by 255: the scale never depends on the image. A single channel is repeated for three. Pillow
    images of other colors are converted to RGB, or to gray for one channel.

    Args:
        image: upright or to be turned by its EXIF data; an array is (H, W), (H, W, channels) or
            (channels, H, W).
        num_channels: channels that the network takes.
        value_range: smallest and largest value.

    Returns:
        (H, W, channels) float32.

    Raises:
        ValueError: another number of channels, numbers that are not finite, or such without a
            usual range and no `value_range`.
    """
    values = _read_channels(image, num_channels)
    if values.shape[2] == 1 and num_channels == 3:
        values = values.repeat(3, axis=2)
    if values.shape[2] != num_channels:
        raise ValueError(
            f"the image has {values.shape[2]} channels, and the network takes {num_channels}"
        )
    if not np.issubdtype(values.dtype, np.bool_) and (
        not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values)
    ):
        raise ValueError(f"an array of {values.dtype} holds no pixels")
    low, high = value_range or _usual_range(values)
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(scaled).all():
        raise ValueError("the pixels are not all finite numbers")
    return scaled.clip(0, 255).astype(np.float32)


def _read_channels(image: Image.Image | np.ndarray, num_channels: int) -> np.ndarray:
    """Values (H, W, channels) as they are stored."""
    if isinstance(image, Image.Image):
        image = _turn_upright(image)
        is_kept = image.mode == "F" or image.mode.startswith("I")
        # Bands that are channels of the network are neither colors nor transparency.
        if not is_kept and (num_channels, image.mode) not in STORED_MODES:
            image = convert_image(image, keep_grayscale=True)
            if num_channels == 1:
                image = image.convert("L")
        image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"an array of shape {image.shape} is no image of {num_channels} channels")
    for channels in (num_channels, 1):
        if channels == image.shape[2]:
            return image
        if channels == image.shape[0]:
            return np.moveaxis(image, 0, -1)
    return image


def _usual_range(values: np.ndarray) -> tuple[float, float]:
    if values.dtype == np.bool_:
        return 0, 1
    if values.dtype in (np.uint8, np.uint16):
        return 0, float(np.iinfo(values.dtype).max)
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.floating) and not (low < 0 or high > 1):
        return 0, 1
    raise ValueError(
        f"pixels of type {values.dtype} from {low:g} to {high:g} have no usual range: set "
        f"value_range to the smallest and the largest value"
    )


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

    A network for another number of channels, or for values that 8 bits do not hold, has its own
    `num_channels`, `image_mean` and `image_std`, and perhaps a `value_range`; then images keep
    their values, see :func:`convert_channels`.

    Args:
        num_channels: Channels of the network.
        value_range: Smallest and largest value of a pixel; mean and deviation are in units of it.
        **kwargs: Settings of transformers' image processors.
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
    num_channels = 3
    value_range: Sequence[float] | None = None

    def __init__(
        self, *, num_channels: int = 3, value_range: Sequence[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        # What is at its default stays out of the file.
        if num_channels != 3:
            self.num_channels = num_channels
        if value_range is not None:
            self.value_range = list(value_range)

    @property
    def keeps_values(self) -> bool:
        """Whether images are taken as they are stored, not as 8-bit RGB."""
        return self.num_channels != 3 or self.value_range is not None

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Bring an image to an array with channels first.

        Args:
            image: PIL image, array or tensor.
            *args: As in transformers.
            **kwargs: As in transformers.

        Returns:
            (channels, H, W), values 0..255.
        """
        if not self.keeps_values:
            values: np.ndarray = super().process_image(image, *args, **kwargs)
            return values
        stored = image if isinstance(image, Image.Image) else np.asarray(image)
        values = convert_channels(stored, self.num_channels, self.value_range)
        return np.moveaxis(values, -1, 0)

    def resize(  # type: ignore[override]
        self, image: np.ndarray, size: SizeDict, resample: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """Resize an image.

        Args:
            image: (channels, H, W).
            size: Shorter side, or height and width.
            resample: Filter of Pillow.
            **kwargs: As in transformers.

        Returns:
            (channels, height, width).

        Raises:
            ValueError: If the size is given in another way.
        """
        if not self.keeps_values:
            resized: np.ndarray = super().resize(image, size, resample, **kwargs)
            return resized
        height, width = image.shape[1:]
        if size.shortest_edge:
            height, width = get_resize_output_image_size(
                image,
                size=size.shortest_edge,
                default_to_square=False,
                input_data_format=ChannelDimension.FIRST,
            )
        elif size.height and size.width:
            height, width = size.height, size.width
        else:
            raise ValueError(f"size={size} needs 'shortest_edge', or 'height' and 'width'.")
        channels = [
            Image.fromarray(channel).resize((width, height), resample or self.resample)
            for channel in image
        ]
        return np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)

    def convert_to_rgb(
        self,
        image: Image.Image | np.ndarray,
        input_data_format: str | ChannelDimension | None = None,
    ) -> np.ndarray:
        """Bring an image to three channels.

        Args:
            image: PIL image of any mode, or an array of one, three or four channels; integers are
                brought to 8 bits by :func:`to_uint8`.
            input_data_format: Where an array has its channels; inferred if None.

        Returns:
            Array of three channels, last for PIL images and where they were for arrays.
        """
        if isinstance(image, Image.Image):
            return np.array(convert_image(image))
        if not np.issubdtype(image.dtype, np.floating):
            image = to_uint8(image)
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
