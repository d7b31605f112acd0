"""Figures of regions on their images: similarity to a chosen point, colors of principal components,
neighbors.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from esvit_hf.figures.look import COLOR_MAP, COLORS, Picture, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_colors", "plot_map", "plot_neighbors"]

_PANEL_SIDE = 4.0
_NEIGHBOR_SIDE = 1.5
_NEIGHBORS_IN_A_ROW = 5
_LARGEST_PIXELS = 1000
_TITLE_LETTERS = 18


def plot_map(
    image: Image.Image,
    values: Tensor,
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    point: tuple[float, float] | None = None,
    numbered: Sequence[tuple[float, float]] = (),
) -> Picture:
    """Plot a value for each region over its image, in the coordinates of the image.

    Args:
        image: RGB.
        values: (h, w) on regions that divide the image evenly.
        label: what the values are, for the color bar.
        limits: values of the darkest and the lightest color; lowest and highest value if None.
        point: chosen point (x, y) in pixels, marked with a cross.
        numbered: points (x, y) in pixels, numbered from 1 on.

    Returns:
        The figure.

    Raises:
        ImportError: without matplotlib.
    """
    low, high = limits or (float(values.min()), float(values.max()))
    with drawing(*_panel_size(image.size, 1.1)) as picture:
        axes = picture.figure.subplots()
        _show(axes, image, pale=True)
        shown = axes.imshow(
            values.numpy(),
            extent=(0, image.width, image.height, 0),
            cmap=COLOR_MAP,
            vmin=low,
            vmax=high,
            alpha=0.75,
        )
        picture.figure.colorbar(shown, ax=axes, label=label, shrink=0.8)
        if point is not None:
            _mark(axes, point)
        for number, place in enumerate(numbered, start=1):
            axes.annotate(
                str(number),
                place,
                ha="center",
                va="center",
                color="white",
                fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.25", "facecolor": COLORS[1], "edgecolor": "white"},
            )
        _frame(axes, image)
    return picture


def plot_colors(image: Image.Image, colors: Tensor) -> Picture:
    """Plot a color for each region, beside nothing else: the image itself would tint it.

    Args:
        image: RGB, for the proportions.
        colors: (h, w, 3) in [0, 1] from `region_colors`.

    Returns:
        The figure.

    Raises:
        ImportError: without matplotlib.
    """
    with drawing(*_panel_size(image.size, 0)) as picture:
        axes = picture.figure.subplots()
        axes.imshow(colors.numpy(), extent=(0, image.width, image.height, 0))
        _frame(axes, image)
    return picture


def plot_neighbors(
    query: Image.Image,
    neighbors: Sequence[Image.Image],
    names: Sequence[str],
    cosines: Sequence[float],
) -> Picture:
    """Plot an image and its nearest images in a data set, with name and cosine similarity.

    Args:
        query: RGB.
        neighbors: RGB, from the most similar on.
        names: what stands above each neighbor, shortened if it is long.
        cosines: similarity of each neighbor.

    Returns:
        The figure.

    Raises:
        ImportError: without matplotlib.
    """
    panels = [(query, "this image")] + [
        (image, f"{_shortened(name)}\n{cosine:.3f}")
        for image, name, cosine in zip(neighbors, names, cosines, strict=True)
    ]
    columns = min(len(panels), _NEIGHBORS_IN_A_ROW)
    rows = -(-len(panels) // columns)
    with drawing(columns * _NEIGHBOR_SIDE, rows * (_NEIGHBOR_SIDE + 0.35)) as picture:
        grid = picture.figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (image, title) in zip(grid, panels, strict=False):
            _show(axes, image)
            axes.set_title(title, fontsize=8)
    return picture


def _panel_size(image_size: tuple[int, int], beside: float) -> tuple[float, float]:
    """Width and height in inches of a figure with one image of (width, height) pixels and room
    beside it.
    """
    width, height = (max(side / max(image_size), 0.3) * _PANEL_SIDE for side in image_size)
    return width + beside, height + 0.4


def _show(axes: "Axes", image: Image.Image, *, pale: bool = False) -> None:
    # Below a map the image is pale and gray, so that the colors stay what the scale says.
    shown = image.convert("L") if pale else image.copy()
    shown.thumbnail((_LARGEST_PIXELS, _LARGEST_PIXELS))
    lowest = -256 if pale else 0
    axes.imshow(
        np.asarray(shown),
        cmap="gray",
        vmin=lowest,
        vmax=255,
        extent=(0, image.width, image.height, 0),
    )


def _frame(axes: "Axes", image: Image.Image) -> None:
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))
    axes.locator_params(nbins=5)
    axes.grid(False)


def _mark(axes: "Axes", point: tuple[float, float]) -> None:
    style: dict[str, Any] = {"marker": "+", "linestyle": "none", "clip_on": False}
    # White below the color: legible on every background.
    axes.plot(*point, color="white", markersize=20, markeredgewidth=5, **style)
    axes.plot(*point, color=COLORS[1], markersize=18, markeredgewidth=2.5, **style)


def _shortened(name: str) -> str:
    return name if len(name) <= _TITLE_LETTERS else f"{name[: _TITLE_LETTERS - 1]}…"
