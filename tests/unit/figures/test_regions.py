"""Figures of regions and neighbors: what is shown, and where."""

import numpy as np
import torch
from matplotlib.colorbar import Colorbar
from PIL import Image

from esvit_hf.figures.regions import plot_colors, plot_map, plot_neighbors


def test_the_map_lies_on_the_image() -> None:
    image = Image.new("RGB", (60, 40), "red")
    values = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.1, 0.3]])
    numbered = [(50.0, 10.0), (30.0, 10.0)]
    figure = plot_map(
        image, values, label="cosine", limits=(-1, 1), point=(12, 7), numbered=numbered
    ).figure
    axes, bar = figure.axes
    below, above = axes.images
    assert below.get_extent() == above.get_extent() == [0, 60, 40, 0]
    assert below.get_array().ndim == 2
    np.testing.assert_allclose(above.get_array(), values)
    assert above.get_clim() == (-1, 1)
    assert bar.get_ylabel() == "cosine"
    assert isinstance(above.colorbar, Colorbar)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 60), (40, 0))
    assert {tuple(line.get_xydata()[0]) for line in axes.lines} == {(12, 7)}
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("1", (50, 10)), ("2", (30, 10))]
    own_limits = plot_map(image, values, label="").figure.axes[0].images[1].get_clim()
    assert own_limits == (0, 1)


def test_the_colors_fill_the_image() -> None:
    colors = torch.rand(2, 3, 3)
    (axes,) = plot_colors(Image.new("RGB", (60, 40)), colors).figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), colors)
    assert axes.images[0].get_extent() == [0, 60, 40, 0]


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
