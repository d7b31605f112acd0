"""What starts a run: a recipe, and what Python gives beside it, as settled values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from accelerate import Accelerator
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
)
from datasets import Image as ImageFeature
from transformers import PretrainedConfig, PreTrainedModel

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.common.files import expand_home, write_aside
from esvit_hf.data.items import Items, ItemSource
from esvit_hf.data.loading import load_dataset_split, take_slices
from esvit_hf.data.sources import ImageSource, find_image_column
from esvit_hf.data.streaming import StreamSource
from esvit_hf.hub.recipe_file import public_place
from esvit_hf.pretraining.automatic import (
    Choice,
    apply_choices,
    choose_precision,
    choose_values,
    describe_choices,
    draft_recipe,
    recall_choices,
)
from esvit_hf.pretraining.build import check_model
from esvit_hf.pretraining.checkpoint import choose_checkpoint
from esvit_hf.pretraining.images import load_training_images
from esvit_hf.pretraining.launching import decide_together
from esvit_hf.pretraining.machine import look_at_machine
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import (
    automatic_fields,
    is_folder_of_images,
    load_recipe,
    read_values,
)
from esvit_hf.pretraining.shipped_recipes import AUTO

__all__ = ["Data", "Model", "Start", "settle_values"]

Data: TypeAlias = str | Path | Dataset | DatasetDict | Sequence[str | Path] | Items
Model: TypeAlias = str | Path | PretrainedConfig | PreTrainedModel | RegionBackbone

_START = "start"
"""Folder, in that of the run, of a network that was given in memory."""
_IN_MEMORY = "in-memory data set"
_OF_ITEMS = ("__len__", "__getitem__")
# What a configuration says of its class, which the recipe names otherwise.
_NO_FIELDS = {"model_type", "transformers_version", "architectures", "_name_or_path", "dtype"}


class Start:
    """A run that is about to start.

    Args:
        recipe: recipe as for `read_values`, one that was loaded, or a folder of images, which
            stands for the recipe `auto` with them; that recipe if None.
        overrides: values by name with dots.
        data: images instead of the recipe's.
        model: network instead of the recipe's.
        fields: further values by name with dots, which `overrides` replaces.

    Attributes:
        values: mapping of sections to fields.
        draft: the recipe, whose automatic fields have usual values but for the precision.

    Raises:
        ValueError: an argument or a field cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe | str | Path | Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        data: Data | None = None,
        model: Model | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(recipe, (str, Path)) and is_folder_of_images(recipe):
            if data is not None:
                raise ValueError(f"{recipe} is a folder of images, and data is given too")
            recipe, data = None, recipe
        changes = dict(fields or {})
        self._data = None if isinstance(data, (str, Path)) else data
        if data is not None:
            changes["data.dataset"] = _name_data(data)
        self._network = _find_network(model)
        if model is not None:
            changes |= _describe_model(model)
        source = asdict(recipe) if isinstance(recipe, Recipe) else recipe
        self.values = read_values(
            AUTO if source is None else source, {**changes, **(overrides or {})}
        )
        self._place_network()
        self._recalled = self._recall()
        if "run.mixed_precision" in automatic_fields(self.values):
            self._choices = [choose_precision(look_at_machine())]
            self.values = apply_choices(self.values, self._choices)
        else:
            self._choices = []
        self.draft = draft_recipe(self.values)

    def settle(
        self, accelerator: Accelerator
    ) -> tuple[Recipe, ImageSource | ItemSource | StreamSource]:
        """Open the images, choose the automatic fields and say what was chosen.

        Args:
            accelerator: the process's accelerator.

        Returns:
            The recipe and the images.

        Raises:
            ValueError: images or network cannot be opened, or the output folder holds a run.
        """
        run = self.draft.run
        if not run.resume:
            decide_together(
                accelerator,
                lambda: choose_checkpoint(run.output_dir, resume=False, overwrite=run.overwrite),
            )
        if self._network is not None:
            decide_together(accelerator, self._write_network)
        decide_together(accelerator, lambda: check_model(self.draft))
        source = self._open_images()
        if self._recalled:
            accelerator.print(
                f"resume: {', '.join(self._recalled)} as the run was started, instead of auto"
            )
        if automatic_fields(self.values):
            self._choices += decide_together(
                accelerator, lambda: choose_values(self.values, look_at_machine(), len(source))
            )
            self.values = apply_choices(self.values, self._choices)
        if self._choices:
            accelerator.print(describe_choices(self._choices))
        return load_recipe(self.values), source

    def open_knn_images(self, recipe: Recipe) -> ImageSource | None:
        """Open the images that the online k-NN classifies, if they are given in memory.

        Args:
            recipe: the settled recipe.

        Returns:
            The images; None if there is no online k-NN, or the recipe names its images.

        Raises:
            ValueError: there is no such split.
        """
        if isinstance(self._data, DatasetDict) and recipe.run.knn_learns_from_training:
            return self._open_split(self._data, recipe.run.knn_split)
        return None

    def _open_split(self, data: DatasetDict, split: str) -> ImageSource:
        settings = self.draft.data
        return ImageSource(
            take_slices(_IN_MEMORY, split, list(data), lambda names: {n: data[n] for n in names}),
            image_column=settings.image_column,
            label_column=settings.label_column,
            name=f"{_IN_MEMORY} (split {split})",
            max_image_pixels=settings.max_image_pixels,
            labels=self.draft.run.knn_learns_from_training,
        )

    def _place_network(self) -> None:
        if self._network is not None:
            folder = draft_recipe(self.values).run.output_dir / _START
            self.values = apply_choices(
                self.values, [Choice("model.name", str(folder), "it is kept there")]
            )

    def _recall(self) -> list[str]:
        """Take automatic fields from the run that goes on; return their names."""
        run = draft_recipe(self.values).run
        recalled = recall_choices(self.values, run.output_dir) if run.resume else []
        self.values = apply_choices(self.values, recalled)
        return [choice.field for choice in recalled]

    def _write_network(self) -> None:
        assert self._network is not None
        folder = Path(self.draft.model.name)
        if self.draft.run.resume and folder.exists():
            return
        fields = vars(self._network.config)
        before = dict(fields)
        with write_aside(folder) as aside:
            self._network.save_pretrained(aside)
        # It notes in the configuration where the code lies.
        fields.clear()
        fields.update(before)

    def _open_images(self) -> ImageSource | ItemSource | StreamSource:
        data, settings = self._data, self.draft.data
        if data is None:
            return load_training_images(self.draft)
        if isinstance(data, DatasetDict):
            return self._open_split(data, settings.train_split)
        if self.draft.run.knn_learns_from_training:
            raise ValueError(
                "run.knn_every_epochs is above 0, and the data in memory is a single split: give "
                "a datasets.DatasetDict with the split run.knn_split as well, name a data set in "
                "run.knn_dataset, or set it to 0"
            )
        column, limit = settings.image_column, settings.max_image_pixels
        if isinstance(data, Dataset):
            return ImageSource(data, image_column=column, max_image_pixels=limit, labels=False)
        if _is_list_of_paths(data):
            rows = _join(data, split=settings.train_split, image_column=column)
            return ImageSource(rows, name=settings.dataset, max_image_pixels=limit)
        return ItemSource(data, image_column=column, max_image_pixels=limit)


def settle_values(values: Mapping[str, Any]) -> Recipe:
    """Choose the automatic fields of a recipe, whose images are opened only if there are any.

    Args:
        values: mapping of sections to fields.

    Returns:
        The recipe.

    Raises:
        ValueError: as `load_recipe`, or the images cannot be opened.
    """
    draft = draft_recipe(values)
    if not automatic_fields(values):
        return draft
    num_images = len(load_training_images(draft))
    return load_recipe(apply_choices(values, choose_values(values, look_at_machine(), num_images)))


def _is_list_of_paths(data: Any) -> TypeGuard[Sequence[str | Path]]:
    return isinstance(data, (list, tuple)) and all(isinstance(each, (str, Path)) for each in data)


def _name_data(data: Any) -> str:
    """What the recipe says of data."""
    if isinstance(data, (str, Path)):
        return str(data)
    if isinstance(data, IterableDataset | IterableDatasetDict):
        raise ValueError(
            f"data is of type {type(data).__name__}, which streams: give a datasets.Dataset or "
            f"DatasetDict, or the name or folder of the data"
        )
    if isinstance(data, DatasetDict):
        return _IN_MEMORY
    if isinstance(data, Mapping) or not all(map(partial(hasattr, data), _OF_ITEMS)):
        raise ValueError(
            f"data is of type {type(data).__name__}: give a folder, a list of folders, a name on "
            f"the Hub, a datasets.Dataset, or a data set with a length and items"
        )
    if not len(data):
        raise ValueError("data has no images")
    if _is_list_of_paths(data):
        return ", ".join(dict.fromkeys(public_place(each) for each in data))
    return _IN_MEMORY


def _join(places: Sequence[str | Path], *, split: str, image_column: str | None) -> Dataset:
    """The images of several folders or files, one after the other."""
    files = [str(place) for place in places if expand_home(Path(place)).is_file()]
    parts = []
    for place in map(str, places):
        if place in files and not place.endswith(".parquet"):
            rows, column = Dataset.from_dict({"image": [str(expand_home(Path(place)))]}), "image"
        else:
            rows = load_dataset_split(place, split=split)
            column = find_image_column(rows.features, image_column, place)
        rows = rows.select_columns([column])
        rows = rows if column == "image" else rows.rename_column(column, "image")
        parts.append(rows.cast_column("image", ImageFeature()))
    return concatenate_datasets(parts)


def _find_network(model: Any) -> PreTrainedModel | None:
    if model is None or isinstance(model, (str, Path, PretrainedConfig)):
        return None
    if isinstance(model, RegionBackbone):
        return model.model
    if isinstance(model, PreTrainedModel):
        return model
    raise ValueError(
        f"model is of type {type(model).__name__}: give a folder, a name on the Hub, a "
        f"configuration or a network of transformers; AutoModel.from_pretrained('timm/...') makes "
        f"one of a timm network"
    )


def _describe_model(model: Any) -> dict[str, Any]:
    """What the recipe says of a model; the fields of another one's configuration are dropped."""
    if not isinstance(model, PretrainedConfig):
        return {
            "model.name": str(model) if isinstance(model, (str, Path)) else _START,
            "model.config": {},
        }
    known = type(model)().to_dict().keys() - _NO_FIELDS
    fields = {name: value for name, value in model.to_diff_dict().items() if name in known}
    return {"model.name": model.model_type, "model.config": fields}
