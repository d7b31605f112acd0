"""Where the attention of a network goes: entropy per head, and the attention of one place as a map
of the image.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.input_format import apply_processor
from esvit_hf.models.modeling_esvit_common import AttentionLayout
from esvit_hf.regions.per_image import measure_images

__all__ = [
    "AttentionEntropy",
    "QueryAttention",
    "attention_entropy",
    "measure_attention_entropy",
    "query_attention",
]


@dataclass(frozen=True)
class AttentionEntropy:
    """How widely one head spreads its attention.

    Attributes:
        layer: number of the block, from 0.
        head: number of the head in its block, from 0.
        entropy: base-2 entropy of the attention, averaged over regions and images.
        largest: the entropy if every region attended to all keys of its window alike.
    """

    layer: int
    head: int
    entropy: float
    largest: float


@dataclass(frozen=True)
class QueryAttention:
    """Attention of one region to all regions of the image.

    Attributes:
        maps: (heads, h, w) float32 probabilities; 0 where the region cannot look. A head's sum is
            at most 1: the rest went to global or class tokens and to padding.
        region: (row, column) of the region in the grid.
        stride: pixels of the input from one region to the next, vertically and horizontally.
    """

    maps: Tensor
    region: tuple[int, int]
    stride: tuple[int, int]


def attention_entropy(
    probabilities: Tensor, layout: AttentionLayout, batch: int
) -> tuple[Tensor, Tensor]:
    """Average the base-2 entropy of the attention over the regions of each image.

    Rows of global and class tokens and of padding do not count. What masks forbid has no
    probability and adds nothing.

    Args:
        probabilities: (B * windows, heads, Q, K).
        layout: which tokens rows and columns belong to.
        batch: B.

    Returns:
        (B, heads) entropies and the largest possible one, (), in bits, both float64.

    Source:
        EsViT, the analysis of attention.
    """
    rows = torch.special.entr(probabilities.double()).sum(dim=3) / math.log(2)
    rows = rows.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
    counted = (layout.queries >= layout.num_global_tokens).flatten()
    reachable = layout.allowed.sum(dim=2).expand_as(layout.queries)
    largest = reachable.flatten()[counted].double().log2().mean()
    return rows[:, :, counted.to(rows.device)].mean(dim=2), largest


def measure_attention_entropy(
    backbone: RegionBackbone,
    source: ImageSource,
    processor: Callable[..., Any],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> list[AttentionEntropy]:
    """Measure the entropy of every head's attention.

    The numbers do not depend on the number of processes.

    Args:
        backbone: moved to the accelerator's device; used in evaluation mode and given back in the
            mode it came in.
        source: the images.
        processor: image processor of transformers.
        batch_size: images a process sees at once.
        num_workers: worker processes for each process.
        accelerator: device, processes and mixed precision; by default what the environment says.

    Returns:
        One record for every head of every block.

    Raises:
        ValueError: the network reports no attention that is understood, or an image cannot be
            decoded.

    Source:
        EsViT, the analysis of attention.
    """
    accelerator = accelerator or Accelerator()

    def measure(pixel_values: Tensor) -> list[list[_Block]]:
        with accelerator.autocast():
            maps = backbone.attention_maps(pixel_values.to(accelerator.device, non_blocking=True))
        blocks = []
        for probabilities, layout in maps:
            entropies, largest = attention_entropy(probabilities, layout, len(pixel_values))
            blocks.append([_Block(heads, float(largest)) for heads in entropies.tolist()])
        return [list(image) for image in zip(*blocks, strict=True)]

    was_training = backbone.training
    backbone.to(accelerator.device).eval()
    try:
        images = measure_images(
            source,
            functools.partial(_prepare, processor),
            measure,
            description="attention",
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
    finally:
        backbone.train(was_training)
    records = []
    for layer, blocks in enumerate(zip(*images, strict=True)):
        largest = math.fsum(block.largest for block in blocks) / len(blocks)
        for head, entropies in enumerate(zip(*(block.entropies for block in blocks), strict=True)):
            records.append(
                AttentionEntropy(layer, head, math.fsum(entropies) / len(entropies), largest)
            )
    return records


@torch.no_grad()
def query_attention(
    backbone: RegionBackbone, pixel_values: Tensor, point: tuple[float, float], layer: int = -1
) -> QueryAttention:
    """Attention of the region at a point of an image, with windows, shifts and padding undone.

    Args:
        backbone: in evaluation mode.
        pixel_values: (1, 3, H, W) normalized image.
        point: (x, y) in pixels of `pixel_values`.
        layer: number of the block; -1 for the last.

    Returns:
        A map for each head.

    Raises:
        ValueError: there are several images, the point lies outside, there is no such block, or the
            network reports no attention that is understood.
    """
    if len(pixel_values) != 1:
        raise ValueError(f"pixel_values holds {len(pixel_values)} images: give one, (1, 3, H, W)")
    height, width = pixel_values.shape[-2:]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"the point ({x:g}, {y:g}) lies outside the {width} x {height} pixels of the input: "
            f"choose x below {width} and y below {height}"
        )
    maps = backbone.attention_maps(pixel_values)
    if not -len(maps) <= layer < len(maps):
        raise ValueError(
            f"block {layer} asked for, {type(backbone.model).__name__} has {len(maps)} blocks with "
            f"attention: choose 0 to {len(maps) - 1}, or count from the end with -1"
        )
    probabilities, layout = maps[layer]
    rows, columns = layout.grid
    # Pixels beyond the last whole patch belong to no region; the nearest stands for them.
    region = min(int(y / layout.stride[0]), rows - 1), min(int(x / layout.stride[1]), columns - 1)
    token = layout.num_global_tokens + region[0] * columns + region[1]
    ((window, row),) = (layout.queries == token).nonzero().tolist()
    attention = probabilities[window, :, row].float().cpu()
    keys, allowed = (
        layout.keys[window],
        layout.allowed.expand(-1, layout.queries.shape[1], -1)[window, row],
    )
    # What a mask forbids keeps a trace of probability where the mask is not infinite.
    shown = allowed & (keys >= 0)
    tokens = torch.zeros(len(attention), layout.num_global_tokens + rows * columns)
    tokens[:, keys[shown]] = attention[:, shown]
    maps_of_heads = tokens[:, layout.num_global_tokens :].unflatten(1, layout.grid)
    return QueryAttention(maps_of_heads, region, layout.stride)


class _Block(NamedTuple):
    """Entropies of one block's heads on one image."""

    entropies: list[float]
    largest: float


def _prepare(
    processor: Callable[..., Any], images: list[Image.Image], indices: list[int]
) -> Tensor:
    return apply_processor(processor, images)
