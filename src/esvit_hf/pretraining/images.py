"""From a recipe to its images and the loader of their crops."""

from torch.utils.data import DataLoader

from esvit_hf.common.errors import flags_are_called
from esvit_hf.data.items import ItemSource
from esvit_hf.data.multicrop import CropBatch, MultiCropDataset, make_multicrop_loader
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.data.streaming import StreamSource, open_stream
from esvit_hf.pretraining.interruption import leave_signals_to_the_run
from esvit_hf.pretraining.recipe import Recipe

_FLAGS = {name: f"data.{name}" for name in ("config_name", "image_column", "label_column")}


def load_knn_split(recipe: Recipe, field: str) -> ImageSource:
    """Open one split of the data set of the online k-NN.

    Args:
        recipe: the recipe.
        field: of `run` that names the split: `knn_split` or `knn_train_split`.

    Raises:
        ValueError: it cannot be read.
    """
    split = getattr(recipe.run, field)
    with flags_are_called(split=f"run.{field}", **_FLAGS):
        if recipe.run.knn_dataset is None:
            return _load_split(recipe, split)
        return load_image_source(
            recipe.run.knn_dataset,
            split=split,
            label_column=recipe.data.label_column,
            max_image_pixels=recipe.data.max_image_pixels,
        )


def _load_split(recipe: Recipe, split: str, *, labels: bool = True) -> ImageSource:
    return load_image_source(
        recipe.data.dataset,
        split=split,
        config_name=recipe.data.config_name,
        image_column=recipe.data.image_column,
        label_column=recipe.data.label_column,
        max_image_pixels=recipe.data.max_image_pixels,
        labels=labels,
    )


def load_training_images(recipe: Recipe) -> ImageSource | StreamSource:
    """Open the images to train on, by index or as a stream; with labels if they classify others.

    Raises:
        ValueError: they cannot be read.
    """
    with flags_are_called(split="data.train_split", **_FLAGS):
        if not recipe.data.streaming:
            labels = recipe.run.knn_learns_from_training
            return _load_split(recipe, recipe.data.train_split, labels=labels)
        return open_stream(
            recipe.data.dataset,
            split=recipe.data.train_split,
            config_name=recipe.data.config_name,
            image_column=recipe.data.image_column,
            shuffle_buffer=recipe.data.shuffle_buffer,
        )


def make_crop_loader(
    recipe: Recipe, source: ImageSource | ItemSource | StreamSource, sampler: EpochSampler
) -> DataLoader[CropBatch]:
    """Build the loader of the recipe's crops, whose workers outlive a signal to the run."""
    dataset = MultiCropDataset(
        source,
        recipe.data.views,
        recipe.run.seed,
        recipe.data.max_broken_fraction,
        recipe.data.reduce_jpegs,
        recipe.data.max_image_pixels,
        recipe.data.channels,
        recipe.data.value_range,
    )
    return make_multicrop_loader(
        dataset,
        sampler,
        num_workers=recipe.data.num_workers,
        worker_init_fn=leave_signals_to_the_run,
    )
