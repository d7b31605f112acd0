"""EsViT (arXiv 2106.09785) for the Hugging Face ecosystem.

Importing the package registers the networks with the Auto classes of transformers.
"""

import importlib

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoVideoProcessor,
)
from transformers.utils import is_torchvision_available

from esvit_hf.models.configuration_esvit_cvt import EsvitCvtConfig
from esvit_hf.models.configuration_esvit_swin import EsvitSwinConfig
from esvit_hf.models.configuration_esvit_vil import EsvitVilConfig
from esvit_hf.models.image_processing_esvit import EsvitImageProcessor
from esvit_hf.models.modeling_esvit_cvt import (
    EsvitCvtBackbone,
    EsvitCvtForImageClassification,
    EsvitCvtModel,
)
from esvit_hf.models.modeling_esvit_swin import (
    EsvitSwinBackbone,
    EsvitSwinForImageClassification,
    EsvitSwinModel,
)
from esvit_hf.models.modeling_esvit_vil import (
    EsvitVilBackbone,
    EsvitVilForImageClassification,
    EsvitVilModel,
)

_LAZY_NAMES = {
    "convert_checkpoint": "reference.convert",
    "convert_to_folder": "reference.folders",
    "convert_to_reference": "reference.to_reference",
    "read_reference_checkpoint": "reference.convert",
    "split_reference_state_dict": "reference.convert",
}

_NETWORKS = (
    (EsvitSwinConfig, EsvitSwinModel, EsvitSwinForImageClassification, EsvitSwinBackbone),
    (EsvitVilConfig, EsvitVilModel, EsvitVilForImageClassification, EsvitVilBackbone),
    (EsvitCvtConfig, EsvitCvtModel, EsvitCvtForImageClassification, EsvitCvtBackbone),
)

EsvitImageProcessor.register_for_auto_class()
for _config, _model, _classifier, _backbone in _NETWORKS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForImageClassification.register(_config, _classifier, exist_ok=True)
    AutoBackbone.register(_config, _backbone, exist_ok=True)
    # What is saved carries its own code, for those who load it without this package.
    _config.register_for_auto_class()
    _model.register_for_auto_class()
    _classifier.register_for_auto_class("AutoModelForImageClassification")
    _backbone.register_for_auto_class("AutoBackbone")
    # One exact processor for both backends: asking for torchvision, the default, would otherwise
    # warn at every load.
    _processors: dict[str, type] = {"pil": EsvitImageProcessor, "torchvision": EsvitImageProcessor}
    AutoImageProcessor.register(_config, image_processor_classes=_processors, exist_ok=True)
    if is_torchvision_available():
        # There is none. Pipelines look for one all the same, and would ask whether to run the image
        # processor's file.
        AutoVideoProcessor.register(_config, None, exist_ok=True)


def __getattr__(name: str) -> object:
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f".{_LAZY_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_NAMES})


__all__ = [
    "EsvitCvtBackbone",
    "EsvitCvtConfig",
    "EsvitCvtForImageClassification",
    "EsvitCvtModel",
    "EsvitImageProcessor",
    "EsvitSwinBackbone",
    "EsvitSwinConfig",
    "EsvitSwinForImageClassification",
    "EsvitSwinModel",
    "EsvitVilBackbone",
    "EsvitVilConfig",
    "EsvitVilForImageClassification",
    "EsvitVilModel",
    *_LAZY_NAMES,
]
