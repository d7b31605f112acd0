"""Decoded images to the input of a network, by the processor that comes with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend

__all__ = ["preprocess"]


def preprocess(processor: Any, images: Sequence[object]) -> Tensor:
    """Turn images into the input of a network.

    Processors that compute with torchvision copy each image into planes before they resize it. That
    takes longer than resizing the pixels as they were decoded, which gives the same numbers.

    Args:
        processor: image processor of transformers.
        images: Pillow images, or whatever else `processor` takes.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: as `processor`, for example where the images come out in different sizes.
    """
    settings: dict[str, Any] = {"return_tensors": "pt"}
    if _resizes_first(processor) and all(getattr(image, "mode", None) == "RGB" for image in images):
        images = [
            processor.resize(
                image=_with_channels_first(image), size=processor.size, resample=processor.resample
            )[0]
            for image in images
        ]
        settings |= {"do_resize": False, "input_data_format": "channels_first"}
    pixel_values: Tensor = processor(images=list(images), **settings)["pixel_values"]
    return pixel_values


def _resizes_first(processor: Any) -> bool:
    """Whether a processor does no more than that of its base class, which resizes first."""
    own = type(processor)
    return (
        issubclass(own, TorchvisionBackend)
        and bool(processor.do_resize and processor.size)
        and all(
            getattr(own, name) is getattr(TorchvisionBackend, name)
            for name in ("preprocess", "process_image", "_preprocess")
        )
    )


def _with_channels_first(image: object) -> Tensor:
    """(1, 3, H, W), in the memory order of the decoded pixels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
