"""Two views of every image, and where each point of the first lies in the second."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from esvit_hf.data.color import augment, pack_color_samples
from esvit_hf.data.cropping import Crop, cut_crops, sample_crop_box
from esvit_hf.data.views import ViewSpec
from esvit_hf.features.input_format import InputFormat, apply_processor

__all__ = ["Protocol", "ViewPairs", "make_view_pairs"]

Protocol = Literal["crops", "mirror"]

# Share of the image's area in a crop: that of the paper's global views.
_CROP_SCALE = (0.4, 1.0)
# Leaves colors in 0..255 where the augmentation would normalize them.
_NO_SHIFT, _NO_SCALE = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class ViewPairs:
    """Two views of each of B images.

    Positions run from 0 to 1 over the height or the width of a view.

    Attributes:
        first: (B, 3, H, W) colors 0..255.
        second: (B, 3, H, W) colors 0..255.
        scale: (B, 2) float64 vertical and horizontal factor that takes a position from the first
            view to the second; negative where the second is mirrored.
        offset: (B, 2) float64 what is added then.
    """

    first: Tensor
    second: Tensor
    scale: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def to_second(self, positions: Tensor) -> Tensor:
        """Where points of the first view lie in the second.

        Args:
            positions: (N, 2) vertical and horizontal, float64.

        Returns:
            (B, N, 2), outside 0..1 for points that the second view does not show.
        """
        return positions * self.scale[:, None] + self.offset[:, None]


def make_view_pairs(
    images: Sequence[Image.Image],
    indices: Sequence[int],
    *,
    protocol: Protocol,
    processor: Callable[..., Any],
    input_format: InputFormat,
    seed: int,
) -> ViewPairs:
    """Make two views of each image; they depend on the seed and the index of the image alone.

    Args:
        images: B images in mode RGB.
        indices: their places in the data set.
        protocol: "mirror" for the image as the processor prepares it and its mirrored gray copy,
            color-jittered with probability 0.8 (the paper's); "crops" for two random crops, the
            second mirrored in half of the cases.
        processor: image processor of the network.
        input_format: what the processor does to size and colors.
        seed: of all draws.

    Returns:
        The pairs.

    Raises:
        ValueError: the processor cannot batch the images.
    """
    generators = [random.Random(f"{seed} {index}") for index in indices]
    if protocol == "mirror":
        return _mirror(input_format.restore(apply_processor(processor, list(images))), generators)
    return _crop(images, generators, input_format.size)


def _mirror(first: Tensor, generators: Sequence[random.Random]) -> ViewPairs:
    colors = ViewSpec(count=1, size=1, scale=(1, 1), blur_probability=0, gray_probability=1)
    parameters = pack_color_samples([colors.sample_color(generator) for generator in generators])
    second = augment(first.flip(-1), parameters, mean=_NO_SHIFT, std=_NO_SCALE)
    scale, offset = (
        torch.tensor([[1.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
        .expand(len(first), 2, 2)
        .unbind(1)
    )
    return ViewPairs(first, second, scale, offset)


def _crop(
    images: Sequence[Image.Image], generators: Sequence[random.Random], size: tuple[int, int]
) -> ViewPairs:
    views = torch.empty(2, len(images), 3, *size, dtype=torch.uint8)
    scales, offsets = [], []
    for place, (image, generator) in enumerate(zip(images, generators, strict=True)):
        first = sample_crop_box(generator, *image.size, _CROP_SCALE)
        middle = first.top + first.height / 2, first.left + first.width / 2
        second = sample_crop_box(generator, *image.size, _CROP_SCALE)
        while not (
            0 <= middle[0] - second.top < second.height
            and 0 <= middle[1] - second.left < second.width
        ):
            second = sample_crop_box(generator, *image.size, _CROP_SCALE)
        mirrored = generator.random() < 0.5
        cut_crops(image, [Crop(first), Crop(second, mirrored)], list(views[:, place]))
        scale = [first.height / second.height, first.width / second.width]
        offset = [
            (first.top - second.top) / second.height,
            (first.left - second.left) / second.width,
        ]
        if mirrored:
            scale[1], offset[1] = -scale[1], 1 - offset[1]
        scales.append(scale)
        offsets.append(offset)
    return ViewPairs(
        views[0],
        views[1],
        torch.tensor(scales, dtype=torch.float64),
        torch.tensor(offsets, dtype=torch.float64),
    )
