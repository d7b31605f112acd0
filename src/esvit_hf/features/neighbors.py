"""The images of a data set that a network finds most similar to a given one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.extraction import Features
from esvit_hf.features.input_format import apply_processor
from esvit_hf.features.search import nearest_neighbors

__all__ = ["Neighbor", "class_name", "nearest_images", "view_feature"]


@dataclass(frozen=True)
class Neighbor:
    """An image of a data set that resembles a given one.

    Attributes:
        index: its place in the data set.
        name: what to call it: its place, with its path if it has one.
        image: RGB.
        cosine: similarity of the view features, in [-1, 1].
        class_name: name or value of its class, None without labels.
    """

    index: int
    name: str
    image: Image.Image
    cosine: float
    class_name: str | None

    @property
    def label(self) -> str:
        """What to write beside it: its class, or its name without labels."""
        return self.class_name or self.name


@torch.no_grad()
def view_feature(
    backbone: RegionBackbone, processor: Callable[..., Any], image: Image.Image
) -> Tensor:
    """Compute the view feature of one image, as `compute_features` does for a data set.

    Args:
        backbone: in evaluation mode.
        processor: image processor of transformers.
        image: RGB.

    Returns:
        (C,) float32 on the CPU.
    """
    pixel_values = apply_processor(processor, [image]).to(backbone.model.device)
    return backbone(pixel_values).pooled[0].float().cpu()


def nearest_images(
    query: Tensor, source: ImageSource, features: Features, count: int
) -> list[Neighbor]:
    """Find the images whose view features have the highest cosine similarity with a query.

    Args:
        query: (C,) view feature.
        source: the images.
        features: their view features.
        count: number of images; all if there are fewer.

    Returns:
        Neighbors from the most similar on.

    Raises:
        ValueError: the features do not fit the query, or are not finite, or an image can no longer
            be decoded.
    """
    cosines, indices = nearest_neighbors(features.values, query[None], min(count, len(source)))
    places = indices[0].tolist()
    neighbors = []
    for place, cosine, image in zip(places, cosines[0].tolist(), source.read(places), strict=True):
        if isinstance(image, BrokenImage):
            raise ValueError(
                f"{image.name} can no longer be decoded ({image.reason}): repair it or remove it"
            )
        name, label = source.describe(place), class_name(source, place)
        neighbors.append(Neighbor(place, name, image, cosine, label))
    return neighbors


def class_name(source: ImageSource, index: int) -> str | None:
    """Name the class of an image.

    Args:
        source: the images.
        index: place of the image.

    Returns:
        Its name, or its value where the data names no classes; None without labels.
    """
    if source.classes is None:
        return None
    return source.classes.names[source.classes.numbers[index]]
