"""Figures of an image and its neighbors: what is shown, and where."""

import numpy as np
from PIL import Image

from esvit_hf.figures.neighbors import plot_neighbors


def test_every_neighbor_is_shown() -> None:
    query, *found = (Image.new("RGB", (30, 20), color) for color in ("red", "blue", "green"))
    names = ["an ordinary cat", "a name that is much too long"]
    panels = plot_neighbors(query, found, names, [0.75, 0.5]).figure.axes
    shown = [axes for axes in panels if axes.images]
    assert [axes.get_title() for axes in shown] == [
        "this image",
        "an ordinary cat\n0.750",
        "a name that is mu…\n0.500",
    ]
    for axes, image in zip(shown, [query, *found], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.asarray(image))


def test_many_neighbors_go_to_several_rows() -> None:
    image = Image.new("RGB", (30, 20))
    panels = plot_neighbors(image, [image] * 6, ["cat"] * 6, [1.0] * 6).figure.axes
    assert len([axes for axes in panels if axes.images]) == 7
    assert len(panels) == 10
