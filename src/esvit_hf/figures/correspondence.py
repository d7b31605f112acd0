"""The most similar regions of two images, joined by lines."""

from dataclasses import dataclass

import torch
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.figures.look import Picture, drawing
from esvit_hf.regions.correspondence import match_regions

__all__ = ["RegionPairs", "draw_correspondence", "find_correspondence"]

# Inches: the width of a page of text.
_WIDTH = 6.3
# Share of the first image's width between the images.
_GAP = 0.06
# Of the figure's width; the rest is the legend's.
_IMAGES_SHARE = 0.84
# More lines than this at one place are counted, not listed.
_NUMBERS_SHOWN = 3


@dataclass(frozen=True)
class RegionPairs:
    """Regions of a first and a second image that look alike to a network, the most similar pair
    first.

    Attributes:
        first: (K, 2) centers, x and y in pixels of the first input.
        second: (K, 2) centers in the second input.
        similarity: (K,) cosine.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor


@torch.no_grad()
def find_correspondence(
    backbone: RegionBackbone,
    first: Tensor,
    second: Tensor,
    *,
    count: int = 10,
    layer: int | None = None,
) -> RegionPairs:
    """Find the pairs of regions with the highest cosine similarity; each region of the first image
    is in one at most.

    Args:
        backbone: in evaluation mode.
        first: (1, 3, H, W) normalized image.
        second: (1, 3, H', W') normalized image.
        count: number of pairs, K; fewer if the first image has fewer regions.
        layer: index into the network's hidden states; None for the regions behind the last norm.

    Returns:
        The pairs, on the CPU.

    Raises:
        ValueError: the count is below 1, there is no such layer, or features are not finite.
    """
    if count < 1:
        raise ValueError(f"{count} pairs asked for: give at least 1")
    regions, centers = [], []
    for pixel_values in (first, second):
        features, grid = backbone.layer_regions(pixel_values, layer)
        regions.append(features)
        centers.append(_centers(grid, (pixel_values.shape[-2], pixel_values.shape[-1])))
    matches = match_regions(regions[0], regions[1])
    similarity, index = matches.similarity[0].cpu(), matches.index[0].cpu()
    if not torch.isfinite(similarity).all():
        raise ValueError("regions are not finite: check the weights")
    best = similarity.argsort(descending=True, stable=True)[:count]
    return RegionPairs(centers[0][best], centers[1][index[best]], similarity[best])


def _centers(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(N, 2) x and y of the regions' centers for an input of (H, W) pixels."""
    rows, columns = (
        (torch.arange(side) + 0.5) * extent / side for side, extent in zip(grid, size, strict=True)
    )
    return torch.cartesian_prod(rows, columns).flip(1)


def draw_correspondence(first: Tensor, second: Tensor, pairs: RegionPairs) -> Picture:
    """Draw two images side by side and a numbered line for each pair; the numbers stand beside
    their similarities.

    Args:
        first: (3, H, W) uint8.
        second: (3, H', W') uint8, drawn as high as the first.
        pairs: what to join.

    Returns:
        The picture.

    Raises:
        ImportError: without matplotlib.
    """
    height, width = first.shape[-2:]
    zoom = height / second.shape[-2]
    left = width * (1 + _GAP)
    right = left + second.shape[-1] * zoom
    starts = [(x, y) for x, y in pairs.first.tolist()]
    ends = [(left + x * zoom, y * zoom) for x, y in pairs.second.tolist()]
    with drawing(_WIDTH, _WIDTH * _IMAGES_SHARE * height / right) as picture:
        from matplotlib.patheffects import withStroke

        axes = picture.figure.subplots()
        axes.set_axis_off()
        axes.set_anchor("W")
        axes.imshow(first.permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
        axes.imshow(second.permute(1, 2, 0).numpy(), extent=(left, right, height, 0))
        colors = []
        for number, similarity in enumerate(pairs.similarity.tolist()):
            (line,) = axes.plot(
                *zip(starts[number], ends[number], strict=True),
                linestyle="-",
                path_effects=[withStroke(linewidth=3, foreground="white")],
                label=f"{number + 1}   {similarity:.3f}",
            )
            colors.append(line.get_color())
        for place in dict.fromkeys(starts + ends):
            numbers = [
                number
                for number, pair in enumerate(zip(starts, ends, strict=True))
                if place in pair
            ]
            many = len(numbers) > _NUMBERS_SHOWN
            axes.annotate(
                f"{len(numbers)} lines"
                if many
                else ", ".join(str(number + 1) for number in numbers),
                place,
                ha="center",
                va="center",
                fontsize=6,
                color="white",
                bbox={
                    "boxstyle": "round,pad=0.3,rounding_size=0.6",
                    "facecolor": colors[numbers[0]] if len(numbers) == 1 else "black",
                    "edgecolor": "white",
                },
            )
        axes.set(xlim=(0, right), ylim=(height, 0))
        axes.legend(
            title="cosine similarity", loc="center left", bbox_to_anchor=(1, 0.5), title_fontsize=8
        )
    return picture
