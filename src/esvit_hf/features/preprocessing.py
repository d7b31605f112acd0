"""Decoded images to the input of a network, by the processor that comes with it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict

from esvit_hf.models.image_processing_esvit import EsvitImageProcessor, convert_image

__all__ = ["join_images", "preprocess", "preprocess_image", "resizes_tensors"]

_STEPS = (
    "__call__",
    "preprocess",
    "_preprocess_image_like_inputs",
    "process_image",
    "convert_to_rgb",
    "_preprocess",
    "resize",
)
"""Methods of an image processor up to its resizing."""
_TENSOR_FILTERS = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


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


def preprocess_image(processor: Any, image: object, *, exact: bool = True) -> Tensor:
    """Turn one image into the input of a network.

    Processors copy an image into planes before they resize it, and those that compute with Pillow
    copy it back again. That takes longer than resizing the pixels as they were decoded, which gives
    the same numbers.

    Args:
        processor: image processor of transformers.
        image: Pillow image, or whatever else `processor` takes.
        exact: with the numbers of the processor. Otherwise PyTorch may resize in place of Pillow,
            several times as fast, to pixels that differ by rounding where both sides shrink.

    Returns:
        (1, C, H, W).

    Raises:
        ValueError: as `processor`.
    """
    settings: dict[str, Any] = {"return_tensors": "pt"}
    resized = _resize(processor, image, exact)
    if resized is not None:
        image = resized
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


def resizes_tensors(processor: Any) -> bool:
    """Say whether a processor first resizes, with torchvision: it takes pixels of any layout."""
    return _resizes_first(processor, TorchvisionBackend)


def _resizes_first(processor: Any, base: type) -> bool:
    """Whether a processor does no more than that of its base class, which resizes first."""
    own = type(processor)
    return (
        issubclass(own, base)
        and bool(processor.do_resize)
        and isinstance(processor.size, SizeDict)
        and all(getattr(own, name, None) is getattr(base, name, None) for name in _STEPS)
    )


def _resize(processor: Any, image: object, exact: bool) -> Tensor | np.ndarray | None:
    """Resize an RGB image as a processor does: (3, H, W); None if the processor has to do it."""
    if isinstance(image, Tensor):
        is_rgb = image.ndim == 3 and len(image) == 3 and image.dtype == torch.uint8
        if not (is_rgb and resizes_tensors(processor)):
            return None
        return _resize_pixels(processor, image[None])
    if not isinstance(image, Image.Image) or image.mode != "RGB" or not _is_plain(image):
        return None
    if resizes_tensors(processor):
        return _resize_pixels(processor, _with_channels_first(image))
    size = _size_by_pillow(processor, image)
    if size is None:
        return None
    if not exact and processor.resample in _TENSOR_FILTERS:
        mode = _TENSOR_FILTERS[processor.resample]
        pixels = _with_channels_first(image)
        return F.interpolate(pixels, size, mode=mode, antialias=True)[0].numpy()
    return np.moveaxis(np.array(image.resize(size[::-1], processor.resample)), -1, 0)


def _is_plain(image: Image.Image) -> bool:
    """Whether an RGB image is upright and opaque."""
    return convert_image(image) is image


def _resize_pixels(processor: Any, pixels: Tensor) -> Tensor:
    """(3, H, W) of (1, 3, H, W)."""
    resized: Tensor = processor.resize(
        image=pixels, size=processor.size, resample=processor.resample
    )
    return resized[0]


def _size_by_pillow(processor: Any, image: Image.Image) -> tuple[int, int] | None:
    """Height and width that a processor resizes an image to with Pillow; None if it does not."""
    base = EsvitImageProcessor if isinstance(processor, EsvitImageProcessor) else PilBackend
    if not _resizes_first(processor, base) or getattr(processor, "keeps_values", False):
        return None
    if not isinstance(processor.resample, int):
        return None
    size = processor.size
    if size.shortest_edge and not size.longest_edge:
        height, width = get_resize_output_image_size(
            # Its shape is all that counts.
            np.broadcast_to(np.uint8(0), (3, image.height, image.width)),
            size=size.shortest_edge,
            default_to_square=False,
            input_data_format=ChannelDimension.FIRST,
        )
        return height, width
    return (size.height, size.width) if size.height and size.width else None


def _with_channels_first(image: Image.Image) -> Tensor:
    """(1, 3, H, W), in the memory order of the decoded pixels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
