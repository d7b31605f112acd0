"""Color augmentation: each operation against Pillow and torchvision at the same parameters, then
all together.
"""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchvision.transforms import functional as F

from esvit_hf.data.color import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    JITTER_ORDERS,
    PARAMETER_LAYOUT,
    ColorSample,
    augment,
    gaussian_blur,
    pack_color_samples,
)
from esvit_hf.data.views import ViewSpec

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
BRIGHTNESS_FIRST = JITTER_ORDERS.index((0, 1, 2, 3))


def photographs(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) uint8: smooth colors with hard edges and some grain."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (size, size), 3
        )
        pixels = np.asarray(coarse) + generator.normal(0, 5, (size, size, 1))
        pixels[: size // 4, : size // 3] = generator.integers(0, 256, 3)
        images.append(pixels.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images))


def apply(
    crops: torch.Tensor, samples: list[ColorSample], *, gray_images: bool = False
) -> torch.Tensor:
    """Augmented crops in 0..255, before normalization."""
    parameters = pack_color_samples(samples, gray_images=gray_images)
    return augment(crops, parameters, mean=(0, 0, 0), std=(1, 1, 1)) * 255


def pillow(crop: torch.Tensor) -> Image.Image:
    return Image.fromarray(crop.permute(1, 2, 0).numpy())


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def in_torchvision(crop: torch.Tensor, sample: ColorSample) -> torch.Tensor:
    """Jitter and grayscale by torchvision on float tensors, in 0..255."""
    result = crop.float() / 255
    for operation in JITTER_ORDERS[sample.order] if sample.order >= 0 else ():
        name = OPERATIONS[operation]
        result = getattr(F, f"adjust_{name}")(result, getattr(sample, name))
    if sample.grayscale:
        result = F.rgb_to_grayscale(result, num_output_channels=3)
    return result * 255


SAMPLES = st.builds(
    ColorSample,
    order=st.integers(-1, len(JITTER_ORDERS) - 1),
    brightness=st.floats(0.6, 1.4),
    contrast=st.floats(0.6, 1.4),
    saturation=st.floats(0.8, 1.2),
    hue=st.floats(-0.1, 0.1),
    grayscale=st.booleans(),
    blur_sigma=st.sampled_from([0.0, 0.1, 0.7, 2.0]),
    solarize=st.booleans(),
)


def test_nothing_but_normalization() -> None:
    crops = photographs(3, 16)
    expected = F.normalize(crops.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    result = augment(crops, pack_color_samples([ColorSample()] * 3))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.93, 1.4, 2.5])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_agree_with_pillow(name: str, factor: float) -> None:
    crops = photographs(4, 40)
    result = apply(crops, [ColorSample(order=BRIGHTNESS_FIRST, **{name: factor})] * 4)
    for crop, ours in zip(crops, result, strict=True):
        expected = tensor(getattr(F, f"adjust_{name}")(pillow(crop), factor))
        # Pillow rounds down, and rounds the mean and the gray values by which contrast and
        # saturation blend.
        assert (ours - expected).abs().max() <= 1 + abs(1 - factor)


@pytest.mark.parametrize("rotation", [-0.5, -0.1, -0.03, 0.05, 0.1, 0.4])
def test_hue_agrees_with_pillow_and_exactly_with_floats(rotation: float) -> None:
    crops = photographs(4, 40)
    sample = ColorSample(order=BRIGHTNESS_FIRST, hue=rotation)
    for crop, ours in zip(crops, apply(crops, [sample] * 4), strict=True):
        torch.testing.assert_close(
            ours, F.adjust_hue(crop.float() / 255, rotation) * 255, rtol=0, atol=2e-3
        )
        difference = (ours - tensor(F.adjust_hue(pillow(crop), rotation))).abs()
        assert difference.max() <= 16
        assert difference.mean() <= 1.5


def test_hue_of_gray_and_of_pure_colors() -> None:
    colors = torch.tensor(
        [
            [0, 0, 0],
            [255, 255, 255],
            [77, 77, 77],
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [255, 255, 0],
        ]
    )
    crops = colors.to(torch.uint8)[:, :, None, None].expand(-1, -1, 2, 2)
    turned = apply(crops, [ColorSample(order=BRIGHTNESS_FIRST, hue=1 / 3)] * len(colors))[
        :, :, 0, 0
    ]
    expected = [
        [0, 0, 0],
        [255, 255, 255],
        [77, 77, 77],
        [0, 255, 0],
        [0, 0, 255],
        [255, 0, 0],
        [0, 255, 255],
    ]
    torch.testing.assert_close(turned, torch.tensor(expected).float(), rtol=0, atol=1e-2)


def test_grayscale_agrees_with_pillow() -> None:
    crops = photographs(3, 40)
    result = apply(crops, [ColorSample(grayscale=True), ColorSample(), ColorSample(grayscale=True)])
    for place in (0, 2):
        assert (result[place] - tensor(F.to_grayscale(pillow(crops[place]), 3))).abs().max() <= 0.51
    torch.testing.assert_close(result[1], crops[1].float(), rtol=0, atol=1e-3)


def test_solarize_agrees_with_pillow() -> None:
    crops = photographs(3, 40)
    result = apply(crops, [ColorSample(), ColorSample(solarize=True), ColorSample(solarize=True)])
    torch.testing.assert_close(result[0], crops[0].float(), rtol=0, atol=1e-3)
    for place in (1, 2):
        expected = tensor(ImageOps.solarize(pillow(crops[place]), 128))
        torch.testing.assert_close(result[place], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.3, 2.0])
def test_blur_agrees_with_pillow_loosely(sigma: float) -> None:
    crops = photographs(3, 64)
    for crop, ours in zip(crops, apply(crops, [ColorSample(blur_sigma=sigma)] * 3), strict=True):
        difference = (ours - tensor(pillow(crop).filter(ImageFilter.GaussianBlur(sigma)))).abs()
        assert difference.mean() <= 2
        assert difference.mean() < 0.5 * (crop.float() - ours).abs().mean() + 0.5


@pytest.mark.parametrize("size", [1, 2, 7, 33])
def test_blur_is_the_gaussian_with_replicated_borders(size: int) -> None:
    sigmas = [0.1, 0.5, 1.0, 2.0]
    pixels = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (4, 2, size, size))).float()
    result = gaussian_blur(pixels, torch.tensor(sigmas))
    reach = 12
    for image, sigma, ours in zip(pixels.numpy().astype(np.float64), sigmas, result, strict=True):
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        taps /= taps.sum()
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        for axis in (1, 2):
            padded = np.apply_along_axis(np.convolve, axis, padded, taps, mode="valid")
        np.testing.assert_allclose(ours.numpy(), padded, atol=2e-3 if size > 2 else 0.2)


@pytest.mark.parametrize("order", range(len(JITTER_ORDERS)))
def test_every_order_of_the_jitter(order: int) -> None:
    # Strong factors, so that clamping makes the order matter.
    sample = ColorSample(order, brightness=1.4, contrast=1.4, saturation=0.4, hue=0.1)
    crops = photographs(2, 24, seed=order)
    result = apply(crops, [sample, ColorSample()])
    torch.testing.assert_close(result[0], in_torchvision(crops[0], sample), rtol=0, atol=0.3)
    torch.testing.assert_close(result[1], crops[1].float(), rtol=0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=12))
def test_mixed_batches_agree_with_the_operations_one_by_one(samples: list[ColorSample]) -> None:
    crops = photographs(len(samples), 17, seed=len(samples))
    result = apply(crops, samples)
    for crop, sample, ours in zip(crops, samples, result, strict=True):
        expected = in_torchvision(crop, sample)
        if sample.blur_sigma:
            expected = gaussian_blur(expected[None], torch.tensor([sample.blur_sigma]))[0]
        if sample.solarize:
            expected = torch.where(expected < 128, expected, 255 - expected)
        # torchvision's gray weights have four digits, and solarize has a step at 128.
        difference = (ours - expected).abs()
        assert torch.quantile(difference, 0.98) < 0.5
        assert difference.max() < 1.5


@settings(max_examples=25, deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=12))
def test_gray_images_may_go_through_one_channel(samples: list[ColorSample]) -> None:
    crops = photographs(len(samples), 17)[:, :1].expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(
        apply(crops, samples, gray_images=True), apply(crops, samples), rtol=0, atol=5e-3
    )


def drawn(count: int) -> list[ColorSample]:
    view = ViewSpec(count=1, size=8, scale=(0.5, 1.0), solarize_probability=0.3)
    generator = random.Random(0)
    return [view.sample_color(generator) for _ in range(count)]


def test_a_crop_does_not_depend_on_its_batch() -> None:
    crops, samples = photographs(10, 20), drawn(10)
    together = apply(crops, samples)
    alone = torch.cat([apply(crops[place, None], [sample]) for place, sample in enumerate(samples)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)


def test_crops_are_read_only() -> None:
    crops = photographs(10, 20)
    before = crops.clone()
    apply(crops, drawn(10))
    apply(crops, drawn(10), gray_images=True)
    assert torch.equal(crops, before)


def test_half_precision_is_only_rounded_at_the_end() -> None:
    crops, parameters = photographs(10, 20), pack_color_samples(drawn(10))
    exact = augment(crops, parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = augment(crops, parameters, torch.bfloat16)
        assert torch.equal(augment(crops, parameters), exact)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize("gray_images", [False, True])
def test_no_value_is_read_back_from_the_device(gray_images: bool) -> None:
    # Fake tensors have no values: anything that needs one, and so would wait for a device, raises.
    parameters = pack_color_samples(drawn(30), gray_images=gray_images)
    plan = parameters.plan
    assert min(plan.num_grayscale, plan.num_blurred, plan.num_solarized, sum(plan.active_slots)) > 0
    with FakeTensorMode() as mode:
        fake = parameters._replace(
            **{name: mode.from_tensor(getattr(parameters, name)) for name in PARAMETER_LAYOUT}
        )
        result = augment(mode.from_tensor(photographs(30, 20)), fake, torch.bfloat16)
        with pytest.raises(DataDependentOutputException):
            fake.hue.max().item()
    assert (result.shape, result.dtype) == ((30, 3, 20, 20), torch.bfloat16)


def test_a_view_without_jitter_strength_changes_nothing() -> None:
    quiet = ViewSpec(
        count=1,
        size=8,
        scale=(0.5, 1.0),
        jitter=(0, 0, 0, 0),
        gray_probability=0,
        blur_probability=0,
    )
    crops = photographs(4, 20)
    generator = random.Random(0)
    parameters = pack_color_samples(
        [replace(quiet, jitter_probability=1.0).sample_color(generator) for _ in range(4)]
    )
    assert not any(parameters.plan.active_slots)
    assert not parameters.plan.hue
    result = augment(crops, parameters, mean=(0, 0, 0), std=(1, 1, 1)) * 255
    torch.testing.assert_close(result, crops.float(), rtol=0, atol=1e-3)


def test_channels_that_are_no_colors_are_treated_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 5, 8, 8, generator=generator) * 200
    plain = {"mean": [0.0] * 5, "std": [1 / 255] * 5}

    def changed(**color: Any) -> Tensor:
        return augment(pixels, pack_color_samples([ColorSample(**color)]), **plain)

    torch.testing.assert_close(changed(), pixels)
    # About colors, which these channels are not.
    for color in ({"hue": 0.3}, {"saturation": 1.4}, {"grayscale": True}):
        torch.testing.assert_close(changed(order=0, **color), pixels)
    brighter = (pixels * 1.2).clamp(0, 255)
    torch.testing.assert_close(changed(order=0, brightness=1.2), brighter)
    contrast = (pixels * 0.7 + 0.3 * pixels.mean()).clamp(0, 255)
    torch.testing.assert_close(changed(order=0, contrast=0.7), contrast)
    inverted = torch.where(pixels < 128, pixels, 255 - pixels)
    torch.testing.assert_close(changed(solarize=True), inverted)
    blurred = changed(blur_sigma=1.0)
    for channel in range(5):
        one = gaussian_blur(pixels[:, channel : channel + 1], torch.tensor([1.0]))
        torch.testing.assert_close(blurred[:, channel : channel + 1], one)
