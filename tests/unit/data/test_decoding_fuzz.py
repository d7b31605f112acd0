"""Hostile image files: whatever the bytes, an RGB image or one line, in bounded memory, and nothing
is executed.
"""

import functools
import io
import subprocess
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from esvit_hf.data.decoding import (
    MAX_IMAGE_PIXELS,
    UndecodableImageError,
    decode_image,
    decode_jpeg_pixels,
    open_image,
)
from esvit_hf.data.multicrop import MultiCropDataset, TooManyBrokenImagesError
from esvit_hf.data.views import ViewSpec

# What Pillow says about files that it can read in part.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data",
    "ignore:Truncated File Read",
    "ignore:Tag data larger",
    "ignore:Metadata Warning",
)

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 14, 4), dtype=np.uint8)
VIEWS = [ViewSpec(count=2, size=8, scale=(0.1, 1.0), teacher=True)]
# Format, mode, options of Pillow's writer.
FORMATS: dict[str, tuple[str, str, dict[str, object]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg_upright": ("JPEG", "RGB", {"exif": b""}),
    "jpeg_upright_progressive": ("JPEG", "RGB", {"exif": b"", "progressive": True}),
    "jpeg_cmyk": ("JPEG", "CMYK", {}),
    "jpeg_progressive": ("JPEG", "L", {"progressive": True}),
    "png": ("PNG", "RGB", {}),
    "png_palette": ("PNG", "P", {"transparency": 3}),
    "png_alpha": ("PNG", "LA", {}),
    "png_16_bit": ("PNG", "I;16", {}),
    "webp": ("WEBP", "RGBA", {}),
    "gif": ("GIF", "P", {}),
    "gif_animated": ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (14, 11))]}),
    "tiff": ("TIFF", "RGB", {"compression": "raw"}),
    "tiff_float": ("TIFF", "F", {"compression": "raw"}),
    "bmp": ("BMP", "RGB", {}),
    "ppm": ("PPM", "RGB", {}),
    "ico": ("ICO", "RGBA", {}),
    "tga": ("TGA", "RGB", {}),
    "jpeg_2000": ("JPEG2000", "RGB", {}),
}


@functools.cache
def encoded(kind: str) -> bytes:
    image_format, mode, options = FORMATS[kind]
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(PIXELS).convert("RGB")
    if mode == "I;16":
        image = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = Image.fromarray(PIXELS)
    buffer = io.BytesIO()
    with_exif = {"exif": exif.tobytes()} if image_format in {"JPEG", "PNG", "WEBP"} else {}
    (image if image.mode == mode else image.convert(mode)).save(
        buffer, image_format, **{**with_exif, **options}
    )
    return buffer.getvalue()


class OneImage:
    """A source of one image."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        return [self.data for _ in indices]


def check(data: bytes) -> None:
    """Decode as evaluation does, with torchvision, and crop as training does: all give an image, or
    none, and say why in one line.
    """
    pixels = None
    try:
        pixels = decode_jpeg_pixels(open_image(data), data)
        image = decode_image(data)
        assert image.mode == "RGB"
        assert image.width * image.height <= MAX_IMAGE_PIXELS
        if pixels is not None:
            assert np.array_equal(pixels.permute(1, 2, 0), image)
        reason = None
    except UndecodableImageError as error:
        reason = str(error)
        assert reason and "\n" not in reason
        assert pixels is None
    dataset = MultiCropDataset(OneImage(data), VIEWS, 0, max_broken_fraction=1.0)
    if reason is None:
        assert dataset.__getitems__([(0, 0)]).broken == []
    else:
        with pytest.raises(TooManyBrokenImagesError) as error:
            dataset.__getitems__([(0, 0)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_at_any_byte(kind: str) -> None:
    data = encoded(kind)
    for length in {*range(0, min(100, len(data))), *range(100, len(data), 37), len(data)}:
        check(data[:length])


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    content = bytearray(encoded(data.draw(st.sampled_from(sorted(FORMATS)))))
    places = st.integers(0, min(len(content), 200) - 1) | st.integers(0, len(content) - 1)
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)
    ):
        content[place] = value
    check(bytes(content))


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\0", b"BM", b"P6 "]
    ),
    st.data(),
)
def test_any_bytes(start: bytes, data: st.DataObject) -> None:
    check(start + data.draw(st.binary(max_size=200)))


def with_png_size(width: int, height: int) -> bytes:
    content = bytearray(encoded("png"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_png_size(2**31 - 1, 2**31 - 1), "limit"),
        (with_png_size(9_460, 9_460), "9460 x 9460 pixels are more than the limit of 89478485"),
        (with_png_size(0, 7), "no pixels|no image format|cannot|zero"),
        (b"P6 99999 99999 255\n" + bytes(30), "limit"),
        (encoded("gif")[:6] + b"\xff\xff\xff\xff" + encoded("gif")[10:], "limit"),
        (
            b"BM"
            + bytes(8)
            + (54).to_bytes(4, "little")
            + (40).to_bytes(4, "little")
            + b"\xff\xff\0\0" * 2,
            ".",
        ),
    ],
)
def test_bombs_are_refused_before_they_are_decoded(
    data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_image(
        encoded("png")
    )  # Pillow loads its plugins, some of which decode images of their own.

    def explode(image: Image.Image) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(Image.Image, "load", explode)
    with pytest.raises(UndecodableImageError, match=reason):
        decode_image(data)


def test_postscript_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("RGB").save(buffer, "EPS")

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    with pytest.raises(UndecodableImageError, match="no image format"):
        decode_image(buffer.getvalue())


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    for image_format in ("GIF", "WEBP", "PNG", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(
            buffer, image_format, save_all=True, append_images=frames[1:], **{"lossless": True}
        )
        red, green, blue = decode_image(buffer.getvalue()).getpixel((0, 0))  # type: ignore[misc]
        assert (red, green, blue) == (255, 0, 0), image_format


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 3)])
def test_nothing_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(UndecodableImageError):
        decode_image(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(UndecodableImageError, match="an image of 0 x 5 has no pixels"):
        decode_image(Image.new("RGB", (0, 5)))


def test_damaged_exif_data_is_a_broken_image() -> None:
    data = bytearray(encoded("jpeg"))
    place = data.find(b"Exif\0\0") + 6
    data[place + 2] ^= 0x80
    check(bytes(data))
