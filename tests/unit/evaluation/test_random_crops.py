"""Random crops for the linear probe: the same for a seed, epoch and image, and the distribution of
torchvision's.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.cropping import sample_crop
from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.random_crops import AugmentedFeatures, RandomCrops

PROCESSOR = EsvitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


def source(count: int, *, broken: tuple[int, ...] = ()) -> ImageSource:
    """Images whose red is the column and whose green is the row of a pixel."""
    row, column = np.mgrid[0:60, 0:80].astype(np.uint8)
    pixels = np.stack([2 * column, 2 * row, np.zeros_like(row)], axis=2)
    rows: list[dict[str, Any]] = [{"image": PILImage.fromarray(pixels)} for _ in range(count)]
    dataset = Dataset.from_list(rows, features=Features({"image": Image()})).cast_column(
        "image", Image(decode=False)
    )
    encoded = dataset.to_list()
    for index in broken:
        encoded[index]["image"]["bytes"] = b"broken"
    return ImageSource(
        Dataset.from_list(encoded, features=Features({"image": Image(decode=False)}))
    )


def crops(images: ImageSource, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    read = RandomCrops(images, (16, 16), seed=seed, epoch=epoch).read(range(len(images)))
    return np.stack([np.asarray(crop) for crop in read])


def test_crops_depend_on_seed_epoch_and_index_alone() -> None:
    images = source(4)
    first = crops(images)
    assert np.array_equal(first, crops(images))
    assert len(np.unique(first, axis=0)) == 4
    assert not np.array_equal(first, crops(images, epoch=1))
    assert not np.array_equal(first, crops(images, seed=1))
    alone = RandomCrops(images, (16, 16), seed=0, epoch=0).read([2])[0]
    assert np.array_equal(first[2], np.asarray(alone))


def test_places_and_mirroring_are_those_of_torchvision() -> None:
    ours = crops(source(400)).astype(float)
    torch.manual_seed(0)
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(16, scale=(0.08, 1), interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomHorizontalFlip(),
        ]
    )
    image = source(1).read([0])[0]
    theirs = np.stack([np.asarray(reference(image)) for _ in range(400)]).astype(float)
    # Of each crop: where it starts, how wide and high it is, and whether red falls from left to
    # right.
    for measure in (
        lambda batch: batch[:, 8, :, 0].min(axis=1),
        lambda batch: np.abs(batch[:, 8, -1, 0] - batch[:, 8, 0, 0]),
        lambda batch: batch[:, -1, 8, 1] - batch[:, 0, 8, 1],
        lambda batch: np.sign(batch[:, 8, -1, 0] - batch[:, 8, 0, 0]),
    ):
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 0.01


def test_pixels_are_those_of_a_bilinear_resize() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    photo = PILImage.fromarray(noise).resize((240, 180), PILImage.Resampling.BICUBIC)
    images = ImageSource(Dataset.from_dict({"image": [photo] * 12}))
    found = RandomCrops(images, (40, 24), seed=0, epoch=0).read(range(12))
    for index, crop in enumerate(found):
        assert crop.size == (40, 24)
        generator = random.Random(f"0 0 {index}")
        (top, left, height, width), mirrored = sample_crop(
            generator, 240, 180, scale=(0.08, 1), flip_probability=0.5
        )
        expected = v2.functional.resized_crop(
            photo, top, left, height, width, [24, 40], v2.InterpolationMode.BILINEAR
        )
        expected = v2.functional.hflip(expected) if mirrored else expected
        difference = np.abs(np.asarray(crop).astype(int) - np.asarray(expected))
        assert difference.max() <= 1


@pytest.fixture(scope="module")
def backbone() -> RegionBackbone:
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    return RegionBackbone(EsvitSwinModel(config)).eval()


def augmented(
    backbone: RegionBackbone, images: ImageSource, processor: Any = PROCESSOR
) -> AugmentedFeatures:
    options: dict[str, Any] = {"blocks": 2, "seed": 3, "batch_size": 4, "num_workers": 0}
    return AugmentedFeatures(backbone, images, processor, accelerator=Accelerator(), **options)


def test_features_are_those_of_the_normalized_crops(backbone: RegionBackbone) -> None:
    images = source(5)
    features = augmented(backbone, images)
    found = features(7)
    pixels = []
    for crop in RandomCrops(images, (32, 32), seed=3, epoch=7).read(range(5)):
        values = v2.functional.to_dtype(
            v2.functional.pil_to_tensor(crop), torch.float32, scale=True
        )
        pixels.append(v2.functional.normalize(values, PROCESSOR.image_mean, PROCESSOR.image_std))
    with torch.no_grad():
        torch.testing.assert_close(
            found, backbone.pooled_blocks(torch.stack(pixels), 2), rtol=1e-4, atol=1e-5
        )
    assert not torch.equal(found, features(8))


def test_broken_images_are_named(backbone: RegionBackbone) -> None:
    images = source(5, broken=(3,))
    assert isinstance(RandomCrops(images, (32, 32), seed=0, epoch=0).read([3])[0], BrokenImage)
    with pytest.raises(ValueError, match=r"^1 of 5 images cannot be decoded.*image 3: "):
        augmented(backbone, images)(0)


def test_a_processor_without_a_size(backbone: RegionBackbone, tmp_path: Path) -> None:
    processor = EsvitImageProcessor()
    processor.crop_size = processor.size = None
    with pytest.raises(ValueError, match="names no size of its output.*leave out --linear.augment"):
        augmented(backbone, source(2), processor)


def test_images_that_keep_their_values_are_refused_at_once(backbone: RegionBackbone) -> None:
    with pytest.raises(ValueError, match="8-bit RGB images alone: leave out --linear.augment"):
        augmented(backbone, source(2), EsvitImageProcessor(value_range=[0, 10000]))
