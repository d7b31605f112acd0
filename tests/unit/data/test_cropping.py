"""Crops: the geometry of torchvision's RandomResizedCrop, and the pixels of Pillow's crop and
resize.
"""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from esvit_hf.data.cropping import (
    Crop,
    CropBox,
    cut_crops,
    jpeg_reduction,
    reduce_box,
    sample_crop,
    sample_crop_box,
)

SCALES = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with edges and some grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        (width, height), 3
    )
    pixels = np.asarray(coarse).astype(int) + generator.normal(0, 6, (height, width, 1))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 60)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def crop(image: Image.Image, box: CropBox, size: int, mirrored: bool = False) -> np.ndarray:
    output = torch.zeros(3, size, size, dtype=torch.uint8)
    cut_crops(image, [Crop(box, mirrored)], [output])
    return output.numpy().transpose(1, 2, 0).astype(int)


def pillow_crop(image: Image.Image, box: CropBox, size: int) -> np.ndarray:
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = image.crop(corners).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized.convert("RGB")).astype(int)


@given(st.integers(0, 2**32), st.integers(1, 700), st.integers(1, 700), SCALES)
def test_boxes_lie_within_the_image(
    seed: int, width: int, height: int, scale: tuple[float, float]
) -> None:
    box = sample_crop_box(random.Random(seed), width, height, scale)
    assert box.top >= 0 <= box.left
    assert box.height >= 1 <= box.width
    assert box.top + box.height <= height
    assert box.left + box.width <= width


@given(
    st.integers(0, 2**32),
    st.integers(200, 260),
    st.integers(200, 260),
    st.floats(0.05, 0.5),
    st.floats(0, 0.1),
)
def test_boxes_have_the_asked_area_and_ratio(
    seed: int, width: int, height: int, low: float, spread: float
) -> None:
    box = sample_crop_box(random.Random(seed), width, height, (low, low + spread))
    share = box.height * box.width / (width * height)
    # Rounding moves each side by half a pixel.
    slack = 1 + 2 / min(box.height, box.width)
    assert low / slack <= share <= (low + spread) * slack
    assert 3 / 4 / slack <= box.width / box.height <= 4 / 3 * slack


@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0)])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (96, 320)])
def test_boxes_are_distributed_as_in_torchvision(
    scale: tuple[float, float], width: int, height: int
) -> None:
    generator = random.Random(1)
    torch.manual_seed(1)
    count = 3000
    image = Image.new("L", (width, height))
    ours = np.array(
        [sample_crop_box(generator, width, height, scale) for _ in range(count)], dtype=float
    )
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)],
        dtype=float,
    )
    for name, values, expected in (
        *zip(("top", "left", "height", "width"), ours.T, theirs.T, strict=True),
        ("area", ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        ("log ratio", np.log(ours[:, 3] / ours[:, 2]), np.log(theirs[:, 3] / theirs[:, 2])),
    ):
        # Kolmogorov-Smirnov distance; 2.2 / sqrt(count / 2) is exceeded once in ten thousand times.
        points = np.sort(np.concatenate([values, expected]))
        distance = np.abs(
            np.searchsorted(np.sort(values), points, "right")
            - np.searchsorted(np.sort(expected), points, "right")
        ).max()
        assert distance / count < 2.2 / np.sqrt(count / 2), name


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (300, 7), (50, 50)])
def test_fallback_is_the_one_of_torchvision(width: int, height: int) -> None:
    # No box of a thousandfold area fits, so both give up drawing.
    scale = (1000.0, 1000.0)
    expected = RandomResizedCrop.get_params(
        Image.new("L", (width, height)), list(scale), [3 / 4, 4 / 3]
    )
    assert sample_crop_box(random.Random(0), width, height, scale) == tuple(expected)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        (CropBox(20, 10, 300, 380), 224),
        (CropBox(33, 57, 100, 120), 96),
        (CropBox(0, 0, 375, 500), 224),
        (CropBox(100, 200, 40, 30), 96),
        (CropBox(5, 6, 96, 96), 96),
        (CropBox(374, 499, 1, 1), 32),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(box: CropBox, size: int, mode: str) -> None:
    image = photograph(500, 375).convert(mode)
    difference = np.abs(crop(image, box, size) - pillow_crop(image, box, size))
    assert (difference > 0).mean() < 0.02
    assert (difference > 2).mean() < 0.0005


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pixels_of_unclipped_noise_are_those_of_pillow(data: st.DataObject) -> None:
    width, height, size = (data.draw(st.integers(1, 80)) for _ in range(3))
    noise = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        80, 176, (height, width, 3), dtype=np.uint8
    )
    box = sample_crop_box(random.Random(data.draw(st.integers(0, 99))), width, height, (0.05, 1.0))
    image = Image.fromarray(noise)
    assert np.abs(crop(image, box, size) - pillow_crop(image, box, size)).max() <= 2


def test_mirroring_has_the_asked_probability_and_leaves_the_box_alone() -> None:
    for probability in (0.0, 0.5, 1.0):
        crops = [
            sample_crop(random.Random(seed), 60, 40, scale=(0.2, 0.6), flip_probability=probability)
            for seed in range(400)
        ]
        assert sum(one.mirrored for one in crops) / 400 == pytest.approx(probability, abs=0.08)
        assert [one.box for one in crops] == [
            sample_crop_box(random.Random(seed), 60, 40, (0.2, 0.6)) for seed in range(400)
        ]


def test_flip_mirrors_left_and_right() -> None:
    image, box = photograph(120, 80), CropBox(10, 15, 60, 70)
    np.testing.assert_array_equal(
        crop(image, box, 32, mirrored=True), crop(image, box, 32)[:, ::-1]
    )


def test_jpeg_reduction_never_leaves_a_crop_to_be_enlarged() -> None:
    large, small = CropBox(0, 0, 900, 1000), CropBox(0, 0, 400, 390)
    assert jpeg_reduction([large], [224]) == 4
    assert jpeg_reduction([large], [100]) == 8
    assert jpeg_reduction([large, small], [224, 96]) == 4
    assert jpeg_reduction([large, small], [224, 196]) == 1
    assert jpeg_reduction([small], [195]) == 2
    assert jpeg_reduction([CropBox(0, 0, 5, 5)], [224]) == 1


@given(
    st.integers(0, 2**32), st.integers(16, 3000), st.integers(16, 3000), st.sampled_from([2, 4, 8])
)
def test_reduced_boxes_lie_where_they_lay(
    seed: int, width: int, height: int, reduction: int
) -> None:
    box = sample_crop_box(random.Random(seed), width, height, (0.3, 1.0))
    small_width, small_height = -(-width // reduction), -(-height // reduction)
    reduced = reduce_box(box, reduction, small_width, small_height)
    assert min(reduced.top, reduced.left) >= 0
    assert reduced.top + reduced.height <= small_height
    assert reduced.left + reduced.width <= small_width
    assert np.abs(np.array(reduced) * reduction - np.array(box)).max() <= reduction
