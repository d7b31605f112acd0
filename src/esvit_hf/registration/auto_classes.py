"""Every network of this package in transformers' Auto classes."""

import importlib
from typing import Any

from esvit_hf.registration.families import FAMILIES, network_modules

__all__ = ["register_networks"]


def register_networks() -> None:
    """Make the Auto classes load and save the networks; a second call changes nothing."""
    # Late: this module is imported by a package that must not import transformers.
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoVideoProcessor,
    )
    from transformers.utils import is_torchvision_available

    processor = _load("EsvitImageProcessor")
    processor.register_for_auto_class()
    for family in FAMILIES:
        config, model = _load(f"{family}Config"), _load(f"{family}Model")
        classifier, backbone = _load(f"{family}ForImageClassification"), _load(f"{family}Backbone")
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForImageClassification.register(config, classifier, exist_ok=True)
        AutoBackbone.register(config, backbone, exist_ok=True)
        # What is saved carries its own code, for those who load it without this package.
        config.register_for_auto_class()
        model.register_for_auto_class()
        classifier.register_for_auto_class("AutoModelForImageClassification")
        backbone.register_for_auto_class("AutoBackbone")
        # One exact processor for both backends: asking for torchvision, the default, would
        # otherwise warn at every load.
        processors = dict.fromkeys(("pil", "torchvision"), processor)
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
        if is_torchvision_available():
            # There is none. Pipelines look for one all the same, and would ask whether to run the
            # image processor's file.
            AutoVideoProcessor.register(config, None, exist_ok=True)


def _load(name: str) -> Any:
    return getattr(importlib.import_module(network_modules()[name]), name)
