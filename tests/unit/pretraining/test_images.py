"""From the fields of a recipe to its images and crops."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from tests.support.photo_folders import noise

from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.multicrop import TooManyBrokenImagesError
from esvit_hf.data.sources import ImageSource
from esvit_hf.pretraining.images import load_training_images, make_crop_loader
from esvit_hf.pretraining.recipe_reading import load_recipe

VIEWS = [{"count": 2, "size": 16, "scale": [0.9, 1.0], "teacher": True}]


def first_crops(folder: Path, **data: object) -> torch.Tensor:
    """Crops of the first image with some fields of the recipe's data."""
    given = {"dataset": str(folder), "views": VIEWS, "num_workers": 0, **data}
    recipe = load_recipe({"data": given, "schedule": {"num_epochs": 40}})
    source = load_training_images(recipe)
    sampler = source.sampler(1, 0, num_workers=0, total_steps=1)
    return torch.stack(next(iter(make_crop_loader(recipe, source, sampler))).crops)


def test_reduced_decoding_is_a_field_of_the_recipe(tmp_path: Path) -> None:
    noise(0, 160, 160).save(tmp_path / "1.jpg", quality=95)
    default, reduced, whole = (
        first_crops(tmp_path, **fields)
        for fields in ({}, {"reduce_jpegs": True}, {"reduce_jpegs": False})
    )
    assert torch.equal(default, reduced)
    assert not torch.equal(whole, reduced)


def test_the_limit_of_pixels_is_a_field_of_the_recipe(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    first_crops(tmp_path, max_image_pixels=400)
    with pytest.raises(TooManyBrokenImagesError, match="more than the limit of 399"):
        first_crops(tmp_path, max_image_pixels=399)
    recipe = load_recipe({"data": {"dataset": str(tmp_path), "max_image_pixels": 399}})
    source = load_training_images(recipe)
    assert isinstance(source, ImageSource)
    assert isinstance(source.read([0])[0], BrokenImage)


def test_labels_of_any_kind_are_no_matter(tmp_path: Path) -> None:
    noise(0, 20, 20).save(tmp_path / "1.png")
    images = {"image": [str(tmp_path / "1.png")] * 2, "label": [[0.5], []]}
    Dataset.from_dict(images).cast_column("image", ImageFeature()).save_to_disk(tmp_path / "rows")
    assert (
        len(load_training_images(load_recipe({"data": {"dataset": str(tmp_path / "rows")}}))) == 2
    )
