"""What is measured of an image processor agrees with its settings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MobileViTImageProcessor, ViTImageProcessor

from esvit_hf import EsvitImageProcessor
from esvit_hf.features.input_format import apply_processor, read_input_format, read_input_frame

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def test_size_and_normalization() -> None:
    found = read_input_format(EsvitImageProcessor())
    assert found.size == (224, 224)
    expected = torch.diag(1 / (255 * torch.tensor(STD, dtype=torch.float64)))
    torch.testing.assert_close(found.matrix, expected, atol=1e-8, rtol=1e-5)
    offset = -torch.tensor(MEAN, dtype=torch.float64) / torch.tensor(STD, dtype=torch.float64)
    torch.testing.assert_close(found.offset, offset, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "processor",
    [
        EsvitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        ViTImageProcessor(size={"height": 32, "width": 32}),
        # Swaps red and blue.
        MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ],
    ids=["esvit", "vit", "mobilevit"],
)
def test_colors_there_and_back(processor: Callable[..., Any]) -> None:
    image = noise(32, 32)
    colors = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    pixel_values = apply_processor(processor, [image])
    found = read_input_format(processor)
    assert torch.equal(found.restore(pixel_values), colors)
    torch.testing.assert_close(found.normalize(colors), pixel_values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(500, 375), (300, 700), (256, 256), (64, 48)])
def test_frame_of_a_resize_and_center_crop(size: tuple[int, int]) -> None:
    scale = min(size) / 256
    frame = read_input_frame(EsvitImageProcessor(), size)
    assert frame.size == (224, 224)
    assert frame.scale == pytest.approx((scale, scale), rel=0.01)
    expected = [(side - 224 * scale) / 2 for side in size]
    # The longer side is rounded to whole pixels, and the crop starts at one.
    assert frame.offset == pytest.approx(expected, abs=1.2 * max(scale, 1))
    middle = frame.to_input((size[0] / 2, size[1] / 2))
    assert middle == pytest.approx((112, 112), abs=1.2)
    assert frame.to_image(middle) == pytest.approx([size[0] / 2, size[1] / 2], abs=0.1)
    assert frame.to_input((0, 0)) is None


def test_frame_of_a_processor_that_squeezes() -> None:
    frame = read_input_frame(ViTImageProcessor(size={"height": 32, "width": 48}), (96, 320))
    assert frame.size == (48, 32)
    assert frame.scale == pytest.approx((2, 10), rel=0.01)
    assert frame.offset == pytest.approx((0, 0), abs=1)


def test_processors_that_cannot_be_measured() -> None:
    def gray(images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        values = torch.stack([torch.from_numpy(np.array(image.convert("L"))) for image in images])
        return {"pixel_values": values[:, None].expand(-1, 3, -1, -1).float()}

    def single(images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.zeros(len(images), 1, 8, 8)}

    def mirroring(images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        values = torch.stack([torch.from_numpy(np.array(image)) for image in images])
        return {"pixel_values": values.permute(0, 3, 1, 2).flip(-1).float()}

    with pytest.raises(ValueError, match="does not keep red, green and blue apart"):
        read_input_format(gray)
    with pytest.raises(ValueError, match="shape .4, 1, 8, 8., not .images, 3, H, W."):
        read_input_format(single)
    with pytest.raises(ValueError, match="turns or mirrors"):
        read_input_frame(mirroring, (20, 20))
    with pytest.raises(ValueError, match="240 x 1 pixels, which is too small"):
        read_input_frame(EsvitImageProcessor(), (240, 1))
    with pytest.raises(ValueError, match="images of 6 channels.*use `esvit features`, or"):
        read_input_format(
            EsvitImageProcessor(num_channels=6, image_mean=[0] * 6, image_std=[1] * 6)
        )
    keeps_sizes = EsvitImageProcessor(do_resize=False, do_center_crop=False)
    with pytest.raises(ValueError, match="cannot batch the images.*fixed size"):
        apply_processor(keeps_sizes, [noise(20, 20), noise(20, 21)])
