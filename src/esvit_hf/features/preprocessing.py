"""Decoded images to the input of a network, by the processor that comes with it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend

__all__ = ["join_images", "preprocess", "preprocess_image"]


def preprocess(processor: Any, images: Iterable[object]) -> Tensor:
    """Turn images into the input of a network, one after the other.

    Args:
        processor: image processor of transformers.
        images: Pillow images, or whatever else `processor` takes; at least one.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: as `processor`, or the images come out in different sizes.
    """
    return join_images([preprocess_image(processor, image) for image in images])


def preprocess_image(processor: Any, image: object) -> Tensor:
    """Turn one image into the input of a network.

    Processors that compute with torchvision copy an image into planes before they resize it. That
    takes longer than resizing the pixels as they were decoded, which gives the same numbers.

    Args:
        processor: image processor of transformers.
        image: Pillow image, or whatever else `processor` takes.

    Returns:
        (1, C, H, W).

    Raises:
        ValueError: as `processor`.
    """
    settings: dict[str, Any] = {"return_tensors": "pt"}
    if _resizes_first(processor) and getattr(image, "mode", None) == "RGB":
        image = processor.resize(
            image=_with_channels_first(image), size=processor.size, resample=processor.resample
        )[0]
        settings |= {"do_resize": False, "input_data_format": "channels_first"}
    pixel_values: Tensor = processor(images=[image], **settings)["pixel_values"]
    return pixel_values


def join_images(images: Sequence[Tensor]) -> Tensor:
    """Make a batch of what `preprocess_image` returned; at least one.

    Args:
        images: (1, C, H, W) each.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: the images have different sizes.
    """
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise ValueError(f"the images come out in sizes such as {sizes[0]} and {sizes[-1]}")
    return torch.cat(list(images))


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
