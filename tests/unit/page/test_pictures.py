"""What the page shows and reads of visitors' images."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from esvit_hf.page import pictures
from esvit_hf.page.pictures import display_size, marked_picture, point_of_click, read_upload


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((28, 28), (392, 392)),
        ((16, 383), (32, 766)),
        ((384, 100), (384, 100)),
        ((1024, 500), (1024, 500)),
        ((2048, 1000), (1024, 500)),
        ((20, 9000), (2, 1024)),
    ],
)
def test_display_sizes(image_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert display_size(image_size) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    width=st.integers(16, 5000),
    height=st.integers(16, 5000),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_click_is_the_pixel_under_it(width: int, height: int, share: tuple[float, float]) -> None:
    shown = display_size((width, height))
    click = int(share[0] * (shown[0] - 1)), int(share[1] * (shown[1] - 1))
    x, y = point_of_click(click, (width, height))
    assert 0 <= x < width
    assert 0 <= y < height
    assert x <= (click[0] + 0.5) * width / shown[0] < x + 1 + 1e-9
    assert y <= (click[1] + 0.5) * height / shown[1] < y + 1 + 1e-9


def test_clicks_outside_stay_inside() -> None:
    assert point_of_click((-3, 10_000), (28, 28)) == (0, 27)


def test_pixels_grow_sharp_and_marks_lie_on_the_point() -> None:
    pixels = np.zeros((28, 28, 3), dtype=np.uint8)
    pixels[3, 20] = 200
    image = Image.fromarray(pixels)
    plain = np.asarray(marked_picture(image))
    assert plain.shape == (392, 392, 3)
    assert (plain[42:56, 280:294] == 200).all()
    assert plain.sum() == 200 * 3 * 14 * 14
    marked = np.asarray(marked_picture(image, (20, 3), (4, 4)))
    changed = (marked != plain).any(axis=2).nonzero()
    # The frame of region (0, 2) of 4 x 4, and the cross at the middle of the pixel.
    assert (changed[0].min(), changed[0].max()) == (0, 97)
    assert (changed[1].min(), changed[1].max()) == (196, 300)
    assert (marked[49, 287] != plain[49, 287]).any()
    assert (marked[70, 220] == plain[70, 220]).all()


def save(path: Path, size: tuple[int, int], **options: object) -> Path:
    Image.new("RGB", size, "orange").save(path, **options)
    return path


def test_uploads_become_upright_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_upload(save(tmp_path / "a.jpg", (40, 20), exif=exif)).size == (20, 40)
    Image.new("RGBA", (20, 30), (255, 0, 0, 0)).save(tmp_path / "b.png")
    clear = read_upload(tmp_path / "b.png")
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "cannot be read as an image"),
        ("empty", "cannot be read as an image"),
        ("truncated", "cannot be read as an image"),
        ("narrow", "15 x 40 pixels: both sides need at least 16"),
        ("bytes", "10.0 MB: choose one of at most 10 MB"),
    ],
)
def test_refused_uploads(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "secret_name.png"
    if kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "bytes":
        path.write_bytes(bytes(10 * 2**20 + 1))
    else:
        save(path, (15, 40) if kind == "narrow" else (300, 200))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=message) as refused:
        read_upload(path)
    assert "secret_name" not in str(refused.value)


def test_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(image: Image.Image) -> Image.Image:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(pictures, "finish_image", decoded)
    encoded = io.BytesIO()
    Image.new("1", (6000, 5000)).save(encoded, "PNG")
    (tmp_path / "large.png").write_bytes(encoded.getvalue())
    with pytest.raises(ValueError, match="6000 x 5000 pixels: choose one of at most 25 million"):
        read_upload(tmp_path / "large.png")
