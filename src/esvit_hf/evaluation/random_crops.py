"""Features of randomly cropped and mirrored images: the augmentation of the paper's linear
probe.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.cropping import cut_crops, sample_crop
from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.extraction import compute_features

__all__ = ["AugmentedFeatures", "RandomCrops"]

CROP_SCALE = (0.08, 1.0)
FLIP_PROBABILITY = 0.5
_ONLY_RGB = "random crops are made of 8-bit RGB images alone: leave out --linear.augment"


class RandomCrops:
    """Images of a source, each cropped at random, resized (bilinear, as the paper's linear probe
    does) and mirrored with probability one half.

    A crop depends on seed, epoch and the image's index alone.

    Args:
        source: the images.
        size: (width, height) of the crops in pixels.
        seed: of all crops.
        epoch: pass over the images.
    """

    def __init__(
        self, source: ImageSource, size: tuple[int, int], *, seed: int, epoch: int
    ) -> None:
        self.source, self.size, self.seed, self.epoch = source, size, seed, epoch

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> np.ndarray | None:
        """(images,) int64 class indices, None without labels."""
        return self.source.labels

    def describe(self, index: int) -> str:
        """Name an image in messages."""
        return self.source.describe(index)

    def read(self, indices: Sequence[int]) -> list[Image.Image | BrokenImage]:
        """Fetch, decode and crop images.

        Args:
            indices: places of the images, each in [0, len).

        Returns:
            One image an index, or a `BrokenImage` where decoding failed.
        """
        read = self.source.read(indices)
        return [
            image if isinstance(image, BrokenImage) else self._crop(image, index)
            for index, image in zip(indices, read, strict=True)
        ]

    def read_stored(self, indices: Sequence[int]) -> list[Image.Image | np.ndarray | BrokenImage]:
        """Refuse images that are not RGB.

        Raises:
            ValueError: always.
        """
        raise ValueError(_ONLY_RGB)

    def _crop(self, image: Image.Image, index: int) -> Image.Image:
        generator = random.Random(f"{self.seed} {self.epoch} {index}")
        crop = sample_crop(
            generator, *image.size, scale=CROP_SCALE, flip_probability=FLIP_PROBABILITY
        )
        width, height = self.size
        pixels = torch.empty(3, height, width, dtype=torch.uint8)
        cut_crops(image, [crop], [pixels], interpolation="bilinear")
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


class AugmentedFeatures:
    """Features of new random crops of the same images at every call.

    Args:
        backbone: the network.
        source: the images.
        processor: image processor of transformers; its crop size is the crops' size, and it
            normalizes them.
        blocks: last blocks whose pooled features are concatenated; 1 takes the view feature.
        seed: of the crops.
        batch_size: images at once on each device.
        num_workers: processes that decode and crop, for each device.
        accelerator: device, processes and mixed precision.

    Raises:
        ValueError: the processor does not say to which size it brings images, or keeps other
            channels or values than those of 8-bit RGB.
    """

    def __init__(
        self,
        backbone: RegionBackbone,
        source: ImageSource,
        processor: Callable[..., Any],
        *,
        blocks: int,
        seed: int,
        batch_size: int,
        num_workers: int,
        accelerator: Accelerator,
    ) -> None:
        if getattr(processor, "keeps_values", False):
            raise ValueError(_ONLY_RGB)
        self.backbone, self.source, self.processor = backbone, source, _Normalize(processor)
        self.size = _crop_size(processor)
        self.seed = seed
        self.options: dict[str, Any] = {
            "blocks": blocks,
            "batch_size": batch_size,
            "num_workers": num_workers,
            "accelerator": accelerator,
        }

    def __call__(self, epoch: int) -> Tensor:
        """Features (N, D) of one epoch's crops; every process must call this and holds the complete
        result.

        Args:
            epoch: counted from 0.

        Returns:
            float32 on the CPU.
        """
        crops = RandomCrops(self.source, self.size, seed=self.seed, epoch=epoch)
        return compute_features(self.backbone, crops, self.processor, **self.options).values


class _Normalize:
    """An image processor that leaves the size alone."""

    def __init__(self, processor: Callable[..., Any]) -> None:
        self.processor = processor

    def __call__(self, images: list[Image.Image], return_tensors: str) -> Any:
        return self.processor(
            images=images, return_tensors=return_tensors, do_resize=False, do_center_crop=False
        )


def _crop_size(processor: Callable[..., Any]) -> tuple[int, int]:
    """(width, height) that a processor brings images to."""
    size = dict(getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {})
    sides = tuple(size.get(side) or size.get("shortest_edge") for side in ("width", "height"))
    if None in sides:
        raise ValueError(
            f"the image processor names no size of its output ({size}), which augmented crops "
            f"need: name one that has crop_size or size with --processor, or leave out "
            f"--linear.augment"
        )
    return int(sides[0]), int(sides[1])  # type: ignore[arg-type]
