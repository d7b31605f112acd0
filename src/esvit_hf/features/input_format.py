"""What an image processor does to size, colors and places, measured on images made for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from esvit_hf.common.errors import one_line
from esvit_hf.features.preprocessing import preprocess

__all__ = ["InputFormat", "InputFrame", "apply_processor", "read_input_format", "read_input_frame"]

_PROBE_SIDE = 256
# Black gives the offset, each primary color one column of the matrix.
_PROBE_COLORS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


@dataclass(frozen=True)
class InputFormat:
    """Size and colors of a network's input.

    Attributes:
        size: (H, W) that a square image becomes.
        matrix: (3, 3) float64, from red, green and blue in 0..255 to the channels of the input.
        offset: (3,) float64, the input of black.
    """

    size: tuple[int, int]
    matrix: Tensor
    offset: Tensor

    def normalize(self, pixels: Tensor) -> Tensor:
        """Colors to input.

        Args:
            pixels: (B, 3, H, W), values 0..255, any type.

        Returns:
            (B, 3, H, W) float32 as the processor would make it.
        """
        matrix, offset = (tensor.float().to(pixels.device) for tensor in (self.matrix, self.offset))
        return torch.einsum("dc,bchw->bdhw", matrix, pixels.float()) + offset[:, None, None]

    def restore(self, pixel_values: Tensor) -> Tensor:
        """Input to colors.

        Args:
            pixel_values: (B, 3, H, W) output of the processor.

        Returns:
            (B, 3, H, W) uint8.
        """
        centered = pixel_values.double().cpu() - self.offset[:, None, None]
        colors = torch.einsum("cd,bdhw->bchw", torch.linalg.inv(self.matrix), centered)
        return colors.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class InputFrame:
    """Where the input of a network lies in an image: image = offset + scale * input, in pixels.

    Attributes:
        offset: (x, y) of the input's upper left corner in the image.
        scale: (x, y) pixels of the image in one pixel of the input.
        size: (width, height) of the input.
    """

    offset: tuple[float, float]
    scale: tuple[float, float]
    size: tuple[int, int]

    def to_input(self, point: tuple[float, float]) -> tuple[float, float] | None:
        """Place (x, y) in the input of a point of the image; None if the processor cut it off."""
        x, y = (
            (place - start) / step
            for place, start, step in zip(point, self.offset, self.scale, strict=True)
        )
        return (x, y) if 0 <= x < self.size[0] and 0 <= y < self.size[1] else None

    def to_image(self, point: Sequence[float]) -> list[float]:
        """Place [x, y] in the image of a point of the input, to a tenth of a pixel."""
        places = zip(point, self.offset, self.scale, strict=True)
        return [round(start + step * place, 1) for place, start, step in places]


def apply_processor(processor: Callable[..., Any], images: list[Image.Image]) -> Tensor:
    """Turn images into the input of a network.

    Args:
        processor: image processor of transformers.
        images: in mode RGB.

    Returns:
        (B, 3, H, W).

    Raises:
        ValueError: the processor is not for 8-bit RGB images, or gives the images different sizes,
            or something else than three channels.
    """
    if getattr(processor, "keeps_values", False):
        raise ValueError(
            f"the network takes images of {getattr(processor, 'num_channels', 3)} channels with "
            f"their own range of values, and this works on 8-bit RGB images alone: use `esvit "
            f"features`, or `esvit evaluate` with the tasks knn, linear, logistic and few_shot"
        )
    try:
        pixel_values = preprocess(processor, images)
    except ValueError as error:
        raise ValueError(
            f"the image processor cannot batch the images ({one_line(error)}): use one that crops "
            f"or resizes to a fixed size"
        ) from error
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(
            f"the image processor makes pixel_values of shape {tuple(pixel_values.shape)}, not "
            f"(images, 3, H, W): use the processor of a network for color images"
        )
    return pixel_values


def read_input_format(processor: Callable[..., Any]) -> InputFormat:
    """Measure size and colors of a processor's output on images of one color.

    Args:
        processor: image processor of transformers.

    Returns:
        The format.

    Raises:
        ValueError: the output does not keep three colors apart.
    """
    images = [Image.new("RGB", (_PROBE_SIDE, _PROBE_SIDE), color) for color in _PROBE_COLORS]
    probes = apply_processor(processor, images).double()
    height, width = probes.shape[-2:]
    # At the center, because a processor may pad.
    black, *primaries = probes[:, :, height // 2, width // 2]
    matrix = torch.stack([primary - black for primary in primaries], dim=1) / 255
    if not torch.isfinite(matrix).all() or torch.linalg.matrix_rank(matrix) < 3:
        raise ValueError(
            "the image processor does not keep red, green and blue apart: use one that only scales "
            "and shifts colors"
        )
    return InputFormat((height, width), matrix, black)


def read_input_frame(processor: Callable[..., Any], size: tuple[int, int]) -> InputFrame:
    """Measure which part of an image a processor keeps, on an image whose colors are its
    coordinates.

    Args:
        processor: image processor of transformers.
        size: (width, height) of the image in pixels.

    Returns:
        The frame, up to a fraction of a pixel.

    Raises:
        ValueError: the processor does more than to resize and crop, or mixes colors (see
            `read_input_format`), or the image is one pixel wide or high.
    """
    width, height = size
    if min(size) < 2:
        raise ValueError(
            f"an image has {width} x {height} pixels, which is too small to tell places apart: "
            f"give one of at least 2 x 2"
        )
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    ramps = np.rint(np.stack([x, y, np.zeros_like(x)], axis=2) * 255).astype(np.uint8)
    input_format = read_input_format(processor)
    pixel_values = apply_processor(processor, [Image.fromarray(ramps)])
    colors = input_format.restore(pixel_values)[0].double() / 255
    input_height, input_width = colors.shape[-2:]
    offsets, scales = [], []
    for values, extent in ((colors[0].mean(dim=0), width), (colors[1].mean(dim=1), height)):
        place = torch.arange(len(values), dtype=torch.float64) + 0.5
        slope, start = np.polyfit(place.numpy(), values.numpy() * extent, 1)
        if slope <= 0:
            raise ValueError(
                "the image processor turns or mirrors images: use one that only resizes and crops"
            )
        offsets.append(float(start))
        scales.append(float(slope))
    return InputFrame((offsets[0], offsets[1]), (scales[0], scales[1]), (input_width, input_height))
