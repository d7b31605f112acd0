"""Pixels are resized as they were decoded, with the numbers of the image processor itself."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from esvit_hf import EsvitImageProcessor
from esvit_hf.features.preprocessing import _resize, preprocess, preprocess_image


class DarkImageProcessor(ViTImageProcessorPil):
    """Has a step of its own before it resizes."""

    def convert_to_rgb(self, image: Any, **settings: Any) -> np.ndarray:
        return super().convert_to_rgb(image, **settings) // 2


def with_size_set_later() -> ViTImageProcessorPil:
    processor = ViTImageProcessorPil()
    processor.size = {"height": 24, "width": 31}
    return processor


@pytest.mark.parametrize(
    ("processor", "resizes_first"),
    [
        (ViTImageProcessor(size={"height": 24, "width": 31}, resample=3), True),
        (CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32), True),
        (SiglipImageProcessor(size={"height": 33, "width": 33}, do_convert_rgb=True), True),
        (BitImageProcessor(do_resize=False, crop_size=20), False),
        (ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.8), False),
        (ViTImageProcessorPil(size={"height": 24, "width": 31}, resample=3), True),
        (
            ViTImageProcessorPil(
                size={"shortest_edge": 24, "longest_edge": 30}, do_center_crop=True, crop_size=20
            ),
            False,
        ),
        (ViTImageProcessorPil(size={"height": 24, "width": 31}, resample="bicubic"), False),
        (DarkImageProcessor(do_convert_rgb=True), False),
        (with_size_set_later(), False),
        (EsvitImageProcessor(size={"shortest_edge": 36}, crop_size=32), True),
        (EsvitImageProcessor(value_range=(0, 200)), False),
    ],
    ids=lambda value: type(value).__name__ if callable(value) else "",
)
def test_the_numbers_are_those_of_the_processor(processor: Any, resizes_first: bool) -> None:
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((57, 40), (30, 101), (64, 64))
    ]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess(processor, images), expected)
    resized = [_resize(processor, image, True) is not None for image in images]
    assert resized == [resizes_first] * len(images)


@pytest.mark.parametrize(
    "processor",
    [
        EsvitImageProcessor(size={"shortest_edge": 36}, crop_size=32, do_normalize=False),
        ViTImageProcessorPil(size={"height": 24, "width": 31}, resample=2, do_normalize=False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_inexact_numbers_differ_by_rounding(processor: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 101, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exact, fast = (preprocess_image(processor, image, exact=exact) for exact in (True, False))
    difference = (255 * (exact - fast)).abs()
    assert not torch.equal(exact, fast)
    assert difference.max() < 1.01 and difference.mean() < 0.1


@pytest.mark.parametrize("kind", ["turned", "transparent"])
def test_images_that_a_processor_changes_before_it_resizes_them(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    pixels[10:30, 10:30] = 7
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    settings: dict[str, Any] = {"exif": exif} if kind == "turned" else {"transparency": (7, 7, 7)}
    image.save(buffer, "PNG", **settings)
    changed, processor = Image.open(buffer), EsvitImageProcessor()
    expected = processor(images=[changed], return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess_image(processor, changed), expected)
    assert not torch.equal(preprocess_image(processor, image), expected)


def test_other_images_are_left_to_the_processor() -> None:
    processor = ViTImageProcessor(size={"height": 24, "width": 24})
    arrays = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    expected = processor(images=arrays, return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess(processor, arrays), expected)
    last = torch.from_numpy(arrays[0])
    for tensor in (last, last.permute(2, 0, 1)):
        assert torch.equal(preprocess(processor, [tensor]), expected)
