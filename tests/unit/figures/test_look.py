"""Pictures: one look, two formats, and the curves of a run."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from esvit_hf.figures.look import COLORS, check_picture_path, new_picture
from esvit_hf.figures.training_curves import plot_training


def test_png_and_pdf(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    with new_picture(4, 3) as picture:
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
    with (
        new_picture(1, 1) as picture,
        pytest.raises(ValueError, match=r"must end in \.png or \.pdf"),
    ):
        picture.save(tmp_path / name)


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        new_picture(1, 1) as picture,
        pytest.raises(ValueError, match="cannot write .*file.figure.png"),
    ):
        picture.save(tmp_path / "file" / "figure.png")


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Figure, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with (
        new_picture(1, 1) as picture,
        pytest.raises(ValueError, match="cannot write .*figure.png .No space left on device"),
    ):
        picture.save(tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


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
