"""Pixels are resized as they were decoded, with the numbers of the image processor itself."""

from typing import Any
from unittest.mock import patch

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
)

from esvit_hf import EsvitImageProcessor
from esvit_hf.features import preprocessing
from esvit_hf.features.preprocessing import preprocess


@pytest.mark.parametrize(
    ("processor", "resizes_first"),
    [
        (ViTImageProcessor(size={"height": 24, "width": 31}, resample=3), True),
        (CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32), True),
        (SiglipImageProcessor(size={"height": 33, "width": 33}, do_convert_rgb=True), True),
        (BitImageProcessor(do_resize=False, crop_size=20), False),
        (ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.8), False),
        (EsvitImageProcessor(), False),
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
    with patch.object(
        preprocessing, "_with_channels_first", wraps=preprocessing._with_channels_first
    ) as resized:
        assert torch.equal(preprocess(processor, images), expected)
    assert resized.call_count == (len(images) if resizes_first else 0)


def test_other_images_are_left_to_the_processor() -> None:
    processor = ViTImageProcessor(size={"height": 24, "width": 24})
    arrays = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    expected = processor(images=arrays, return_tensors="pt")["pixel_values"]
    assert torch.equal(preprocess(processor, arrays), expected)
