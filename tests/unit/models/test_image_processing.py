"""The evaluation transform against torchvision, the oracle, and its way through the Auto
classes.
"""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from transformers import AutoImageProcessor

import esvit_hf
from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.data.decoding import decode_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colors with a little noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    noisy = (smooth + generator.integers(-20, 21, smooth.shape)).clip(0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def torchvision_transform(resize: int, crop: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def processed(processor: EsvitImageProcessor, image) -> torch.Tensor:
    return processor(image, return_tensors="pt").pixel_values[0]


# Sizes at which rounding the corner of the crop down, as transformers does, is off by one are among
# these.
@given(width=st.integers(20, 500), height=st.integers(20, 500), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_equals_torchvision_bit_for_bit(width, height, seed):
    image = photograph(width, height, seed)
    assert torch.equal(
        processed(EsvitImageProcessor(), image), torchvision_transform(256, 224)(image)
    )


@pytest.mark.parametrize(
    ("width", "height"), [(1, 9), (224, 224), (256, 256), (257, 512), (1001, 333), (28, 28)]
)
def test_equals_torchvision_at_the_edges(width, height):
    image = photograph(width, height)
    assert torch.equal(
        processed(EsvitImageProcessor(), image), torchvision_transform(256, 224)(image)
    )


@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (73, 64), (30, 41)])
def test_other_sizes_equal_torchvision_too(resize, crop):
    processor = EsvitImageProcessor(
        size={"shortest_edge": resize}, crop_size={"height": crop, "width": crop}
    )
    for width, height in [(47, 60), (90, 31), (28, 28)]:
        image = photograph(width, height)
        assert torch.equal(processed(processor, image), torchvision_transform(resize, crop)(image))


def test_every_pixel_value_is_normalized_exactly():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    processor = EsvitImageProcessor(do_resize=False, do_center_crop=False)
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(
        Image.fromarray(values)
    )
    assert torch.equal(processed(processor, values), expected)


def test_other_modes_become_rgb():
    image = photograph(40, 40)
    gray = image.convert("L")
    expected = processed(EsvitImageProcessor(), gray.convert("RGB"))
    array = np.asarray(gray)
    sixteen_bits = Image.fromarray(array.astype(np.uint16) * 257)
    channel = torch.from_numpy(array.copy())[None]
    for other in (gray, sixteen_bits, array[..., None], channel):
        assert torch.equal(processed(EsvitImageProcessor(), other), expected)
    opaque = image.convert("RGBA")
    assert torch.equal(
        processed(EsvitImageProcessor(), opaque), processed(EsvitImageProcessor(), image)
    )
    invisible = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    white = processed(EsvitImageProcessor(), Image.new("RGB", (40, 40), "white"))
    assert torch.equal(processed(EsvitImageProcessor(), invisible), white)


RAMP = np.arange(24).reshape(4, 6)
COLORS = np.stack([RAMP * 10, RAMP[::-1] * 10, 255 - RAMP * 10], axis=2).astype(np.uint8)


def opened(image: Image.Image, image_format: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return Image.open(buffer)


def rotated(kind: int, count: int, value: bytes) -> Image.Image:
    """An image with an EXIF orientation of any type: 2 is text, 3 a short number."""
    entry = struct.pack("<HHHI", 1, 0x0112, kind, count) + value.ljust(4, b"\0") + bytes(4)
    return opened(Image.fromarray(COLORS), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0" + entry)


def four_bands(extra: int | None) -> Image.Image:
    """A TIFF file of four bands, whose fourth is of the kind `extra` or of none."""
    bands = np.dstack([COLORS, np.full_like(COLORS[..., 0], 51)]).astype(np.uint8)
    content = opened(Image.fromarray(bands), "TIFF").fp.getvalue()
    tag = struct.pack("<HHI", 338, 3, 1)
    # A tag of another number is no ExtraSamples; 65000 is nobody's.
    changed = struct.pack("<HHI", 338 if extra is not None else 65000, 3, 1)
    assert content.count(tag + struct.pack("<I", 2)) == 1
    return Image.open(
        io.BytesIO(
            content.replace(tag + struct.pack("<I", 2), changed + struct.pack("<I", extra or 0))
        )
    )


def gray(values: object, kind: type = np.uint8) -> np.ndarray:
    return np.asarray(values, dtype=kind)


FULL, TWELVE = gray(RAMP * 2000, np.uint16), gray(RAMP * 170, np.uint16)
IMAGES = {
    "L": (Image.fromarray(gray(RAMP)), gray(RAMP)),
    "1": (Image.fromarray(RAMP > 9), gray(RAMP > 9) * 255),
    "palette": (opened(Image.fromarray(COLORS).quantize(24), "PNG"), COLORS),
    "16 bits, PNG": (opened(Image.fromarray(FULL), "PNG"), np.rint(FULL / 257)),
    "16 bits, TIFF": (opened(Image.fromarray(FULL), "TIFF"), np.rint(FULL / 257)),
    "12 bits in 16": (opened(Image.fromarray(TWELVE), "PNG"), np.rint(TWELVE / 4095 * 255)),
    "8 bits in 16": (opened(Image.fromarray(gray(RAMP, np.uint16)), "TIFF"), gray(RAMP)),
    "32 bits": (
        opened(Image.fromarray(gray(RAMP * 9999, np.int32)), "TIFF"),
        np.rint(RAMP / 23 * 255),
    ),
    "float, 0..1": (opened(Image.fromarray(gray(RAMP / 24, np.float32)), "TIFF"), RAMP / 24 * 255),
    "float, 0..255": (opened(Image.fromarray(gray(RAMP, np.float32)), "TIFF"), RAMP),
    "float, beyond": (
        opened(Image.fromarray(gray(RAMP - 3.0, np.float32)), "TIFF"),
        RAMP / 23 * 255,
    ),
    "turned": (rotated(3, 1, b"\x06"), np.rot90(COLORS, -1)),
    "orientation of no kind": (rotated(2, 2, b"6\0"), COLORS),
    "orientation of no number": (rotated(3, 1, b"\x4d"), COLORS),
    "transparent": (
        opened(Image.fromarray(np.dstack([COLORS, gray(RAMP * 0)])), "PNG"),
        np.full_like(COLORS, 255),
    ),
    "infrared": (four_bands(None), COLORS),
    "unspecified band": (four_bands(0), COLORS),
    "TIFF with transparency": (four_bands(2), 255 - (255.0 - COLORS) * 0.2),
}


@pytest.mark.parametrize("name", IMAGES)
def test_training_and_evaluation_see_the_same(name: str) -> None:
    image, expected = IMAGES[name]
    plain = EsvitImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False)
    seen = (processed(plain, image).permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_array_equal(seen, np.asarray(decode_image(image)))
    expected = np.broadcast_to(expected.T, (3, *expected.T.shape[-2:])).T
    tolerance = 0 if expected.dtype != np.float64 else 1
    assert np.abs(seen - expected).max() <= tolerance
    # What was turned upright once is not turned again.
    np.testing.assert_array_equal(np.asarray(decode_image(decode_image(image))), seen)


@pytest.mark.parametrize(
    "array",
    [
        np.repeat(FULL[..., None], 3, axis=2),
        np.repeat(TWELVE[..., None], 3, axis=2),
        np.repeat(RAMP[..., None] > 9, 3, axis=2),
        COLORS.astype(np.int64),
    ],
    ids=["16 bits", "12 bits", "bool", "int64"],
)
def test_arrays_of_integers_are_seen_as_training_sees_them(array: np.ndarray) -> None:
    plain = EsvitImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False)
    # Five rows: four or fewer might be channels.
    array = np.resize(array, (5, *array.shape[1:]))
    expected = np.asarray(decode_image(array))
    for image in (array, torch.from_numpy(array)):
        seen = (processed(plain, image).permute(1, 2, 0) * 255).round().numpy()
        np.testing.assert_array_equal(seen, expected)


def test_pixels_that_are_not_finite_are_refused() -> None:
    image = Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(ValueError, match="not all finite"):
        processed(EsvitImageProcessor(), image)


def test_batches_of_several_sizes():
    images = [photograph(50, 70), photograph(300, 40)]
    batch = EsvitImageProcessor()(images, return_tensors="pt").pixel_values
    assert batch.shape == (2, 3, 224, 224)
    assert torch.equal(batch[1], processed(EsvitImageProcessor(), images[1]))


@pytest.mark.parametrize("backend", [None, "pil", "torchvision"])
def test_auto_class_finds_the_saved_processor(backend, tmp_path):
    config = EsvitSwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    EsvitSwinModel(config).save_pretrained(tmp_path)
    EsvitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    options = {} if backend is None else {"backend": backend}
    loaded = AutoImageProcessor.from_pretrained(tmp_path, **options)
    assert type(loaded) is EsvitImageProcessor
    image = photograph(60, 50)
    assert torch.equal(processed(loaded, image), torchvision_transform(40, 32)(image))
    assert json.loads(Path(tmp_path, "preprocessor_config.json").read_text())["size"] == {
        "shortest_edge": 40
    }


def test_works_without_torchvision(tmp_path):
    packages = Path(transformers.__file__).parents[1]
    for entry in packages.iterdir():
        if not entry.name.startswith("torchvision"):
            (tmp_path / entry.name).symlink_to(entry)
    program = f"""
import importlib.util, sys
sys.path[:0] = [{str(tmp_path)!r}, {str(Path(esvit_hf.__file__).parents[1])!r}]
assert importlib.util.find_spec("torchvision") is None
from PIL import Image
from esvit_hf.models.image_processing_esvit import EsvitImageProcessor
inputs = EsvitImageProcessor()(Image.new("RGB", (300, 200)), return_tensors="pt")
print(tuple(inputs.pixel_values.shape))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True
    )
    assert done.stdout.strip() == "(1, 3, 224, 224)", done.stderr
