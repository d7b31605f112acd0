"""The attention of one place of an image, head by head."""

import math

import torch
from torch import Tensor

from .attention import QueryAttention
from .figures import COLOURS, Picture, drawing

__all__ = ["draw_attention"]

_WIDTH = 6.3
_MOST_COLUMNS = 6


def draw_attention(image: Tensor, attention: QueryAttention, point: tuple[float, float]) -> Picture:
    """Draw an image with a point, and over its grey copies the attention of each head.

    All heads share one scale. Where a head cannot look, the grey image stays bare.

    Args:
        image: (3, H, W) uint8, the input of the network.
        attention: of the region at the point.
        point: (x, y) in pixels of the image.

    Returns:
        The picture.

    Raises:
        ImportError: without matplotlib.
    """
    height, width = image.shape[-2:]
    heads, rows, columns = attention.maps.shape
    across = min(math.ceil(math.sqrt(heads + 1)), _MOST_COLUMNS)
    down = math.ceil((heads + 1) / across)
    side = _WIDTH / across
    grey = image.float().mean(dim=0)
    bottom, right = rows * attention.stride[0], columns * attention.stride[1]
    with drawing(_WIDTH, down * (side * height / width + 0.2) + 0.6) as picture:
        from matplotlib.patheffects import withStroke

        casing = [withStroke(linewidth=3, foreground="white")]
        grid = picture.figure.subplots(down, across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        grid.flat[0].imshow(image.permute(1, 2, 0), extent=(0, width, height, 0))
        grid.flat[0].set_title("query")
        for head, axes in enumerate(grid.flat[1 : heads + 1]):
            axes.imshow(grey, cmap="gray", vmin=-128, vmax=383, extent=(0, width, height, 0))
            shown = attention.maps[head]
            heat = axes.imshow(
                torch.where(shown > 0, shown, torch.nan),
                vmin=0,
                vmax=float(attention.maps.max()),
                alpha=0.75,
                extent=(0, right, bottom, 0),
            )
            axes.set_title(f"head {head}")
        for axes in grid.flat[: heads + 1]:
            axes.plot(*point, marker="+", markersize=9, markeredgewidth=1.5, color=COLOURS[1], path_effects=casing)
            axes.set(xlim=(0, width), ylim=(height, 0))
        picture.figure.colorbar(
            heat, ax=grid, location="bottom", label="attention", shrink=0.5, aspect=40, fraction=0.05
        )
    return picture
