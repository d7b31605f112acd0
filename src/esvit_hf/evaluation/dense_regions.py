"""Images with masks as regions of a network: features, and the classes of their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.evaluation.masks import MaskSource
from esvit_hf.features.input_format import InputFormat
from esvit_hf.regions.correspondence import resample_regions
from esvit_hf.regions.whole_images import whole_input_size

__all__ = [
    "VOID",
    "MaskedImage",
    "RegionMaps",
    "class_shares",
    "prepare_masked_images",
    "upsampled_classes",
]

VOID = -1
"""Class of pixels that do not count."""

_SCORES_AT_ONCE = 2**25


@dataclass(frozen=True)
class MaskedImage:
    """One image, ready for a network, and its mask.

    Attributes:
        index: place in its source.
        pixels: (3, H, W) uint8, the whole image in the size that the network sees.
        classes: (H', W') int64 class of each pixel of the image as it is stored, or `VOID`.
    """

    index: int
    pixels: Tensor
    classes: Tensor


def prepare_masked_images(
    images: list[Image.Image],
    indices: list[int],
    *,
    masks: MaskSource,
    void: Sequence[int],
    side: int,
    stride: tuple[int, int],
) -> tuple[MaskedImage, ...]:
    """Resize images and read their masks.

    Args:
        images: RGB.
        indices: their places in their source.
        masks: of all images.
        void: values of pixels that do not count.
        side: what the shorter side of an image becomes.
        stride: (height, width) of a region in pixels of the input.

    Returns:
        One an image.

    Raises:
        ValueError: a mask has another size than its image.
    """
    prepared = []
    for image, index in zip(images, indices, strict=True):
        mask = masks.read(index)
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"{masks.describe(index)} has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image.width} x {image.height}: store both in one size"
            )
        height, width = whole_input_size((image.height, image.width), side, stride)
        pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        mask[np.isin(mask, np.asarray(void, dtype=np.int64))] = VOID
        prepared.append(
            MaskedImage(index, torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask))
        )
    return tuple(prepared)


@dataclass(frozen=True)
class RegionMaps:
    """Computes maps of region features.

    Attributes:
        backbone: in evaluation mode on the accelerator's device.
        input_format: colors of its input.
        layers: indices into the network's hidden states; None for the regions behind its last norm.
        accelerator: device and mixed precision.
    """

    backbone: RegionBackbone
    input_format: InputFormat
    layers: Sequence[int] | None
    accelerator: Accelerator

    def compute(self, images: Sequence[MaskedImage]) -> list[Tensor]:
        """Compute the regions of images, those of one size together.

        Args:
            images: any number.

        Returns:
            (h, w, D) float32 of each image, on the accelerator's device. Features of several layers
            lie side by side, each of unit length, so that each counts alike.
        """
        maps: list[Tensor] = []
        for _, group in groupby(images, key=lambda image: image.pixels.shape):
            pixels = torch.stack([image.pixels for image in group])
            maps += self._compute(
                self.input_format.normalize(pixels.to(self.accelerator.device, non_blocking=True))
            )
        return maps

    def _compute(self, pixel_values: Tensor) -> list[Tensor]:
        layers = [None] if self.layers is None else self.layers
        with self.accelerator.autocast():
            found = [self.backbone.layer_regions(pixel_values, layer) for layer in layers]
        finest = max((grid for _, grid in found), key=lambda grid: grid[0] * grid[1])
        parts = [resample_regions(regions, grid, finest).float() for regions, grid in found]
        if len(parts) > 1:
            parts = [F.normalize(part, dim=2) for part in parts]
        return list(torch.cat(parts, dim=2).unflatten(1, finest))


def class_shares(classes: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Count the classes of the pixels of every region.

    Args:
        classes: (H, W) int64 class of each pixel, or `VOID`.
        grid: (h, w) of the regions, which divide the image evenly.
        count: number of classes C.

    Returns:
        (h * w, C) float32 share of each class among all pixels of a region; what is missing to 1 is
        void. Each pixel counts in the region that its center lies in, one region smaller than a
        pixel takes the pixel that its center lies in.
    """
    height, width = classes.shape
    # A mask that is coarser than the grid is enlarged, so that every region has a pixel.
    factors = [-(-cells // side) for cells, side in zip(grid, (height, width), strict=True)]
    if max(factors) > 1:
        classes = classes.repeat_interleave(factors[0], 0).repeat_interleave(factors[1], 1)
        height, width = classes.shape
    rows, columns = (
        ((torch.arange(side, dtype=torch.float64) + 0.5) * cells / side).long()
        for side, cells in zip((height, width), grid, strict=True)
    )
    cells = rows[:, None] * grid[1] + columns
    counted = classes != VOID
    places = cells[counted] * count + classes[counted]
    regions = grid[0] * grid[1]
    shares = torch.bincount(places, minlength=regions * count).view(regions, count)
    pixels = torch.bincount(cells.flatten(), minlength=regions)
    return shares.float() / pixels[:, None]


def upsampled_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample scores bilinearly and take the best class of each pixel, in bounded memory.

    Args:
        scores: (h, w, C).
        size: (H, W) of the mask.

    Returns:
        (H, W) int64 classes, on the CPU.
    """
    rows, columns = (
        _bilinear_weights(cells, side, scores.device)
        for cells, side in zip(scores.shape[:2], size, strict=True)
    )
    wide = torch.einsum("xw,hwc->hxc", columns, scores.float())
    block = max(1, _SCORES_AT_ONCE // (size[1] * scores.shape[2]))
    return torch.cat(
        [torch.einsum("yh,hxc->yxc", part, wide).argmax(dim=2).cpu() for part in rows.split(block)]
    )


def _bilinear_weights(cells: int, side: int, device: torch.device) -> Tensor:
    """(side, cells): how much of each cell a pixel takes."""
    ones = torch.eye(cells, device=device)[None]
    return F.interpolate(ones, side, mode="linear", align_corners=False)[0].T
