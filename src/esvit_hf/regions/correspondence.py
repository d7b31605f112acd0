"""How well regions of one view of an image find their places in another view."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.input_format import read_input_format
from esvit_hf.regions.per_image import measure_images
from esvit_hf.regions.view_pairs import Protocol, ViewPairs, make_view_pairs

__all__ = [
    "CorrespondenceResult",
    "Matches",
    "RegionPairs",
    "Tally",
    "find_matches",
    "find_region_pairs",
    "measure_correspondence",
    "resample_regions",
    "score_matches",
]

# The networks compared have 7 x 7 regions at the paper's input size, or more.
_EQUAL_GRID = 7
_MOST_SIMILAR = 10


@dataclass(frozen=True)
class CorrespondenceResult:
    """Where the most similar regions of other views lie.

    Attributes:
        protocol: "crops" or "mirror".
        layer: index of the hidden state, None for the last regions.
        grid: (h, w) of the regions that were matched.
        images: number of images.
        matches: number of matches that were scored.
        accuracy: share of the matches in exactly the true cell.
        accuracy_within_one: share of the matches in the true cell or one of the 8 around it.
        error: mean distance from the center of the matched cell to the true place, in pixels of the
            network's input.
        chance_accuracy: expected share for cells drawn uniformly.
        chance_accuracy_within_one: the same, with the 8 cells around.
        chance_error: expected distance for cells drawn uniformly, in pixels.
        smallest_error: the error if every match was the cell whose center is closest to the true
            place, in pixels.
    """

    protocol: Protocol
    layer: int | None
    grid: tuple[int, int]
    images: int
    matches: int
    accuracy: float
    accuracy_within_one: float
    error: float
    chance_accuracy: float
    chance_accuracy_within_one: float
    chance_error: float
    smallest_error: float


@dataclass(frozen=True)
class Matches:
    """The most similar region of the second view for every region of the first.

    Attributes:
        index: (B, N) int64 region of the second view.
        similarity: (B, N) float32 cosine.
    """

    index: Tensor
    similarity: Tensor


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


def find_matches(first: Tensor, second: Tensor) -> Matches:
    """Find the region of the second view with the highest cosine similarity, for every region of
    the first.

    Args:
        first: (B, N, C) regions.
        second: (B, M, C) regions.

    Returns:
        The matches.

    Source:
        EsViT, the matching of regions in L_R and in the analysis of correspondences.
    """
    first, second = (F.normalize(regions.float(), dim=-1) for regions in (first, second))
    similarity, index = (first @ second.transpose(1, 2)).max(dim=2)
    return Matches(index, similarity)


@torch.no_grad()
def find_region_pairs(
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
        raise ValueError(f"count is {count}: give 1 or more pairs")
    regions, centers = [], []
    for pixel_values in (first, second):
        features, grid = backbone.layer_regions(pixel_values, layer)
        regions.append(features)
        centers.append(_centers(grid, (pixel_values.shape[-2], pixel_values.shape[-1])))
    matches = find_matches(regions[0], regions[1])
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


def resample_regions(regions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resample a grid of features (bilinear, antialiased), so that networks of different stride
    compare like for like.

    Args:
        regions: (B, N, C), row-major.
        grid: (h, w) with h * w = N.
        new_grid: (h', w').

    Returns:
        (B, h' * w', C); unchanged for equal grids.
    """
    if grid == new_grid:
        return regions
    maps = regions.float().transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps, new_grid, mode="bilinear", antialias=True, align_corners=False)
    return maps.flatten(2).transpose(1, 2)


class Tally(NamedTuple):
    """Scores of one image, summed over its matches.

    Attributes:
        grid: (h, w) of the regions.
        matches: number of matches that were scored.
        sums: of what `CorrespondenceResult` lists from `accuracy` on, in its order.
    """

    grid: tuple[int, int]
    matches: int
    sums: list[float]


def score_matches(
    matches: Matches, pairs: ViewPairs, grid: tuple[int, int], *, most_similar: int | None = None
) -> list[Tally]:
    """Compare matches with the places that are known.

    Args:
        matches: between the regions of the first and those of the second views, both on `grid`.
        pairs: the views.
        grid: (h, w).
        most_similar: score the most similar pairs of an image, this many of those that the second
            view shows; None for all of these.

    Returns:
        One tally an image.

    Raises:
        ValueError: similarities are not finite.
    """
    cells, view_size = torch.tensor(grid), torch.tensor(pairs.first.shape[-2:])
    corners = torch.cartesian_prod(*(torch.arange(side) for side in grid))
    centers = (corners + 0.5) / cells.double()
    all_places = pairs.to_second(centers)
    scored = ((all_places >= 0) & (all_places < 1)).all(dim=2)
    similarity, all_matched = matches.similarity.cpu(), matches.index.cpu()
    if not torch.isfinite(similarity).all():
        raise ValueError(
            "regions are not finite: check the weights, and try mixed precision 'no' or 'bf16'"
        )
    if most_similar is not None:
        visible = similarity.where(scored, -torch.inf)
        best = visible.topk(min(most_similar, visible.shape[1]), dim=1).indices
        scored &= torch.zeros_like(scored).scatter(1, best, True)

    tallies = []
    for image, chosen in enumerate(scored):
        places, matched = all_places[image, chosen], all_matched[image, chosen, None]
        true_cells = (places * cells).floor().long()
        # (K, M): from the true place of every scored region of the first view to every cell of the
        # second.
        distance = ((centers - places[:, None]) * view_size).square().sum(dim=2).sqrt()
        away = (corners - true_cells[:, None]).abs().amax(dim=2)
        matched_distance, matched_away = distance.gather(1, matched), away.gather(1, matched)
        columns = [
            matched_away == 0,
            matched_away <= 1,
            matched_distance,
            (away == 0).double().mean(dim=1),
            (away <= 1).double().mean(dim=1),
            distance.mean(dim=1),
            distance.amin(dim=1),
        ]
        tallies.append(Tally(grid, len(places), [float(column.sum()) for column in columns]))
    return tallies


def measure_correspondence(
    backbone: RegionBackbone,
    source: ImageSource,
    processor: Callable[..., Any],
    *,
    protocol: Protocol = "crops",
    layer: int | None = None,
    grid: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> CorrespondenceResult:
    """Measure how often the most similar region of another view is the same place of the image.

    The protocol "mirror" is the paper's: the second view is the mirrored gray copy of the first,
    color-jittered with probability 0.8, and of each image the 10 most similar pairs are scored. In
    "crops" the views are two random crops of known geometry, the second mirrored in half of the
    cases, and every region of the first counts whose center the second view shows.

    The numbers do not depend on the number of processes.

    Args:
        backbone: moved to the accelerator's device; used in evaluation mode and given back in the
            mode it came in.
        source: the images.
        processor: image processor of transformers. "mirror" starts from its output; "crops" takes
            its size and colors and cuts the crops out of the whole image.
        protocol: "crops" or "mirror".
        layer: index into the network's hidden states (see `RegionBackbone.layer_regions`); None for
            the regions behind the last norm.
        grid: side of the grid to which the regions are resampled; if None, 7 for "crops" and the
            network's own grid for "mirror".
        seed: of the views; those of an image depend on the seed and its index alone.
        batch_size: images a process sees at once.
        num_workers: worker processes for each process.
        accelerator: device, processes and mixed precision; by default what the environment says.

    Returns:
        The shares and distances.

    Raises:
        ValueError: a setting, the processor, a layer or an image does not work; the message names
            the remedy.

    Source:
        EsViT, the analysis of correspondences ("mirror").
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol is {protocol!r}: choose one of {', '.join(get_args(Protocol))}")
    if grid is not None and grid < 1:
        raise ValueError(f"grid is {grid}: give at least 1")
    if grid is None and protocol == "crops":
        grid = _EQUAL_GRID
    accelerator = accelerator or Accelerator()
    input_format = read_input_format(processor)
    prepare = functools.partial(
        make_view_pairs,
        protocol=protocol,
        processor=processor,
        input_format=input_format,
        seed=seed,
    )

    def measure(pairs: ViewPairs) -> list[Tally]:
        maps = []
        for view in (pairs.first, pairs.second):
            pixel_values = input_format.normalize(view.to(accelerator.device, non_blocking=True))
            with accelerator.autocast():
                maps.append(backbone.layer_regions(pixel_values, layer))
        own_grid = maps[0][1]
        new_grid = own_grid if grid is None else (grid, grid)
        first, second = (resample_regions(regions, own_grid, new_grid) for regions, _ in maps)
        most_similar = _MOST_SIMILAR if protocol == "mirror" else None
        return score_matches(
            find_matches(first, second), pairs, new_grid, most_similar=most_similar
        )

    was_training = backbone.training
    backbone.to(accelerator.device).eval()
    try:
        tallies = measure_images(
            source,
            prepare,
            measure,
            description="correspondence",
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
    finally:
        backbone.train(was_training)
    matches = sum(tally.matches for tally in tallies)
    means = [
        math.fsum(column) / matches
        for column in zip(*(tally.sums for tally in tallies), strict=True)
    ]
    return CorrespondenceResult(protocol, layer, tallies[0].grid, len(tallies), matches, *means)
