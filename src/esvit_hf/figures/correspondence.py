"""The most similar regions of two images, joined by lines."""

from collections.abc import Sequence

from PIL import Image

from esvit_hf.figures.look import Picture, new_picture, shrink

__all__ = ["plot_region_pairs"]

# Inches: the width of a page of text.
_WIDTH = 6.3
# Share of the first image's width between the images.
_GAP = 0.06
# Of the figure's width; the rest is the legend's.
_IMAGES_SHARE = 0.84
# Inches of the legend's height.
_LEGEND_TITLE, _LEGEND_LINE = 0.4, 0.19
# More lines than this at one place are counted, not listed.
_NUMBERS_SHOWN = 3


def plot_region_pairs(
    first: Image.Image,
    second: Image.Image,
    first_points: Sequence[Sequence[float]],
    second_points: Sequence[Sequence[float]],
    similarities: Sequence[float],
) -> Picture:
    """Plot two images side by side and a numbered line for each pair of points; the numbers stand
    beside their similarities.

    Args:
        first: RGB.
        second: RGB, as high in the picture as the first.
        first_points: x and y of each pair's point in pixels of the first image.
        second_points: x and y of each pair's point in pixels of the second image.
        similarities: cosine of each pair.

    Returns:
        The picture.

    Raises:
        ImportError: without matplotlib.
    """
    width, height = first.size
    zoom = height / second.height
    left = width * (1 + _GAP)
    right = left + second.width * zoom
    starts = [(x, y) for x, y in first_points]
    ends = [(left + x * zoom, y * zoom) for x, y in second_points]
    legend = _LEGEND_TITLE + _LEGEND_LINE * len(similarities)
    with new_picture(_WIDTH, max(legend, _WIDTH * _IMAGES_SHARE * height / right)) as picture:
        from matplotlib.patheffects import withStroke

        axes = picture.figure.subplots()
        axes.set_axis_off()
        axes.set_anchor("W")
        axes.imshow(shrink(first), extent=(0, width, height, 0))
        axes.imshow(shrink(second), extent=(left, right, height, 0))
        colors = []
        for number, similarity in enumerate(similarities):
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
