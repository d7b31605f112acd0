"""Pretrained weights of any vision network as a backbone."""

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel

from esvit_hf.acceleration.linear import use_fast_linear
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.foreign_swin import own_swin
from esvit_hf.common.configurations import cannot_load, load_configuration

__all__ = ["load_backbone"]


def load_backbone(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **config_fields: Any,
) -> RegionBackbone:
    """Load pretrained weights as a `RegionBackbone`.

    Swin weights of transformers and timm become an `EsvitSwinModel`, which gives the same regions
    and takes images of any size.

    Args:
        name_or_path: Hub name or folder of any vision `AutoModel`.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run modeling code that the repository ships.
        config_fields: fields of the network's configuration to override.

    Returns:
        The backbone in evaluation mode, in the data type of the saved weights, with fast linear
        layers (`use_fast_linear`).

    Raises:
        ValueError: nothing loadable there, an unknown configuration field, a network that is no
            backbone, or weights that do not cover the network (which would silently evaluate random
            features) or leave layers over.
    """
    name_or_path = str(name_or_path)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = load_configuration(name_or_path, **source, **config_fields)
    try:
        # A pooling head is not part of the features; leaving it out also avoids warnings about its
        # missing weights.
        model_class = MODEL_MAPPING.get(type(config), None)
        takes_pooler = (
            inspect.isclass(model_class)
            and "add_pooling_layer" in inspect.signature(model_class).parameters
        )
        options = {"add_pooling_layer": False} if takes_pooler else {}
        model, loading = AutoModel.from_pretrained(
            name_or_path, config=config, output_loading_info=True, **source, **options
        )
    except (EOFError, OSError, RuntimeError, SafetensorError, UnpicklingError, ValueError) as error:
        raise cannot_load(name_or_path, error, config_fields) from error
    # The network is run on a first image below.
    use_fast_linear(model)
    measured = RegionBackbone(model) if loading["missing_keys"] else None
    # What the features do not depend on may be missing.
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    missing = sorted(set(loading["missing_keys"]) - frozen)
    if missing:
        raise ValueError(
            f"the weights of {name_or_path!r} do not cover {type(model).__name__}: {len(missing)} "
            f"tensors are missing, for example {missing[0]!r}; load them as the architecture they "
            f"were saved from"
        )
    if left := _left_over_layers(model, loading["unexpected_keys"]):
        raise ValueError(
            f"{type(model).__name__} has no place for {len(left)} of the tensors of "
            f"{name_or_path!r}, for example {left[0]!r}: its configuration has fewer layers than "
            f"were saved"
        )
    own = own_swin(model)
    if own is None:
        backbone = measured or RegionBackbone(model)
    else:
        backbone = RegionBackbone(own).to(device=model.device, dtype=model.dtype)
    use_fast_linear(backbone)
    return backbone.eval()


def _left_over_layers(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Find tensors of layers beyond the last one; heads are left out as they should be."""
    kinds = {re.sub(r"\d+", "#", name) for name, _ in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    return sorted(name for name in names if re.sub(r"\d+", "#", name.removeprefix(prefix)) in kinds)
