"""What the regions of images tell apart: images, places, or what is at a place of an image.

The shares are those of a two-way analysis of variance, image by place; what neither mean explains
is what a region says about its own part of the image.
"""

import torch
from torch import Tensor


def _centered(regions: Tensor) -> Tensor:
    """Subtract the mean of all regions, in float32 at least."""
    regions = regions.to(torch.promote_types(regions.dtype, torch.float32))
    return regions - regions.mean(dim=(0, 1))


def _share(means: Tensor, regions: Tensor) -> Tensor:
    """Return the variance of means (..., C) as a share of that of the regions; 0 if there is
    none.
    """
    total = regions.square().sum(dim=2).mean()
    return means.square().sum(dim=1).mean() / total.clamp(min=torch.finfo(total.dtype).tiny)


@torch.no_grad()
def image_share(regions: Tensor) -> Tensor:
    """Share of the variance of regions that the mean of their image explains.

    Args:
        regions: (B, N, C), the places in the same order in every image.

    Returns:
        A scalar on the device: 1 if the regions of an image are alike, about 1 / N if they have
        nothing in common.
    """
    regions = _centered(regions)
    return _share(regions.mean(dim=1), regions)


@torch.no_grad()
def place_share(regions: Tensor) -> Tensor:
    """Share of the variance of regions that the mean of their place in the grid explains.

    Args:
        regions: (B, N, C), the places in the same order in every image.

    Returns:
        A scalar on the device: 1 if regions say where they are and nothing else, about 1 / B if
        they say nothing about it.
    """
    regions = _centered(regions)
    return _share(regions.mean(dim=0), regions)


@torch.no_grad()
def effective_dimensions(regions: Tensor) -> Tensor:
    """Count the dimensions that regions fill: the participation ratio of the eigenvalues of their
    covariance, (sum of eigenvalues)^2 / (sum of squares).

    Args:
        regions: (B, N, C).

    Returns:
        A scalar on the device: C if all eigenvalues are equal (fewer if there are fewer regions), 1
        if only one is not zero, 0 if there is no variance.
    """
    rows = _centered(regions).flatten(0, 1)
    # Rows and columns have the same eigenvalues: the smaller product gives their sums.
    if rows.shape[0] > rows.shape[1]:
        rows = rows.T
    with torch.autocast(rows.device.type, enabled=False):
        products = rows @ rows.T
    total = products.diagonal().sum()
    return total.square() / products.square().sum().clamp(min=torch.finfo(total.dtype).tiny)
