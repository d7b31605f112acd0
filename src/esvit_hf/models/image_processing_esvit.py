"""The evaluation transform of EsViT as a transformers image processor."""

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


class EsvitImageProcessor(PilBackend):
    """Resize the shorter side to 256 (bicubic), crop the center 224 x 224, normalize with the
    ImageNet statistics.

    On RGB images the result equals torchvision's Resize + CenterCrop + ToTensor + Normalize bit for
    bit; torchvision itself is not needed. Images of one channel and of 16 bits become 8-bit RGB,
    transparency is composited on white. `size`, `crop_size` and the other settings of transformers'
    image processors can be changed.
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
        if isinstance(image, Image.Image) and image.mode.startswith("I"):
            # PIL clips 16-bit values at 255 instead of scaling them.
            values = np.asarray(image.convert("I"))
            image = Image.fromarray(
                ((values.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
            )
        rgb: np.ndarray = super().convert_to_rgb(image, input_data_format=input_data_format)  # type: ignore[arg-type]
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
