"""A linear probe as a classifier that loads with transformers."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedConfig, PreTrainedModel

from esvit_hf.common.files import check_writable, give_usual_modes
from esvit_hf.evaluation.classifiers.linear_probe import LinearProbeResult
from esvit_hf.models.modeling_esvit_common import EsvitForImageClassification

__all__ = ["check_probe_fits", "save_probe"]


def check_probe_fits(model: PreTrainedModel, blocks: Sequence[int], folder: Path) -> None:
    """Check that a probe of a network can become its classifier, before anything is computed.

    Args:
        model: the network.
        blocks: numbers of last blocks that the probe chooses from.
        folder: where the classifier will be saved.

    Raises:
        ValueError: the network's classifier is not one linear layer on what the probe sees, or the
            folder is taken or cannot be written.
    """
    if list(blocks) != [1]:
        raise ValueError(
            f"--linear.blocks is {list(blocks)}: a classifier sees the view feature alone, so a "
            f"probe of more blocks cannot be saved; set linear.blocks to [1], or leave "
            f"linear.output_dir out"
        )
    if not issubclass(_classifier_class(model), EsvitForImageClassification):
        raise ValueError(
            f"the classifier of {type(model).__name__} is not one linear layer on its view "
            f"feature, so a probe cannot be saved as one; take a network of this package, or leave "
            f"linear.output_dir out"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"linear.output_dir {str(folder)!r} exists and is not an empty folder: give another "
            f"name"
        )
    try:
        check_writable(folder)
    except OSError as error:
        raise ValueError(
            f"linear.output_dir {str(folder)!r} cannot be written ({error}): give another name"
        ) from error


def save_probe(
    folder: Path,
    model: PreTrainedModel,
    image_processor: Any,
    probe: LinearProbeResult,
    class_names: Sequence[str],
) -> PreTrainedConfig:
    """Save network and probe as one classifier, with its image processor.

    Args:
        folder: to write; new or empty.
        model: the frozen network.
        image_processor: what prepares its images.
        probe: what was trained on its view features.
        class_names: names of the C classes.

    Returns:
        Configuration of the classifier.
    """
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: number for number, name in enumerate(class_names)}
    classifier = _classifier_class(model)(config)
    classifier.network.load_state_dict(model.state_dict())
    with torch.no_grad():
        classifier.classifier.weight.copy_(probe.weight)
        classifier.classifier.bias.copy_(probe.bias)
    classifier.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    give_usual_modes(folder)
    saved: PreTrainedConfig = classifier.config
    return saved


def _classifier_class(model: PreTrainedModel) -> type[Any]:
    # A configuration without a classifier maps to nothing.
    found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(model.config), object)
    return found if isinstance(found, type) else object
