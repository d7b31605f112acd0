"""What regions show: the principal components of their features as colors, and which ones resemble
a chosen one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_hf.regions.whole_images import ImageRegions

__all__ = ["region_colors", "similarity_map"]

# Of normalized features in double precision; less is rounding.
_SMALLEST_SPAN = 1e-9


def region_colors(images: Sequence[ImageRegions]) -> list[Tensor]:
    """Show the first three principal components of the regions' normalized features as red, green
    and blue.

    All images share the components and their scale: regions of one color resemble each other,
    within and across images. Each component is stretched to [0, 1]; one that does not exist or does
    not vary is 0.5.

    Args:
        images: at least one image; all features of one width.

    Returns:
        (h, w, 3) in [0, 1] for each image.
    """
    rows = F.normalize(
        torch.cat([image.features.flatten(0, 1) for image in images]).double(), dim=1
    )
    centered = rows - rows.mean(dim=0)
    projected = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:3].T
    low, span = projected.amin(dim=0), projected.amax(dim=0) - projected.amin(dim=0)
    colors = torch.full((len(rows), 3), 0.5)
    for component in (span > _SMALLEST_SPAN).nonzero()[:, 0].tolist():
        colors[:, component] = (
            (projected[:, component] - low[component]) / span[component]
        ).float()
    parts = colors.split([image.grid[0] * image.grid[1] for image in images])
    return [part.view(*image.grid, 3) for part, image in zip(parts, images, strict=True)]


def similarity_map(query: ImageRegions, point: tuple[float, float], image: ImageRegions) -> Tensor:
    """Compare the region at a point with every region of an image.

    Args:
        query: image with the point.
        point: (x, y) in pixels of `query`.
        image: image to compare with, the same or another one.

    Returns:
        (h, w) cosine similarities in [-1, 1] on the grid of `image`, whose regions divide it
        evenly.

    Raises:
        ValueError: the point lies outside its image.
    """
    row, column = query.region_at(point)
    return F.cosine_similarity(
        image.features, query.features[row, column].expand_as(image.features), dim=2
    )
