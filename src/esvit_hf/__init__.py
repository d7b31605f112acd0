"""EsViT (arXiv 2106.09785) for the Hugging Face ecosystem.

The names below are the package: what `esvit` does, as functions, and the networks. Everything else
is private and may change. The networks are known to the Auto classes of transformers as soon as
both packages are imported, in any order; `import esvit_hf` itself imports neither transformers nor
PyTorch.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from esvit_hf.registration.after_import import register_with_transformers
from esvit_hf.registration.families import network_modules

if TYPE_CHECKING:
    from esvit_hf.backbones.loading import load_backbone as load_backbone
    from esvit_hf.evaluation.evaluate import evaluate as evaluate
    from esvit_hf.evaluation.transfer import transfer as transfer
    from esvit_hf.features.files import extract_features as extract_features
    from esvit_hf.hub.push import push as push
    from esvit_hf.models.configuration_esvit_cvt import EsvitCvtConfig as EsvitCvtConfig
    from esvit_hf.models.configuration_esvit_swin import EsvitSwinConfig as EsvitSwinConfig
    from esvit_hf.models.configuration_esvit_vil import EsvitVilConfig as EsvitVilConfig
    from esvit_hf.models.image_processing_esvit import EsvitImageProcessor as EsvitImageProcessor
    from esvit_hf.models.modeling_esvit_cvt import EsvitCvtBackbone as EsvitCvtBackbone
    from esvit_hf.models.modeling_esvit_cvt import (
        EsvitCvtForImageClassification as EsvitCvtForImageClassification,
    )
    from esvit_hf.models.modeling_esvit_cvt import EsvitCvtModel as EsvitCvtModel
    from esvit_hf.models.modeling_esvit_swin import EsvitSwinBackbone as EsvitSwinBackbone
    from esvit_hf.models.modeling_esvit_swin import (
        EsvitSwinForImageClassification as EsvitSwinForImageClassification,
    )
    from esvit_hf.models.modeling_esvit_swin import EsvitSwinModel as EsvitSwinModel
    from esvit_hf.models.modeling_esvit_vil import EsvitVilBackbone as EsvitVilBackbone
    from esvit_hf.models.modeling_esvit_vil import (
        EsvitVilForImageClassification as EsvitVilForImageClassification,
    )
    from esvit_hf.models.modeling_esvit_vil import EsvitVilModel as EsvitVilModel
    from esvit_hf.pretraining.loop import pretrain as pretrain
    from esvit_hf.reference.conversion import convert_checkpoint as convert_checkpoint
    from esvit_hf.zoo.listing import list_checkpoints as list_checkpoints

__version__ = importlib.metadata.version("esvit-hf")

_MODULES = {
    "convert_checkpoint": "esvit_hf.reference.conversion",
    "evaluate": "esvit_hf.evaluation.evaluate",
    "extract_features": "esvit_hf.features.files",
    "list_checkpoints": "esvit_hf.zoo.listing",
    "load_backbone": "esvit_hf.backbones.loading",
    "pretrain": "esvit_hf.pretraining.loop",
    "push": "esvit_hf.hub.push",
    "transfer": "esvit_hf.evaluation.transfer",
    **network_modules(),
}

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = ["__version__", *_MODULES]
