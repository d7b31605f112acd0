"""Whole images as input of a network, so that a place in the image is a place in its grid of
regions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.common.errors import one_line
from esvit_hf.features.input_format import read_input_format

__all__ = ["ImageRegions", "WholeImages", "whole_input_size"]

LARGEST_ASPECT = 4
"""Longer images are squeezed to this ratio of their sides: the number of regions stays bounded."""


@dataclass(frozen=True)
class ImageRegions:
    """Features of the regions of one image; together the regions cover it.

    Attributes:
        features: (h, w, C) float32 on the CPU.
        image_size: (height, width) of the image in pixels.
    """

    features: Tensor
    image_size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of rows and columns (h, w)."""
        return self.features.shape[0], self.features.shape[1]

    def region_at(self, point: tuple[float, float]) -> tuple[int, int]:
        """Find the region that covers a point.

        Args:
            point: (x, y) in pixels of the image: from the left, from the top.

        Returns:
            Row and column of the region.

        Raises:
            ValueError: the point lies outside the image.
        """
        (x, y), (height, width) = point, self.image_size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the point ({x:g}, {y:g}) is outside the image of {width} x {height} pixels: "
                f"choose another"
            )
        return int(y * self.grid[0] / height), int(x * self.grid[1] / width)

    def center(self, row: int, column: int) -> tuple[float, float]:
        """Give the center (x, y) of a region in pixels of the image."""
        (height, width), (rows, columns) = self.image_size, self.grid
        return (column + 0.5) * width / columns, (row + 0.5) * height / rows


def whole_input_size(
    image_size: tuple[int, int], side: int, stride: tuple[int, int]
) -> tuple[int, int]:
    """Choose the size at which a network sees a whole image.

    Args:
        image_size: (height, width) of the image in pixels.
        side: what the shorter side becomes.
        stride: (height, width) of a region in pixels of the input.

    Returns:
        (H, W), each a whole number of regions.
    """
    shorter = min(image_size)
    height, width = (
        max(1, round(min(extent * side / shorter, LARGEST_ASPECT * side) / step)) * step
        for extent, step in zip(image_size, stride, strict=True)
    )
    return height, width


class WholeImages:
    """Turns images of any size into input of a network without cropping.

    The processor of a model usually crops the center, and what lies outside has no region. Here an
    image is resized as a whole: its shorter side to the side that the processor gives, both sides
    rounded to whole regions. Regions divide the image evenly, so that pixels of the image and
    regions belong together by a plain proportion.

    Args:
        backbone: the network, in evaluation mode; it sees one gray image to measure how many pixels
            a region has.
        processor: image processor of transformers that belongs to it; it gives the side and the
            colors.

    Attributes:
        stride: (height, width) of a region in pixels of the input.

    Raises:
        ValueError: the network cannot process what the processor gives, or the processor's colors
            are unknown.
    """

    def __init__(self, backbone: RegionBackbone, processor: Callable[..., Any]):
        self.backbone = backbone
        self._format = read_input_format(processor)
        height, width = self._format.size
        self._side = min(height, width)
        _, (rows, columns) = self._run(
            torch.zeros(1, 3, height, width, device=backbone.model.device)
        )
        self.stride = (round(height / rows), round(width / columns))

    def input_size(self, image_size: tuple[int, int], *, detail: int = 1) -> tuple[int, int]:
        """Choose the size at which the network sees an image.

        Args:
            image_size: (height, width) of the image in pixels.
            detail: how many times the processor's side the shorter side becomes.

        Returns:
            (H, W), each a whole number of regions.
        """
        return whole_input_size(image_size, self._side * detail, self.stride)

    def resized(self, image: Image.Image, *, detail: int = 1) -> Tensor:
        """Resize one image to the network's input.

        Args:
            image: RGB.
            detail: as for `input_size`.

        Returns:
            (3, H, W) uint8.
        """
        height, width = self.input_size((image.height, image.width), detail=detail)
        pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def pixel_values(self, image: Image.Image, *, detail: int = 1) -> Tensor:
        """Prepare one image.

        Args:
            image: RGB.
            detail: as for `input_size`.

        Returns:
            (1, 3, H, W) normalized, on the network's device.
        """
        return self._format.normalize(
            self.resized(image, detail=detail)[None].to(self.backbone.model.device)
        )

    def regions(self, image: Image.Image, *, detail: int = 1) -> ImageRegions:
        """Compute the features of an image's regions.

        Args:
            image: RGB.
            detail: as for `input_size`.

        Returns:
            The regions, with the size of the image.

        Raises:
            ValueError: the network takes no image of this shape.
        """
        features, grid = self._run(self.pixel_values(image, detail=detail))
        return ImageRegions(features.view(*grid, -1), (image.height, image.width))

    @torch.no_grad()
    def _run(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Region features (N, C) and the grid of one image."""
        try:
            output = self.backbone(pixel_values)
        except (RuntimeError, AssertionError) as error:
            size = " x ".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(
                f"{type(self.backbone.model).__name__} cannot process {size} pixels "
                f"({one_line(error)}): choose a network that takes images of any "
                f"shape, or square images"
            ) from error
        return output.regions[0].float().cpu(), output.grid
