"""What a saved model folder lacks to be loaded by anybody: code, image processor and card."""

import inspect
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from esvit_hf.hub.cards import CARD_FILE, CardFacts, write_card
from esvit_hf.hub.network_rows import network_rows
from esvit_hf.registration.families import FAMILIES

if TYPE_CHECKING:
    from esvit_hf.models.image_processing_esvit import EsvitImageProcessor

__all__ = ["complete_folder", "make_image_processor", "write_own_code"]

_PROCESSOR_FILE = "preprocessor_config.json"
_DEFAULT_IMAGE_SIZE = 224
# The evaluation transform resizes to this multiple of the crop.
_RESIZE_RATIO = 256 / 224


def complete_folder(folder: Path, title: str) -> list[str]:
    """Write the code of this package's classes, the image processor and the card, if a model folder
    lacks them.

    Args:
        folder: with config.json and weights; what is there stays as it is.
        title: heading of the card.

    Returns:
        A sentence about each thing that was written.

    Raises:
        ValueError: the configuration is unreadable, or has channels of unknown statistics.
    """
    config = _read_json(folder / "config.json")
    said = []
    if not (folder / _PROCESSOR_FILE).is_file():
        said.append(_write_processor(folder, config))
    for file, classes in _own_classes(folder).items():
        if not _read_json(folder / file).get("auto_map"):
            _write_code(folder / file, classes)
            said.append(f"the code of what {file} names is added, to load it without esvit-hf")
    if not (folder / CARD_FILE).is_file():
        write_card(folder, _facts(folder, config, title))
        said.append(f"{CARD_FILE} is added, a card; of the training it says nothing: write it in")
    return said


def write_own_code(folder: Path) -> None:
    """Write the code of this package's classes, as it is now, into a model folder.

    Args:
        folder: with config.json and preprocessor_config.json.
    """
    for file, classes in _own_classes(folder).items():
        _write_code(folder / file, classes)


def make_image_processor(image_size: Any) -> "EsvitImageProcessor":
    """Make the evaluation transform for a network.

    Args:
        image_size: of the network, one number or (height, width) in pixels; None if it has none.

    Returns:
        A center crop of that size (224 if none), with the statistics of ImageNet.
    """
    from esvit_hf.models.configuration_esvit_common import as_pair
    from esvit_hf.models.image_processing_esvit import EsvitImageProcessor

    height, width = as_pair(_DEFAULT_IMAGE_SIZE if image_size is None else image_size, "image_size")
    return EsvitImageProcessor(
        size={"shortest_edge": round(max(height, width) * _RESIZE_RATIO)},
        crop_size={"height": height, "width": width},
    )


def _count_parameters(folder: Path) -> int:
    """Count the numbers in the tensors of a model folder."""
    count = 0
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="np") as tensors:
                names = tensors.keys()
                for name in names:
                    count += math.prod(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path.name} is not readable ({error}): write it again") from error
    return count


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is not readable ({error}): write it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no fields: write it again")
    return values


def _own_classes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the classes of this package that load a folder, by file and name of the Auto class."""
    from transformers import (
        MODEL_FOR_BACKBONE_MAPPING,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
        AutoConfig,
    )

    from esvit_hf.models.image_processing_esvit import EsvitImageProcessor

    found: dict[str, dict[str, Any]] = {}
    model_type = str(_read_json(folder / "config.json").get("model_type"))
    if model_type in FAMILIES.values():
        config = type(AutoConfig.for_model(model_type))
        found["config.json"] = {
            "AutoConfig": config,
            "AutoModel": MODEL_MAPPING[config],
            "AutoModelForImageClassification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[config],
            "AutoBackbone": MODEL_FOR_BACKBONE_MAPPING[config],
        }
    processor = _read_json(folder / _PROCESSOR_FILE).get("image_processor_type")
    if processor == EsvitImageProcessor.__name__:
        found[_PROCESSOR_FILE] = {"AutoImageProcessor": EsvitImageProcessor}
    return found


def _write_code(file: Path, classes: Mapping[str, Any]) -> None:
    """Write the files of classes beside a JSON file, and into it where they are."""
    from transformers.dynamic_module_utils import get_relative_import_files

    for each in classes.values():
        source = inspect.getfile(each)
        for path in (source, *get_relative_import_files(source)):
            shutil.copyfile(path, file.parent / Path(path).name)
    places = {
        auto: f"{each.__module__.rpartition('.')[2]}.{each.__name__}"
        for auto, each in classes.items()
    }
    content = json.dumps(_read_json(file) | {"auto_map": places}, indent=2, sort_keys=True)
    file.write_text(content + "\n", encoding="utf-8")


def _write_processor(folder: Path, config: Mapping[str, Any]) -> str:
    channels = config.get("num_channels", 3)
    if channels != 3:
        raise ValueError(
            f"the network takes {channels} channels and the folder has no {_PROCESSOR_FILE}: save "
            f"an image processor with their mean and deviation beside it"
        )
    processor = make_image_processor(config.get("image_size"))
    processor.save_pretrained(folder)
    crop = processor.crop_size
    return (
        f"{_PROCESSOR_FILE} is added: a center crop of {crop['height']} x {crop['width']} pixels, "
        f"colors by the mean and deviation of ImageNet; save an image processor of your own in the "
        f"folder if the network was trained with another"
    )


def _facts(folder: Path, config: Mapping[str, Any], title: str) -> CardFacts:
    from esvit_hf.hub.heads_file import HEADS_FILE

    model_type = str(config.get("model_type"))
    classifies = any("ForImageClassification" in name for name in config.get("architectures") or ())
    # The library does not write labels where there are two.
    classes = len(config.get("id2label") or range(2)) if classifies else 0
    return CardFacts(
        title=title,
        name=title,
        summary=(f"A network of type `{model_type}`. How it was trained is not written down here."),
        model_type=model_type,
        limits=(
            "What the network knows comes from the pictures that it was trained on, which are not "
            "named here."
        ),
        network=network_rows(config, _count_parameters(folder)),
        classes=classes,
        has_heads=(folder / HEADS_FILE).is_file(),
    )
