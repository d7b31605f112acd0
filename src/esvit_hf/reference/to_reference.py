"""Networks in the layout of the reference's checkpoints, so that its code can use what was trained
here.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from esvit_hf.common.configurations import load_configuration
from esvit_hf.common.errors import one_line
from esvit_hf.hub.heads_file import SavedHead, find_heads, read_heads
from esvit_hf.reference.from_reference import (
    NETWORK_RULES,
    REFERENCE_HEADS,
    plain_name,
    position_indices,
    rename,
)
from esvit_hf.reference.network_rules import NetworkRule

__all__ = ["convert_to_reference"]

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _both(*modules: str) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def _batch_norm(module: str) -> list[str]:
    return [f"{module}.{name}" for name in _BATCH_NORM]


def _swin_names(config: PreTrainedConfig) -> Iterator[str]:
    block_names = [
        *_both("norm1"),
        "attn.relative_position_bias_table",
        "attn.relative_position_index",
        *_both("attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
    ]
    yield "absolute_pos_embed"
    yield from _both("patch_embed.proj", "patch_embed.norm")
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            yield from (f"layers.{stage}.blocks.{block}.{name}" for name in block_names)
        yield f"layers.{stage}.downsample.reduction.weight"
        yield from _both(f"layers.{stage}.downsample.norm")
    yield from _both("norm")


def _vil_names(config: PreTrainedConfig) -> Iterator[str]:
    attention_names = [
        "local_relative_position_bias_table",
        "g2l_relative_position_bias",
        "g2g_relative_position_bias",
        "relative_position_index",
        *_both("qkv", "query", "kv", "proj"),
    ]
    # Registered a second time where there are global tokens; the same tensors.
    shared_names = _both("query_global", "kv_global", "proj_global")
    for stage, depth in enumerate(config.depths):
        layer = f"layer{stage + 1}"
        yield from (
            f"{layer}.0.{name}"
            for name in ("cls_token", "x_pos_embed", "y_pos_embed", "cls_pos_embed")
        )
        yield from _both(f"{layer}.0.proj", f"{layer}.0.norm_embed")
        shared = (
            shared_names if config.sparse_stages[stage] and config.num_global_tokens[stage] else []
        )
        for block in range(depth):
            attention, mlp = f"{layer}.{2 * block + 1}", f"{layer}.{2 * block + 2}"
            yield from _both(f"{attention}.norm")
            yield from (f"{attention}.attn.{name}" for name in [*attention_names, *shared])
            yield from _both(f"{mlp}.norm", f"{mlp}.mlp.fc1", f"{mlp}.mlp.fc2")
    yield from _both("norm")


def _cvt_names(config: PreTrainedConfig) -> Iterator[str]:
    for convolution in (0, 3, 6):
        yield f"stage0.0.stem.{convolution}.weight"
        yield from _batch_norm(f"stage0.0.stem.{convolution + 1}")
    for stage, depth in enumerate(config.depths):
        yield from _both(f"stage{stage}.0.proj", f"stage{stage}.0.norm")
        for block in range(depth):
            attention, mlp = (f"stage{stage}.1.layers.{block}.{part}" for part in (0, 1))
            yield from _both(f"{attention}.norm")
            yield from (
                f"{attention}.fn.{name}"
                for name in ("rel_pos_bias_table", "rel_pos_idx", "qkv.dw.weight")
            )
            yield from _batch_norm(f"{attention}.fn.qkv.bn")
            yield from _both(f"{attention}.fn.qkv.pw", f"{attention}.fn.proj_out")
            yield from _both(f"{mlp}.norm", f"{mlp}.fn.net.0", f"{mlp}.fn.net.2")
    yield from _both("norm")


def _vit_names(config: PreTrainedConfig) -> Iterator[str]:
    yield from ("cls_token", "pos_embed")
    yield from _both("patch_embed.proj")
    for block in range(config.num_hidden_layers):
        modules = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        yield from _both(*(f"blocks.{block}.{module}" for module in modules))
    yield from _both("norm")


def _resnet_names(config: PreTrainedConfig) -> Iterator[str]:
    names = ["conv1.weight", *_batch_norm("bn1")]
    for stage, depth in enumerate(config.depths):
        for layer in range(depth):
            place = f"layer{stage + 1}.{layer}"
            for part in (1, 2, 3):
                names += [f"{place}.conv{part}.weight", *_batch_norm(f"{place}.bn{part}")]
            names += [f"{place}.downsample.0.weight", *_batch_norm(f"{place}.downsample.1")]
    yield from (f"backbone.backbone.{name}" for name in names)


# By model type: the rule that reads what is written here, and every name that a network of the
# family can have, in the order of the reference. Names of tensors that a network does not have are
# left out.
_LAYOUTS: Mapping[str, tuple[str, Callable[[PreTrainedConfig], Iterator[str]]]] = {
    "esvit_swin": ("swin", _swin_names),
    "esvit_vil": ("vil", _vil_names),
    "esvit_cvt": ("cvt", _cvt_names),
    "vit": ("vit", _vit_names),
    "resnet": ("resnet", _resnet_names),
}


def convert_to_reference(name_or_path: str, *, with_heads: bool = False) -> dict[str, Any]:
    """Arrange a model as a checkpoint of the reference.

    Student and teacher get the same weights, since a folder holds one network. There are no
    `optimizer`, `args` and `fp16_scaler`, which a folder does not hold either.

    Args:
        name_or_path: Folder or Hub name of a network that the reference knows.
        with_heads: Whether heads and centers come along.

    Returns:
        `student`, `teacher`, `epoch` (0) and `dino_loss` (the centers), for `torch.save`.

    Raises:
        ValueError: If the model cannot be loaded, the reference has no such network, or heads are
            asked for and not there.
    """
    model, rule, names = _load_model(name_or_path)
    teacher = _arrange_backbone(model, rule, names)
    centers = {}
    if with_heads:
        for objective, head in _load_heads(name_or_path).items():
            prefix, center = REFERENCE_HEADS[objective]
            teacher |= _arrange_head(head, prefix)
            centers[center] = head.center[None]
    student = {f"module.{name}": tensor for name, tensor in teacher.items()}
    # The reference wraps the teacher, too, if it has batch norms to synchronize.
    wrapped = any(name.endswith("running_mean") for name in teacher)
    return {
        "student": student,
        "teacher": student if wrapped else teacher,
        "epoch": 0,
        "dino_loss": centers,
    }


def _load_model(name_or_path: str) -> tuple[PreTrainedModel, NetworkRule, Iterator[str]]:
    config = load_configuration(name_or_path)
    if config.model_type not in _LAYOUTS:
        known = ", ".join(_LAYOUTS)
        raise ValueError(
            f"{name_or_path!r} is of type {config.model_type!r}; the reference has only {known}."
        )
    rule_name, list_names = _LAYOUTS[config.model_type]
    rule = next(rule for rule in NETWORK_RULES if rule.name == rule_name)
    try:
        model, loading = AutoModel.from_pretrained(
            name_or_path, output_loading_info=True, **rule.model_options
        )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"cannot load a model from {name_or_path!r} ({one_line(error)})."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{name_or_path!r} lacks {len(missing)} tensors of the network, for example "
            f"{missing[0]!r}."
        )
    return model, rule, list_names(config)


def _arrange_backbone(
    model: PreTrainedModel, rule: NetworkRule, names: Iterator[str]
) -> dict[str, Tensor]:
    ours = model.state_dict()
    recomputed = position_indices(model)
    arranged, used = {}, set()
    for name in names:
        renamed = rename(plain_name(name), rule.renames)
        assert renamed is not None, name
        pieces = (
            [renamed.format(part=part) for part in rule.parts] if "{part}" in renamed else [renamed]
        )
        if pieces[0] in recomputed:
            arranged[name] = _as_matrix(
                recomputed[pieces[0]], renamed.rpartition(".")[0] + ".query.weight" in ours
            )
        elif pieces[0] in ours:
            tensor = (
                torch.cat([ours[piece] for piece in pieces]) if len(pieces) > 1 else ours[renamed]
            )
            pointwise = rule.pointwise and re.fullmatch(rule.pointwise, renamed)
            arranged[name] = tensor[:, :, None, None] if pointwise else tensor
            used.update(pieces)
    if left := sorted(ours.keys() - used):
        raise ValueError(
            f"the reference has no place for {len(left)} tensors: {', '.join(left[:8])}."
        )
    return arranged


def _as_matrix(position_index: Tensor, sparse: bool) -> Tensor:
    """Give position indices (queries * keys,) their two axes; sparse attention has 9 times as many
    keys as queries.
    """
    keys = math.isqrt(position_index.numel()) * (3 if sparse else 1)
    return position_index.view(-1, keys)


def _load_heads(name_or_path: str) -> dict[str, SavedHead]:
    path = find_heads(name_or_path)
    if path is None:
        raise ValueError(f"{name_or_path!r} brings no heads: write the checkpoint without.")
    heads = read_heads(path)
    if unknown := sorted(heads.keys() - REFERENCE_HEADS.keys()):
        raise ValueError(
            f"the reference has no place for the head of {', '.join(unknown)} in {name_or_path!r}: "
            f"write the checkpoint without heads."
        )
    return {name: heads[name] for name in REFERENCE_HEADS if name in heads}


def _arrange_head(head: SavedHead, prefix: str) -> dict[str, Tensor]:
    state = dict(head.state)
    gain, direction = state.pop("prototype_gain"), state.pop("prototype_direction")
    places = sorted(
        (int(name.split(".")[1]), _BATCH_NORM.index(name.split(".")[2]), name) for name in state
    )
    # A head of one layer has no index in the reference.
    dropped = "layers." if places[-1][0] else "layers.0."
    arranged = {f"{prefix}.mlp.{name.removeprefix(dropped)}": state[name] for _, _, name in places}
    return arranged | {
        f"{prefix}.last_layer.weight_g": gain,
        f"{prefix}.last_layer.weight_v": direction,
    }
