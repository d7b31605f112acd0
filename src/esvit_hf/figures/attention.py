"""The attention of one place of an image, head by head."""

import math

import torch
from torch import Tensor

from esvit_hf.figures.look import COLORS, Picture, new_picture

__all__ = ["plot_attention"]

_WIDTH = 6.3
_FEWEST_COLUMNS, _MOST_COLUMNS = 4, 6
# Inches for a title, and for the color scale with its label.
_TITLE, _SCALE = 0.25, 0.6


def plot_attention(
    image: Tensor, maps: Tensor, stride: tuple[int, int], point: tuple[float, float]
) -> Picture:
    """Plot an image with a point, and over its gray copies the attention of each head.

    All heads share one scale. Where a head cannot look, the gray image stays bare.

    Args:
        image: (3, H, W) uint8, the input of the network.
        maps: (heads, h, w) float32 probabilities of the regions, 0 where a head cannot look.
        stride: pixels from one region to the next, vertically and horizontally.
        point: (x, y) in pixels of the image.

    Returns:
        The picture.

    Raises:
        ImportError: without matplotlib.
    """
    height, width = image.shape[-2:]
    heads, rows, columns = maps.shape
    across = min(heads + 1, max(_FEWEST_COLUMNS, math.ceil(math.sqrt(heads + 1))), _MOST_COLUMNS)
    down = math.ceil((heads + 1) / across)
    side = _WIDTH / max(across, _FEWEST_COLUMNS)
    percent, gray = 100 * maps, image.float().mean(dim=0).numpy()
    bottom, right = rows * stride[0], columns * stride[1]
    with new_picture(across * side, down * (side * height / width + _TITLE) + _SCALE) as picture:
        from matplotlib.patheffects import withStroke
        from matplotlib.ticker import MaxNLocator

        grid = picture.figure.subplots(down, across, squeeze=False)
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid.flat[0].imshow(image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
        grid.flat[0].set_title("query")
        for head, axes in enumerate(grid.flat[1 : heads + 1]):
            # Pale, so that the colors of the map stay what the scale says.
            axes.imshow(gray, cmap="gray", vmin=-256, vmax=255, extent=(0, width, height, 0))
            heat = axes.imshow(
                torch.where(percent[head] > 0, percent[head], torch.nan).numpy(),
                vmin=0,
                vmax=float(percent.max()),
                alpha=0.75,
                extent=(0, right, bottom, 0),
            )
            axes.set_title(f"head {head}")
        for axes in grid.flat[: heads + 1]:
            axes.plot(
                *point,
                marker="+",
                markersize=6,
                markeredgewidth=1.2,
                color=COLORS[1],
                path_effects=[withStroke(linewidth=2.4, foreground="white")],
            )
            axes.set(xlim=(0, width), ylim=(height, 0))
        scale = picture.figure.colorbar(
            heat,
            ax=grid,
            location="bottom",
            label="attention to a region (%)",
            shrink=0.6,
            aspect=40,
        )
        scale.locator = MaxNLocator(4)
    return picture
