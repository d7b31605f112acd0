"""What the page reads of visitors' files, sends to browsers, and ships."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from esvit_hf.page import pictures
from esvit_hf.page.pictures import PHOTOGRAPHS, encode_picture, read_upload


def encoded(size: tuple[int, int], kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "orange").save(file, kind, **options)
    return file.getvalue()


def test_uploads_become_upright_rgb() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_upload(encoded((40, 20), "JPEG", exif=exif)).size == (20, 40)
    file = io.BytesIO()
    Image.new("RGBA", (20, 30), (255, 0, 0, 0)).save(file, "PNG")
    clear = read_upload(file.getvalue())
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (encoded((300, 200))[:100], "cannot be read as an image"),
        (encoded((15, 40)), "15 x 40 pixels: both sides need at least 16"),
        (bytes(10 * 2**20 + 1), "10.0 MB: choose one of at most 10 MB"),
    ],
    ids=["text", "empty", "truncated", "narrow", "bytes"],
)
def test_refused_uploads(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_upload(content)


def test_too_many_pixels_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decoded(image: Image.Image) -> Image.Image:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(pictures, "finish_image", decoded)
    file = io.BytesIO()
    Image.new("1", (6000, 5000)).save(file, "PNG")
    with pytest.raises(ValueError, match="6000 x 5000 pixels: choose one of at most 25 million"):
        read_upload(file.getvalue())


def test_small_pictures_lose_nothing_and_large_ones_shrink() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 30, 3), dtype=np.uint8)
    content, media_type = encode_picture(Image.fromarray(pixels))
    assert media_type == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(content))) == pixels).all()
    content, media_type = encode_picture(Image.new("RGB", (3000, 1500)))
    assert media_type == "image/jpeg"
    assert Image.open(io.BytesIO(content)).size == (1024, 512)


def test_every_photograph_has_a_title_a_credit_and_a_license() -> None:
    index = json.loads((PHOTOGRAPHS / "index.json").read_text())
    files = sorted(path.name for path in PHOTOGRAPHS.glob("*.jpg"))
    assert sorted(photograph["file"] for photograph in index) == files
    assert len(files) == 12
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (PHOTOGRAPHS / "LICENSE.md").read_text().splitlines()
        if ".jpg |" in line
    ]
    licenses = {row[0]: row[3] for row in rows}
    assert sorted(licenses) == files
    assert set(licenses.values()) == {"public domain", "CC0 1.0", "CC BY 2.0"}
    for photograph in index:
        assert photograph["title"]
        assert photograph["credit"].endswith(f", {licenses[photograph['file']]}")
        image = Image.open(PHOTOGRAPHS / photograph["file"])
        assert (image.mode, max(image.size) <= 720) == ("RGB", True)
    assert sum((PHOTOGRAPHS / file).stat().st_size for file in files) < 10**6
