"""The figure of two images joined by lines."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esvit_hf.figures.correspondence import plot_region_pairs


def test_lines_end_where_the_regions_are(tmp_path: Path) -> None:
    first, second = (
        torch.zeros(3, 40, 60, dtype=torch.uint8),
        torch.full((3, 20, 10), 200, dtype=torch.uint8),
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
    picture.save(tmp_path / "lines.png")


def test_many_lines_to_one_place() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    starts = [(5.0 * number, 5.0) for number in range(1, 6)]
    ends = [(9.0, 9.0)] * 4 + [(30.0, 30.0)]
    picture = plot_region_pairs(image, image, starts, ends, [1.0, 0.9, 0.8, 0.7, 0.6])
    labels = [text.get_text() for text in picture.figure.axes[0].texts]
    assert sorted(labels) == ["1", "2", "3", "4", "4 lines", "5", "5"]
