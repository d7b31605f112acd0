"""The baselines of the paper, which are transformers' own networks: DeiT-S / ViT-B and
ResNet-50.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, ResNetConfig, ViTConfig

from esvit_hf.reference.network_rules import NetworkRule, count_modules

# Channels of an attention head in all published ViTs of this size or below.
_VIT_HEAD_CHANNELS = 64
_PUBLISHED_VIT_CHANNELS = (192, 384, 768)


def _check_fields(config: PreTrainedConfig, given: Mapping[str, Any]) -> None:
    known = config.to_dict()
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{type(config).__name__} has no field {', '.join(unknown)}: its fields are "
            f"{sorted(known)}."
        )


def _infer_vit_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    # The name that the other networks use for the same field.
    given = {
        "num_attention_heads" if name == "num_heads" else name: value
        for name, value in given.items()
    }
    _check_fields(ViTConfig(), given)
    projection = state["embeddings.patch_embeddings.projection.weight"]
    channels, patch = projection.shape[0], projection.shape[2]
    fields: dict[str, Any] = {
        "image_size": math.isqrt(state["embeddings.position_embeddings"].shape[1] - 1) * patch,
        "patch_size": patch,
        "num_channels": projection.shape[1],
        "hidden_size": channels,
        "num_hidden_layers": count_modules(state, "layers"),
        "intermediate_size": state["layers.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "layers.0.attention.q_proj.bias" in state,
        "layer_norm_eps": 1e-6,
    }
    if channels in _PUBLISHED_VIT_CHANNELS:
        fields["num_attention_heads"] = channels // _VIT_HEAD_CHANNELS
    elif "num_attention_heads" not in given:
        raise ValueError("the tensors of this checkpoint do not show num_attention_heads: pass it.")
    return ViTConfig(**{**fields, **given})


def _infer_resnet_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    _check_fields(ResNetConfig(), given)
    stem = state["embedder.embedder.convolution.weight"]
    stages = [
        f"encoder.stages.{stage}.layers"
        for stage in range(count_modules(state, r"encoder\.stages"))
    ]
    last = count_modules(state, re.escape(stages[0]) + r"\.0\.layer") - 1
    fields = {
        "num_channels": stem.shape[1],
        "embedding_size": stem.shape[0],
        "hidden_sizes": [
            state[f"{stage}.0.layer.{last}.convolution.weight"].shape[0] for stage in stages
        ],
        "depths": [count_modules(state, re.escape(stage)) for stage in stages],
        "layer_type": "bottleneck" if last == 2 else "basic",
    }
    return ResNetConfig(**{**fields, **given})


_RESNET_LAYER = r"layer(?P<stage>\d+)\.(?P<layer>\d+)\."


def _resnet_name(template: str) -> Callable[[re.Match[str]], str]:
    # Stages, convolutions and norms are counted from 1 in the reference.
    def name(match: re.Match[str]) -> str:
        fields = match.groupdict()
        numbers = {key: int(fields[key]) - 1 for key in ("stage", "part") if key in fields}
        return template.format(**fields | numbers)

    return name


BASELINE_RULES: tuple[NetworkRule, ...] = (
    NetworkRule(
        name="vit",
        signature=r"blocks\.\d+\.attn\.qkv\.weight",
        renames=(
            (r"cls_token", r"embeddings.cls_token"),
            (r"pos_embed", r"embeddings.position_embeddings"),
            (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
            (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"layers.\1.layernorm_before.\2"),
            (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"layers.\1.attention.{part}.\2"),
            (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"layers.\1.attention.o_proj.\2"),
            (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"layers.\1.layernorm_after.\2"),
            (r"blocks\.(\d+)\.mlp\.(fc[12]\.(?:weight|bias))", r"layers.\1.mlp.\2"),
            (r"norm\.(weight|bias)", r"layernorm.\1"),
        ),
        recomputed=None,
        infer_config=_infer_vit_config,
        parts=("q_proj", "k_proj", "v_proj"),
        # The reference has none; the view feature is the class token.
        model_options={"add_pooling_layer": False},
    ),
    NetworkRule(
        name="resnet",
        signature=r"conv1\.weight",
        renames=(
            (r"conv1\.weight", r"embedder.embedder.convolution.weight"),
            (r"bn1\.(\w+)", r"embedder.embedder.normalization.\1"),
            (
                _RESNET_LAYER + r"conv(?P<part>\d)\.weight",
                _resnet_name(
                    "encoder.stages.{stage}.layers.{layer}.layer.{part}.convolution.weight"
                ),
            ),
            (
                _RESNET_LAYER + r"bn(?P<part>\d)\.(?P<kind>\w+)",
                _resnet_name(
                    "encoder.stages.{stage}.layers.{layer}.layer.{part}.normalization.{kind}"
                ),
            ),
            (
                _RESNET_LAYER + r"downsample\.0\.weight",
                _resnet_name("encoder.stages.{stage}.layers.{layer}.shortcut.convolution.weight"),
            ),
            (
                _RESNET_LAYER + r"downsample\.1\.(?P<kind>\w+)",
                _resnet_name("encoder.stages.{stage}.layers.{layer}.shortcut.normalization.{kind}"),
            ),
        ),
        recomputed=None,
        infer_config=_infer_resnet_config,
    ),
)
