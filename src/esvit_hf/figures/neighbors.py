"""Images with titles: an image and those that resemble it."""

from collections.abc import Sequence

from PIL import Image

from esvit_hf.figures.look import Picture, new_picture, shrink

__all__ = ["plot_image_rows", "plot_neighbors"]

_SIDE = 1.5
_TITLE = 0.35
# Height over width of a place: taller images are made narrower.
_TALLEST = 1.0
_NEIGHBORS_IN_A_ROW = 5
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
    return plot_image_rows(
        [panels[start : start + columns] for start in range(0, len(panels), columns)]
    )


def plot_image_rows(rows: Sequence[Sequence[tuple[Image.Image, str]]]) -> Picture:
    """Plot images in rows, with a title above each.

    Args:
        rows: RGB images and titles; rows may differ in length.

    Returns:
        The figure.

    Raises:
        ImportError: without matplotlib.
    """
    columns = max(map(len, rows))
    heights = [
        _SIDE * max(min(image.height / image.width, _TALLEST) for image, _ in row) + _TITLE
        for row in rows
    ]
    with new_picture(columns * _SIDE, sum(heights)) as picture:
        grid = picture.figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for axes in grid.flat:
            axes.set_axis_off()
        for line, row in zip(grid, rows, strict=True):
            for axes, (image, title) in zip(line, row, strict=False):
                axes.imshow(shrink(image))
                axes.set_title(title, fontsize=8)
    return picture


def _shortened(name: str) -> str:
    return name if len(name) <= _TITLE_LETTERS else f"{name[: _TITLE_LETTERS - 1]}…"
