"""Images of any number of channels and bits: one conversion for the image processor and for
pretraining.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

import esvit_hf
from esvit_hf.data.color import augment
from esvit_hf.data.multicrop import MultiCropDataset
from esvit_hf.data.views import ViewSpec
from esvit_hf.models.image_processing_esvit import EsvitImageProcessor, convert_channels

RANDOM = np.random.default_rng(0)
PLAIN = ViewSpec(
    count=2,
    size=16,
    scale=(1.0, 1.0),
    teacher=True,
    flip_probability=0,
    jitter_probability=0,
    gray_probability=0,
    blur_probability=0,
)


class Stored:
    """A source of one image as it is stored."""

    def __init__(self, image: object) -> None:
        self.image = image

    def __len__(self) -> int:
        return 1

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        return [self.image for _ in indices]


@pytest.mark.parametrize(
    ("pixel", "kind", "value_range", "expected"),
    [
        (51, "uint8", None, 51),
        (257, "uint16", None, 1),
        (65535, "uint16", None, 255),
        (True, "bool", None, 255),
        (0.2, "float32", None, 51),
        (2000, "uint16", (0, 10000), 51),
        (20000, "uint16", (0, 10000), 255),
        (-1000, "int16", (-1000, 1000), 0),
        (0, "int16", (-1000, 1000), 127.5),
        (-0.5, "float64", (-1, 1), 63.75),
    ],
)
def test_the_scale_of_values(
    pixel: float, kind: str, value_range: tuple[float, float] | None, expected: float
) -> None:
    found = convert_channels(np.full((2, 3, 5), pixel, kind), 5, value_range)
    assert (found.shape, found.dtype) == ((2, 3, 5), np.float32)
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_scale_does_not_depend_on_the_image() -> None:
    dark, bright = np.full((2, 2), 100, np.uint16), np.full((2, 2), 100, np.uint16)
    bright[0, 0] = 60000
    assert convert_channels(dark, 1)[1, 1] == convert_channels(bright, 1)[1, 1]


@pytest.mark.parametrize("shape", [(4, 6, 5), (5, 4, 6)])
def test_channels_may_come_first_or_last(shape: tuple[int, ...]) -> None:
    array = RANDOM.integers(0, 256, shape).astype(np.uint8)
    last = array if shape[2] == 5 else array.transpose(1, 2, 0)
    assert np.array_equal(convert_channels(array, 5), last)


def test_pillow_images_of_other_numbers_of_channels() -> None:
    color = Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    gray = color.convert("L")
    assert np.array_equal(convert_channels(color, 1)[..., 0], np.asarray(gray))
    assert np.array_equal(convert_channels(gray, 3), np.stack([np.asarray(gray)] * 3, axis=2))
    for channels, mode in ((2, "LA"), (4, "RGBA"), (4, "CMYK")):
        image = color.convert(mode)
        assert np.array_equal(convert_channels(image, channels), np.asarray(image))
    deep = Image.fromarray(np.full((4, 6), 30000, np.uint16))
    assert convert_channels(deep, 3)[0, 0] == pytest.approx([30000 / 257] * 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 6, 4), np.uint8), "has 4 channels, and the network takes 5"),
        (Image.new("RGB", (4, 6)), "has 3 channels, and the network takes 5"),
        (np.zeros((4, 6), np.uint8), "has 1 channels, and the network takes 5"),
        (np.full((4, 6, 5), 2.0), "set value_range"),
        (np.zeros((4, 6, 5), np.int32), "set value_range"),
        (np.full((4, 6, 5), np.nan), "not all finite"),
        (np.zeros((4, 6, 5), np.complex64), "holds no pixels"),
        (np.full((4, 6, 5), "x"), "holds no pixels"),
        (np.zeros((2, 4, 6, 5)), "is no image of 5 channels"),
        (np.zeros((0, 6, 5)), "is no image of 5 channels"),
    ],
)
def test_what_is_no_image_for_the_network(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_channels(image, 5)  # type: ignore[arg-type]


def test_the_processor_keeps_all_channels_and_bits(tmp_path: Path) -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    processor = EsvitImageProcessor(
        num_channels=5,
        value_range=(0, 10000),
        image_mean=mean,
        image_std=std,
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
    )
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded).__module__ == esvit_hf.EsvitImageProcessor.__module__
    image = RANDOM.integers(0, 10001, (16, 16, 5)).astype(np.uint16)
    expected = (torch.from_numpy(image / 10000) - torch.tensor(mean)) / torch.tensor(std)
    for each in (processor, loaded):
        found = each([image, image], return_tensors="pt").pixel_values
        assert found.shape == (2, 5, 16, 16)
        torch.testing.assert_close(
            found[1], expected.permute(2, 0, 1).float(), atol=1e-5, rtol=1e-5
        )
    large = image.repeat(4, axis=0).repeat(3, axis=1)
    found = processor(large, return_tensors="pt").pixel_values[0]
    assert found.shape == (5, 16, 16)
    assert found.std() > 0.5


def test_usual_processors_do_not_speak_of_channels() -> None:
    assert not {"num_channels", "value_range"} & set(EsvitImageProcessor().to_dict())


@pytest.mark.parametrize(
    ("image", "channels", "value_range"),
    [
        (RANDOM.integers(0, 9000, (16, 16, 5)).astype(np.uint16), 5, (0, 10000)),
        (RANDOM.integers(0, 256, (16, 16, 5)).astype(np.uint8), 5, None),
        (RANDOM.random((7, 16, 16)).astype(np.float32), 7, None),
        (Image.fromarray(RANDOM.integers(0, 4096, (16, 16)).astype(np.uint16)), 3, (0, 4095)),
        (Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)), 1, None),
        (Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)), 3, None),
    ],
)
def test_pretraining_sees_what_the_processor_makes(
    image: object, channels: int, value_range: tuple[float, float] | None
) -> None:
    mean, std = [0.4] * channels, [0.25] * channels
    processor = EsvitImageProcessor(
        num_channels=channels,
        value_range=value_range,
        image_mean=mean,
        image_std=std,
        do_resize=False,
        do_center_crop=False,
    )
    expected = processor(image, return_tensors="pt").pixel_values
    dataset = MultiCropDataset(
        Stored(image), [PLAIN], 0, num_channels=channels, value_range=value_range
    )
    batch = dataset.__getitems__([(0, 0)])
    assert batch.broken == []
    for crop, parameters in zip(batch.crops, batch.parameters, strict=True):
        found = augment(crop, parameters, mean=mean, std=std)
        assert found.shape == (1, channels, 16, 16)
        torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
