"""Pictures: one look, two formats, and what correspondence and attention figures show."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor, nn

from esvit_hf.figures.attention import draw_attention
from esvit_hf.figures.correspondence import (
    RegionPairs,
    draw_correspondence,
    find_correspondence,
)
from esvit_hf.figures.look import COLORS, check_picture_path, drawing
from esvit_hf.figures.training_curves import plot_training
from esvit_hf.regions.attention import QueryAttention


def test_png_and_pdf(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    with drawing(4, 3) as picture:
        axes = picture.figure.subplots()
        lines = [axes.plot([0, 1], [number, 2])[0] for number in range(3)]
    assert [to_hex(line.get_color()).upper() for line in lines] == list(COLORS[:3])
    assert len({line.get_linestyle() for line in lines}) == 3
    assert not axes.spines["top"].get_visible()
    for name, start in (("new/figure.png", b"\x89PNG"), ("figure.PDF", b"%PDF")):
        picture.save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with Image.open(tmp_path / "new" / "figure.png") as image:
        assert image.size == (800, 600)
    assert dict(matplotlib.rcParams) == settings


def test_colors_stay_apart_in_gray() -> None:
    """For each pair of lines color or dashes differ; the first two colors differ even in a gray
    print.
    """
    luma = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in map(rgb, COLORS)]
    assert len(set(COLORS)) == len(COLORS)
    assert abs(luma[0] - luma[1]) > 20
    assert max(luma) < 200


def rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:], 16)


@pytest.mark.parametrize("name", ["figure.svg", "figure", "png"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png or \.pdf"):
        check_picture_path(tmp_path / name)
    with drawing(1, 1) as picture, pytest.raises(ValueError, match=r"must end in \.png or \.pdf"):
        picture.save(tmp_path / name)


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        drawing(1, 1) as picture,
        pytest.raises(ValueError, match="cannot write .*file.figure.png"),
    ):
        picture.save(tmp_path / "file" / "figure.png")


class PlainNetwork(nn.Module):
    """Regions are the mean colors of 8 x 8 pixels."""

    def layer_regions(
        self, pixel_values: Tensor, layer: int | None
    ) -> tuple[Tensor, tuple[int, int]]:
        cells = nn.functional.avg_pool2d(pixel_values, 8)
        return cells.flatten(2).transpose(1, 2), (cells.shape[2], cells.shape[3])


def test_pairs_of_two_images() -> None:
    torch.manual_seed(0)
    first = nn.functional.interpolate(torch.rand(1, 3, 2, 3) - 0.5, scale_factor=8)
    second = first.flip(-1)
    pairs = find_correspondence(PlainNetwork(), first, second, count=4)  # type: ignore[arg-type]
    assert len(pairs.first) == len(pairs.second) == 4
    torch.testing.assert_close(pairs.second[:, 0], 24 - pairs.first[:, 0])
    torch.testing.assert_close(pairs.second[:, 1], pairs.first[:, 1])
    torch.testing.assert_close(pairs.similarity, torch.ones(4))
    everything = find_correspondence(PlainNetwork(), first, second, count=100)  # type: ignore[arg-type]
    assert {tuple(point) for point in everything.first.tolist()} == {
        (x, y) for x in (4, 12, 20) for y in (4, 12)
    }
    with pytest.raises(ValueError, match="give at least 1"):
        find_correspondence(PlainNetwork(), first, second, count=0)  # type: ignore[arg-type]


def test_lines_end_where_the_regions_are(tmp_path: Path) -> None:
    first, second = (
        torch.zeros(3, 40, 60, dtype=torch.uint8),
        torch.full((3, 20, 10), 200, dtype=torch.uint8),
    )
    pairs = RegionPairs(
        torch.tensor([[10.0, 20.0], [50.0, 5.0]]),
        torch.tensor([[5.0, 10.0], [2.0, 20.0]]),
        torch.tensor([0.9, 0.123]),
    )
    picture = draw_correspondence(first, second, pairs)
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
    starts = torch.tensor([[5.0 * number, 5.0] for number in range(1, 6)])
    pairs = RegionPairs(
        starts, torch.tensor([[9.0, 9.0]] * 4 + [[30.0, 30.0]]), torch.linspace(1, 0.5, 5)
    )
    labels = [
        text.get_text() for text in draw_correspondence(image, image, pairs).figure.axes[0].texts
    ]
    assert sorted(labels) == ["1", "2", "3", "4", "4 lines", "5", "5"]


@pytest.mark.parametrize("heads", [1, 3, 24])
def test_attention_of_each_head(tmp_path: Path, heads: int) -> None:
    maps = torch.zeros(heads, 3, 4)
    maps[:, 1, 2] = torch.linspace(0.2, 0.4, heads)
    maps[:, 0, 0] = 0.1
    image = torch.randint(0, 256, (3, 22, 30), dtype=torch.uint8)
    picture = draw_attention(image, QueryAttention(maps, (1, 2), (8, 8)), (17.0, 9.0))
    panels = [axes for axes in picture.figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "query",
        *(f"head {head}" for head in range(heads)),
    ]
    for head, axes in enumerate(panels[1:]):
        heat = axes.images[1]
        # Regions of 8 pixels from the corner on, also those that stick out.
        assert heat.get_extent() == [0, 32, 24, 0]
        assert axes.get_xlim() == (0, 30)
        assert axes.get_ylim() == (22, 0)
        shown = np.ma.filled(heat.get_array(), np.nan)
        np.testing.assert_allclose(shown[1, 2], 100 * maps[head, 1, 2])
        assert np.isnan(shown).sum() == 10
        assert heat.get_clim() == (0, pytest.approx(100 * float(maps.max())))
        assert axes.lines[0].get_xydata().tolist() == [[17, 9]]
    picture.save(tmp_path / "attention.pdf")


def test_curves_of_a_run(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 1, "loss": 5.0, "view_loss": 2.0, "view_teacher_entropy": 3.0}\n'
        '{"step": 2, "loss": 4.0, "view_loss": 1.0, "knn_20": 0.25}\n'
    )
    picture = plot_training(metrics, 64)
    loss, entropy, knn = picture.figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 5], [2, 4]]
    assert entropy.lines[0].get_xydata().tolist() == [[1, 3]]
    assert knn.lines[0].get_xydata().tolist() == [[2, 25]]
