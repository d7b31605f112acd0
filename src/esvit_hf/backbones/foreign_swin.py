"""Swin weights of transformers and timm in the Swin network of this package, which takes images of
any size.
"""

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SwinModel, TimmWrapperModel

from esvit_hf.backbones.adapter import configured_image_size
from esvit_hf.models.configuration_esvit_swin import EsvitSwinConfig
from esvit_hf.models.modeling_esvit_swin import EsvitSwinModel

__all__ = ["own_swin"]

_BLOCK = r"(?:encoder\.)?layers\.(\d+)\.blocks\.(\d+)\."
# Patterns of whole names in transformers or timm, and what they are called here.
_NAMES = (
    (r"patch_embed\.proj\.(\w+)", r"embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"embeddings.norm.\1"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"embeddings.projection.\1"),
    (r"embeddings\.(norm\.\w+|position_embeddings)", r"embeddings.\1"),
    (_BLOCK + r"(?:norm1|layernorm_before)\.(\w+)", r"stages.\1.blocks.\2.attention_norm.\3"),
    (_BLOCK + r"(?:norm2|layernorm_after)\.(\w+)", r"stages.\1.blocks.\2.mlp_norm.\3"),
    (_BLOCK + r"attn\.qkv\.(\w+)", r"stages.\1.blocks.\2.attention.qkv.\3"),
    (_BLOCK + r"attention\.([qkv])_proj\.(\w+)", r"stages.\1.blocks.\2.attention.\3.\4"),
    (
        _BLOCK + r"(?:attn\.proj|attention\.o_proj)\.(\w+)",
        r"stages.\1.blocks.\2.attention.projection.\3",
    ),
    (
        _BLOCK + r"att\w+\.(?:relative_position_bias\.)?relative_position_bias_table",
        r"stages.\1.blocks.\2.attention.relative_position_bias_table",
    ),
    (_BLOCK + r"mlp\.fc1\.(\w+)", r"stages.\1.blocks.\2.mlp.expand.\3"),
    (_BLOCK + r"mlp\.fc2\.(\w+)", r"stages.\1.blocks.\2.mlp.contract.\3"),
    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"stages.\1.downsample.\2"),
    (r"(?:layer)?norm\.(\w+)", r"norm.\1"),
)
# In timm the layer that merges tokens begins a stage; here, as in transformers, it ends one.
_TIMM_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.(.+)")
# What both know and Swin without masked images does not need.
_UNUSED = "embeddings.mask_token"


def own_swin(model: PreTrainedModel) -> EsvitSwinModel | None:
    """Read the Swin network of transformers or timm as the one of this package.

    Args:
        model: Any network, in evaluation mode.

    Returns:
        The network with the same weights in float32 and evaluation mode. None if the model is no
        Swin, or one of a kind that is different here: regions of an image are computed with both
        and must agree.

    Source:
        Swin, arXiv 2103.14030, section 3.
    """
    size = configured_image_size(model)
    if size is None or not _is_swin(model):
        return None
    state = _renamed(model)
    try:
        config = EsvitSwinConfig(**_fields(model, state), image_size=list(size))
        own = EsvitSwinModel(config)
        own.load_state_dict(state)
        agree = _agree(model, own.float().eval(), size)
    except (AssertionError, KeyError, RuntimeError, ValueError):
        return None
    return own if agree else None


def _is_swin(model: PreTrainedModel) -> bool:
    if isinstance(model, TimmWrapperModel):
        return type(model.timm_model).__name__ == "SwinTransformer"
    return isinstance(model, SwinModel)


def _renamed(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors under the names that they have here, and others under their own."""
    network: nn.Module = model.timm_model if isinstance(model, TimmWrapperModel) else model
    state = {}
    for name, tensor in network.state_dict().items():
        if name == _UNUSED:
            continue
        if found := _TIMM_DOWNSAMPLE.fullmatch(name):
            name = f"stages.{int(found[1]) - 1}.downsample.{found[2]}"
        for pattern, ours in _NAMES:
            if found := re.fullmatch(pattern, name):
                name = found.expand(ours)
                break
        state[name] = tensor
    for name in [name for name in state if ".attention.q." in name]:
        parts = [state.pop(name.replace(".attention.q.", f".attention.{part}.")) for part in "qkv"]
        state[name.replace(".attention.q.", ".attention.qkv.")] = torch.cat(parts)
    return state


def _fields(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the configuration off the tensors, and off the network what they do not show."""
    stages = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("stages."))
    depths = [
        len({name.split(".")[3] for name in state if name.startswith(f"stages.{stage}.blocks.")})
        for stage in range(stages)
    ]
    tables = [
        state[f"stages.{stage}.blocks.0.attention.relative_position_bias_table"]
        for stage in range(stages)
    ]
    projection = state["embeddings.projection.weight"]
    expand = state["stages.0.blocks.0.mlp.expand.weight"]
    norm = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
    rates: list[Any] = [getattr(module, "drop_prob", 0.0) for module in model.modules()]
    return {
        "patch_size": list(projection.shape[2:]),
        "num_channels": projection.shape[1],
        "embed_dim": projection.shape[0],
        "depths": depths,
        "num_heads": [table.shape[1] for table in tables],
        "window_size": max((math.isqrt(len(table)) + 1) // 2 for table in tables),
        "mlp_ratio": expand.shape[0] / expand.shape[1],
        "qkv_bias": "stages.0.blocks.0.attention.qkv.bias" in state,
        "use_absolute_embeddings": "embeddings.position_embeddings" in state,
        "layer_norm_eps": norm.eps,
        "drop_path_rate": float(max(rates)),
        "hidden_act": getattr(model.config, "hidden_act", "gelu"),
    }


@torch.no_grad()
def _agree(model: PreTrainedModel, own: EsvitSwinModel, size: tuple[int, int]) -> bool:
    """Compare the regions of one image."""
    if model.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, own.config.num_channels, *size, generator=generator)
    output: Tensor = model(pixels.to(model.device)).last_hidden_state
    # That of timm is a map with channels last.
    theirs = (output.flatten(1, 2) if output.ndim == 4 else output).cpu()
    ours = own(pixels).last_hidden_state
    return theirs.shape == ours.shape and bool((theirs - ours).norm() <= 1e-4 * theirs.norm())
