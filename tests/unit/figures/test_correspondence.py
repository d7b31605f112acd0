"""The figure of two images joined by lines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esvit_hf.figures.correspondence import plot_region_pairs


def test_lines_end_where_the_regions_are(tmp_path: Path) -> None:
    first, second = (
        Image.new("RGB", (60, 40)),
        Image.new("RGB", (10, 20), (200, 200, 200)),
    )
    starts, ends = [(10.0, 20.0), (50.0, 5.0)], [(5.0, 10.0), (2.0, 20.0)]
    picture = plot_region_pairs(first, second, starts, ends, [0.9, 0.123])
    (axes,) = picture.figure.axes
    left, right, bottom, top = axes.images[1].get_extent()
    # The second image is drawn twice as large, as high as the first.
    assert (right - left, bottom, top) == (pytest.approx(20), 40, 0)
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    np.testing.assert_allclose(lines[0], [[10, 20], [left + 10, 20]])
    np.testing.assert_allclose(lines[1], [[50, 5], [left + 4, 40]])
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["1   0.900", "2   0.123"]
    assert axes.images[0].get_array().shape == (40, 60, 3)
    picture.save(tmp_path / "lines.png")


def test_many_lines_to_one_place() -> None:
    image = Image.new("RGB", (40, 40))
    starts = [(5.0 * number, 5.0) for number in range(1, 6)]
    ends = [(9.0, 9.0)] * 4 + [(30.0, 30.0)]
    picture = plot_region_pairs(image, image, starts, ends, [1.0, 0.9, 0.8, 0.7, 0.6])
    labels = [text.get_text() for text in picture.figure.axes[0].texts]
    assert sorted(labels) == ["1", "2", "3", "4", "4 lines", "5", "5"]


def test_a_large_photograph_is_shown_small_in_its_own_pixels() -> None:
    image = Image.new("RGB", (3000, 2000))
    picture = plot_region_pairs(image, image, [(2900, 1900)], [(10, 10)], [0.5])
    (axes,) = picture.figure.axes
    assert axes.images[0].get_array().shape == (667, 1000, 3)
    assert axes.images[0].get_extent() == [0, 3000, 2000, 0]
    assert tuple(axes.lines[0].get_xydata()[0]) == (2900, 1900)


def test_the_legend_has_room_beside_wide_photographs() -> None:
    image = Image.new("RGB", (720, 405))
    points = [(10.0 * number, 10.0) for number in range(10)]
    picture = plot_region_pairs(image, image, points, points, [0.5] * 10)
    picture.figure.canvas.draw()
    (axes,) = picture.figure.axes
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= 0 and legend.y1 <= picture.figure.bbox.height
    assert axes.get_window_extent().width > 0.75 * picture.figure.bbox.width
