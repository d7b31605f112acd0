"""An image and those that resemble it."""

from collections.abc import Sequence

from PIL import Image

from esvit_hf.figures.look import Picture, new_picture

__all__ = ["plot_neighbors"]

_NEIGHBOR_SIDE = 1.5
_NEIGHBORS_IN_A_ROW = 5
_LARGEST_SIDE = 1000
_TITLE_LETTERS = 18


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
    with new_picture(columns * _NEIGHBOR_SIDE, rows * (_NEIGHBOR_SIDE + 0.35)) as picture:
        grid = picture.figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (image, title) in zip(grid, panels, strict=False):
            axes.imshow(_small(image))
            axes.set_title(title, fontsize=8)
    return picture


def _small(image: Image.Image) -> Image.Image:
    shown = image.copy()
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return shown


def _shortened(name: str) -> str:
    return name if len(name) <= _TITLE_LETTERS else f"{name[: _TITLE_LETTERS - 1]}…"
