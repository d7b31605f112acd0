"""Every kind of image becomes correct RGB, or an error value that says why not."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esvit_hf.data.decoding import (
    UndecodableImageError,
    decode_image,
    decode_jpeg_pixels,
    open_image,
    read_content,
    upright_size,
)

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLORS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=2)


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def decoded(value: object) -> np.ndarray:
    image = decode_image(value)
    assert image.mode == "RGB"
    return np.asarray(image)


def repeated(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def png_with_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_rgb_is_untouched() -> None:
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(COLORS), "PNG")), COLORS)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_grayscale_is_repeated_or_kept(image_format: str) -> None:
    data = encode(Image.fromarray(RAMP), image_format)
    np.testing.assert_array_equal(decoded(data), repeated(RAMP))
    kept = decode_image(data, keep_grayscale=True)
    assert kept.mode == "L"
    np.testing.assert_array_equal(np.asarray(kept), RAMP)


def test_bilevel() -> None:
    mask = RAMP > 100
    np.testing.assert_array_equal(
        decoded(encode(Image.fromarray(mask), "PNG")), repeated(mask * np.uint8(255))
    )


def test_palette() -> None:
    few = Image.fromarray(COLORS).quantize(24, method=Image.Quantize.MAXCOVERAGE)
    np.testing.assert_array_equal(decoded(encode(few, "PNG")), np.asarray(few.convert("RGB")))


def test_palette_with_transparent_entry_is_put_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encode(image, "PNG", transparency=0)
    np.testing.assert_array_equal(decoded(data), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(image_format: str) -> None:
    alpha = np.full_like(RAMP, 255)
    alpha[0], alpha[1] = 0, 128
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    data = encode(Image.fromarray(np.dstack([COLORS, alpha])), image_format, **options)
    share = alpha[:, :, None] / 255
    expected = COLORS * share + 255 * (1 - share)
    assert np.abs(decoded(data) - expected).max() <= 1


def test_gray_alpha_is_composited_on_white() -> None:
    image = Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (6, 4), 0)])
    np.testing.assert_array_equal(decoded(encode(image, "PNG")), np.full((4, 6, 3), 255))


def test_transparent_color_of_rgb_png_is_put_on_white() -> None:
    data = encode(Image.fromarray(COLORS), "PNG", transparency=tuple(COLORS[0, 0].tolist()))
    result = decoded(data)
    np.testing.assert_array_equal(result[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(result[1:], COLORS[1:])


def test_cmyk_jpeg() -> None:
    rgb = Image.new("RGB", (16, 16), (200, 40, 90))
    result = decoded(encode(rgb.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(result.astype(int) - [200, 40, 90]).max() <= 3


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(image_format: str) -> None:
    values = np.array([[0, 257, 1000], [32768, 65534, 65535]], dtype=np.uint16)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(
        decoded(encode(Image.fromarray(values), image_format)), repeated(expected)
    )
    np.testing.assert_array_equal(decoded(values), repeated(expected))


def test_thirty_two_bit_integers_beyond_sixteen_are_stretched() -> None:
    values = np.array([[0, 50_000], [100_000, 200_000]], dtype=np.int32)
    expected = np.array([[0, 64], [128, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(
        decoded(encode(Image.fromarray(values), "TIFF")), repeated(expected)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 100.0, 255.0]], [[0, 100, 255]]),
        ([[-1.0, 0.0, 1.0]], [[0, 128, 255]]),
        ([[7.0, 300.0]], [[0, 255]]),
        ([[-3.0, -3.0]], [[0, 0]]),
    ],
)
def test_floats(values: list[list[float]], expected: list[list[int]]) -> None:
    array = np.array(values, dtype=np.float32)
    np.testing.assert_array_equal(decoded(array), repeated(np.array(expected, dtype=np.uint8)))
    np.testing.assert_array_equal(
        decoded(encode(Image.fromarray(array), "TIFF")),
        repeated(np.array(expected, dtype=np.uint8)),
    )


@pytest.mark.parametrize("array", [COLORS, COLORS.tolist(), COLORS.astype(np.int64), COLORS / 255])
def test_arrays_and_nested_lists(array: object) -> None:
    np.testing.assert_array_equal(decoded(array), COLORS)


def test_paths_and_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(Image.fromarray(COLORS), "PNG"))
    for value in (
        path,
        str(path),
        {"bytes": None, "path": str(path)},
        {"bytes": path.read_bytes(), "path": "gone.png"},
    ):
        np.testing.assert_array_equal(decoded(value), COLORS)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(image_format: str, orientation: int) -> None:
    # The EXIF standard: what the eight orientations ask for to see the image upright.
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :16], stored[8:, :16], stored[:8, 16:] = 240, 160, 80
    data = encode(Image.fromarray(stored), image_format, exif=turned(orientation).tobytes())
    expected = upright[orientation](stored)
    assert upright_size(open_image(data)) == expected.shape[1::-1]
    result = decoded(data)
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("image_format", "mode", "options", "is_decoded"),
    [
        ("JPEG", "RGB", {}, True),
        ("JPEG", "RGB", {"progressive": True, "subsampling": "4:4:4"}, True),
        ("JPEG", "RGB", {"exif": turned(1)}, True),
        ("JPEG", "RGB", {"exif": turned(3)}, False),
        ("JPEG", "L", {}, False),
        ("JPEG", "CMYK", {}, False),
        ("MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}, True),
        ("PNG", "RGB", {}, False),
    ],
)
def test_the_pixels_of_a_jpeg_are_those_of_pillow(
    image_format: str, mode: str, options: dict[str, object], is_decoded: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 46, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise).convert(mode), image_format, **options)
    pixels = decode_jpeg_pixels(open_image(content), content)
    assert (pixels is not None) == is_decoded
    if pixels is not None:
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), decoded(content))


def test_one_pixel() -> None:
    np.testing.assert_array_equal(
        decoded(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), [[[1, 2, 3]]]
    )


def test_the_image_of_the_caller_stays_as_it_is() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    decode_image(image)
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "no image format"),
        (b"not an image at all", "no image format"),
        (None, "neither a path nor any bytes"),
        ({"bytes": None, "path": None}, "neither a path nor any bytes"),
        ("/does/not/exist.png", "No such file"),
        (encode(Image.fromarray(COLORS).resize((200, 200)), "JPEG")[:1500], "truncated"),
        (encode(Image.fromarray(COLORS), "PNG")[:60], "OSError|SyntaxError"),
        (png_with_header(100_000, 100_000), "more than the limit"),
        (png_with_header(10_000, 10_000), "more than the limit"),
        (png_with_header(100, 100), "OSError"),
        (np.zeros((4, 4, 7), dtype=np.uint8), "no image"),
        (np.zeros((0, 4), dtype=np.uint8), "no image"),
        (np.array([[np.nan, 1.0]]), "finite"),
        (np.array([["a"]]), "no pixels"),
        (3, "no image"),
    ],
)
def test_what_cannot_be_decoded_says_why_in_one_line(value: object, reason: str) -> None:
    with pytest.raises(UndecodableImageError, match=reason) as error:
        decode_image(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["a\0b.jpg", "\ud800.jpg", "gone.jpg"])
def test_a_path_without_a_file(path: str) -> None:
    with pytest.raises(UndecodableImageError, match="Error: "):
        read_content({"bytes": None, "path": path})


def test_the_pixel_limit_is_a_setting_and_checked_before_decoding() -> None:
    data = encode(Image.fromarray(COLORS), "PNG")
    with pytest.raises(
        UndecodableImageError, match="6 x 4 pixels are more than the limit of 23 .max_image_p"
    ):
        open_image(data, max_image_pixels=23)
    assert decode_image(data, max_image_pixels=24).size == (6, 4)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        UndecodableImageError, match="100000 x 100000 pixels are more than the limit"
    ):
        open_image(png_with_header(100_000, 100_000))
    assert open_image(png_with_header(100_000, 100_000), max_image_pixels=10**10).size[0] == 10**5
    assert before == Image.MAX_IMAGE_PIXELS
