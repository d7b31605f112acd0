"""Checkpoints of the reference implementation become models of this package.

The names of the reference are mapped by rules that are data: one `NetworkRule` a network family. Every tensor of a file
is used, recognised as recomputed, or named in an error.
"""

import argparse
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..models.configuration_esvit_cvt import EsvitCvtConfig
from ..models.configuration_esvit_swin import EsvitSwinConfig
from ..models.configuration_esvit_vil import EsvitVilConfig

State = dict[str, Tensor]
# A pattern of a whole name of the reference; what it becomes: a template for `Match.expand`, or a function.
Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class NetworkRule:
    """How the checkpoints of one network family are read.

    Attributes:
        name: Family, as in the `arch` argument.
        signature: Pattern that one of the reference's names matches in this family alone.
        renames: (pattern of a whole name, replacement) pairs; the first that matches wins.
        recomputed: Pattern of names that hold no weights: the model computes them itself, the converter compares.
        infer_config: Builds the configuration from the renamed tensors and the fields that the caller sets.
        shared: Pattern of the reference's names for a module that it registers a second time: they are renamed to the
            first one, whose tensor they must repeat.
        pointwise: Pattern of new names for 1 x 1 convolutions of the reference that are linear layers here.
    """

    name: str
    signature: str
    renames: tuple[Rename, ...]
    recomputed: str | None
    infer_config: Callable[[Mapping[str, Tensor], dict[str, Any]], PreTrainedConfig]
    shared: str | None = None
    pointwise: str | None = None


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    found = {int(match[1]) for name in state if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
    return len(found)


def _infer_swin_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    projection = state["embeddings.projection.weight"]
    depths = [_count(state, rf"stages\.{stage}\.blocks") for stage in range(_count(state, "stages"))]
    tables = [state[f"stages.{stage}.blocks.0.attention.relative_position_bias_table"] for stage in range(len(depths))]
    windows = [(math.isqrt(table.shape[0]) + 1) // 2 for table in tables]
    first_mlp = state["stages.0.blocks.0.mlp.expand.weight"]
    patch = tuple(projection.shape[2:])
    fields: dict[str, Any] = {
        "num_channels": projection.shape[1],
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "embed_dim": projection.shape[0],
        "depths": depths,
        "num_heads": [table.shape[1] for table in tables],
        "window_size": max(windows),
        "mlp_ratio": first_mlp.shape[0] / first_mlp.shape[1],
        "qkv_bias": "stages.0.blocks.0.attention.qkv.bias" in state,
        "use_absolute_embeddings": "embeddings.position_embeddings" in state,
        **given,
    }
    config = EsvitSwinConfig(**fields)
    if config.stage_windows != windows and "image_size" not in given:
        # A window below the configured one is the grid of its stage, which gives the size the network was built for.
        clipped = next((stage for stage, window in enumerate(windows) if window < config.window_size), None)
        if clipped is not None:
            side = [windows[clipped] * 2**clipped * pixels for pixels in patch]
            config = EsvitSwinConfig(**fields | {"image_size": side[0] if side[0] == side[1] else side})
    if config.stage_windows != windows:
        raise ValueError(
            f"the checkpoint has windows of {windows} tokens, the configuration with image_size={config.image_size} "
            f"and window_size={config.window_size} gives {config.stage_windows}: pass the image_size and window_size "
            "it was trained with."
        )
    return config


def _infer_vil_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    stages = range(_count(state, "stages"))
    projections = [state[f"stages.{stage}.embeddings.projection.weight"] for stage in stages]
    patches = [projection.shape[2] for projection in projections]
    sparse = [f"stages.{stage}.blocks.0.attention.query.weight" in state for stage in stages]
    absolute = "stages.0.embeddings.row_positions" in state
    fields: dict[str, Any] = {
        "num_channels": projections[0].shape[1],
        "patch_sizes": patches,
        "hidden_sizes": [projection.shape[0] for projection in projections],
        "depths": [_count(state, rf"stages\.{stage}\.blocks") for stage in stages],
        "sparse_stages": sparse,
        "num_global_tokens": [
            state[name].shape[1] if (name := f"stages.{stage}.embeddings.global_tokens") in state else 0
            for stage in stages
        ],
        "mlp_ratio": state["stages.0.blocks.0.mlp.expand.weight"].shape[0] / projections[0].shape[0],
        "qkv_bias": f"stages.0.blocks.0.attention.{'query' if sparse[0] else 'qkv'}.bias" in state,
        "position_embedding": "absolute" if absolute else "relative",
    }
    if absolute:
        if "num_heads" not in given:
            raise ValueError("the checkpoint has absolute positions, which do not show num_heads: pass num_heads.")
        fields["image_size"] = state["stages.0.embeddings.row_positions"].shape[1] * patches[0]
        return EsvitVilConfig(**{**fields, **given})
    tables = [state[f"stages.{stage}.blocks.0.attention.relative_position_bias_table"] for stage in stages]
    fields["num_heads"] = [table.shape[1] for table in tables]
    for stage, table in enumerate(tables):
        side = math.isqrt(table.shape[0]) + 1
        if sparse[stage]:
            fields["window_size"] = side // 4
        else:
            fields["image_size"] = side // 2 * math.prod(patches[: stage + 1])
    return EsvitVilConfig(**{**fields, **given})


def _infer_cvt_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    stages = range(_count(state, "stages"))
    deep_stem = "stages.0.embeddings.convolutions.0.weight" in state
    first = f"stages.0.embeddings.{'convolutions.0' if deep_stem else 'projection'}.weight"
    projections = [state[first if stage == 0 else f"stages.{stage}.embeddings.projection.weight"] for stage in stages]
    blocks = [f"stages.{stage}.blocks.0." for stage in stages]
    expansions = [state[block + "mlp.expand.weight"] for block in blocks]
    relative = "stages.0.blocks.0.attention.relative_position_bias_table" in state
    default = EsvitCvtConfig()
    fields: dict[str, Any] = {
        "num_channels": projections[0].shape[1],
        "patch_sizes": [projection.shape[2] for projection in projections],
        "hidden_sizes": [projection.shape[0] for projection in projections],
        "depths": [_count(state, rf"stages\.{stage}\.blocks") for stage in stages],
        "mlp_ratio": [expansion.shape[0] / expansion.shape[1] for expansion in expansions],
        "qkv_kernel_sizes": [state[block + "attention.depthwise.weight"].shape[2] for block in blocks],
        "qkv_bias": [block + "attention.qkv.bias" in state for block in blocks],
        "deep_stem": deep_stem,
        "relative_position_bias": relative,
    }
    if deep_stem:
        # The patches of the first stage, which are not there, have left no trace.
        fields["patch_sizes"][0] = default.patch_sizes[0]
    if relative:
        tables = [state[block + "attention.relative_position_bias_table"] for block in blocks]
        fields["num_heads"] = [table.shape[1] for table in tables]
        fields["window_size"] = [(math.isqrt(table.shape[0]) + 1) // 2 for table in tables]
    # A wrong guess would load without a complaint and compute something else: only the published shape is recognised.
    unseen = []
    if any(fields[name] != list(getattr(default, name)) for name in ("hidden_sizes", "depths")):
        unseen += ["num_heads", "window_size"]
    if fields["patch_sizes"] != list(default.patch_sizes):
        unseen += ["patch_strides", "patch_padding"]
    if missing := [name for name in unseen if name not in fields | given]:
        raise ValueError(f"the tensors of this checkpoint do not show {' and '.join(missing)}: pass them.")
    return EsvitCvtConfig(**{**fields, **given})


_SWIN_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)"

# Layer 0 of a stage embeds the patches; then attention and MLP take turns, so that two layers make a block.
_VIL_ATTENTION = r"layer(?P<stage>\d+)\.(?P<layer>\d*[13579])"
_VIL_MLP = r"layer(?P<stage>\d+)\.(?P<layer>\d*[02468])"
_VIL_STAGE = r"layer(?P<stage>\d+)\.0"
_VIL_BLOCK = "stages.{stage}.blocks.{block}."
_KIND = r"(?P<kind>weight|bias)"

_CVT_BLOCK = r"stage(\d+)\.1\.layers\.(\d+)"


def _vil_name(template: str) -> Callable[[re.Match[str]], str]:
    def name(match: re.Match[str]) -> str:
        groups = match.groupdict()
        block = (int(groups.get("layer", 1)) - 1) // 2
        return template.format(stage=int(groups["stage"]) - 1, block=block, kind=groups.get("kind"))

    return name


def _cvt_stem_name(part: str) -> Callable[[re.Match[str]], str]:
    # A convolution, its batch norm and a ReLU take turns.
    def name(match: re.Match[str]) -> str:
        return f"stages.0.embeddings.{part}.{int(match['layer']) // 3}.{match['kind']}"

    return name


NETWORK_RULES: tuple[NetworkRule, ...] = (
    NetworkRule(
        name="swin",
        signature=r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table",
        renames=(
            (r"patch_embed\.proj\.(weight|bias)", r"embeddings.projection.\1"),
            (r"patch_embed\.norm\.(weight|bias)", r"embeddings.norm.\1"),
            (r"absolute_pos_embed", r"embeddings.position_embeddings"),
            (_SWIN_BLOCK + r"\.norm1\.(weight|bias)", r"stages.\1.blocks.\2.attention_norm.\3"),
            (_SWIN_BLOCK + r"\.attn\.qkv\.(weight|bias)", r"stages.\1.blocks.\2.attention.qkv.\3"),
            (_SWIN_BLOCK + r"\.attn\.proj\.(weight|bias)", r"stages.\1.blocks.\2.attention.projection.\3"),
            (_SWIN_BLOCK + r"\.attn\.(relative_position_\w+)", r"stages.\1.blocks.\2.attention.\3"),
            (_SWIN_BLOCK + r"\.norm2\.(weight|bias)", r"stages.\1.blocks.\2.mlp_norm.\3"),
            (_SWIN_BLOCK + r"\.mlp\.fc1\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
            (_SWIN_BLOCK + r"\.mlp\.fc2\.(weight|bias)", r"stages.\1.blocks.\2.mlp.contract.\3"),
            (r"layers\.(\d+)\.downsample\.norm\.(weight|bias)", r"stages.\1.downsample.norm.\2"),
            (r"layers\.(\d+)\.downsample\.reduction\.weight", r"stages.\1.downsample.reduction.weight"),
            (r"norm\.(weight|bias)", r"norm.\1"),
        ),
        recomputed=r".*\.relative_position_index",
        infer_config=_infer_swin_config,
    ),
    NetworkRule(
        name="vil",
        signature=r"layer\d+\.0\.norm_embed\.weight",
        renames=tuple(
            (pattern, _vil_name(template))
            for pattern, template in (
                (_VIL_STAGE + r"\.proj\." + _KIND, "stages.{stage}.embeddings.projection.{kind}"),
                (_VIL_STAGE + r"\.norm_embed\." + _KIND, "stages.{stage}.embeddings.norm.{kind}"),
                (_VIL_STAGE + r"\.cls_token", "stages.{stage}.embeddings.global_tokens"),
                (_VIL_STAGE + r"\.cls_pos_embed", "stages.{stage}.embeddings.global_positions"),
                (_VIL_STAGE + r"\.x_pos_embed", "stages.{stage}.embeddings.row_positions"),
                (_VIL_STAGE + r"\.y_pos_embed", "stages.{stage}.embeddings.column_positions"),
                (_VIL_ATTENTION + r"\.norm\." + _KIND, _VIL_BLOCK + "attention_norm.{kind}"),
                (_VIL_ATTENTION + r"\.attn\.qkv\." + _KIND, _VIL_BLOCK + "attention.qkv.{kind}"),
                (_VIL_ATTENTION + r"\.attn\.query(?:_global)?\." + _KIND, _VIL_BLOCK + "attention.query.{kind}"),
                (_VIL_ATTENTION + r"\.attn\.kv(?:_global)?\." + _KIND, _VIL_BLOCK + "attention.key_value.{kind}"),
                (_VIL_ATTENTION + r"\.attn\.proj(?:_global)?\." + _KIND, _VIL_BLOCK + "attention.projection.{kind}"),
                (
                    _VIL_ATTENTION + r"\.attn\.local_relative_position_bias_table",
                    _VIL_BLOCK + "attention.relative_position_bias_table",
                ),
                (_VIL_ATTENTION + r"\.attn\.g2l_relative_position_bias", _VIL_BLOCK + "attention.global_to_grid_bias"),
                (
                    _VIL_ATTENTION + r"\.attn\.g2g_relative_position_bias",
                    _VIL_BLOCK + "attention.global_to_global_bias",
                ),
                (_VIL_ATTENTION + r"\.attn\.relative_position_index", _VIL_BLOCK + "attention.relative_position_index"),
                (_VIL_MLP + r"\.norm\." + _KIND, _VIL_BLOCK + "mlp_norm.{kind}"),
                (_VIL_MLP + r"\.mlp\.fc1\." + _KIND, _VIL_BLOCK + "mlp.expand.{kind}"),
                (_VIL_MLP + r"\.mlp\.fc2\." + _KIND, _VIL_BLOCK + "mlp.contract.{kind}"),
            )
        )
        + ((r"norm\.(weight|bias)", r"norm.\1"),),
        recomputed=r".*\.relative_position_index",
        infer_config=_infer_vil_config,
        shared=r"layer\d+\.\d+\.attn\.(?:query|kv|proj)_global\.(?:weight|bias)",
    ),
    NetworkRule(
        name="cvt",
        signature=r"stage\d+\.1\.layers\.\d+\.0\.fn\.qkv\.dw\.weight",
        renames=(
            (r"stage(\d+)\.0\.proj\.(weight|bias)", r"stages.\1.embeddings.projection.\2"),
            (r"stage(\d+)\.0\.norm\.(weight|bias)", r"stages.\1.embeddings.norm.\2"),
            (r"stage0\.0\.stem\.(?P<layer>[036])\.(?P<kind>weight)", _cvt_stem_name("convolutions")),
            (r"stage0\.0\.stem\.(?P<layer>[147])\.(?P<kind>\w+)", _cvt_stem_name("norms")),
            (_CVT_BLOCK + r"\.0\.norm\.(weight|bias)", r"stages.\1.blocks.\2.attention_norm.\3"),
            (_CVT_BLOCK + r"\.0\.fn\.qkv\.dw\.weight", r"stages.\1.blocks.\2.attention.depthwise.weight"),
            (_CVT_BLOCK + r"\.0\.fn\.qkv\.bn\.(\w+)", r"stages.\1.blocks.\2.attention.batch_norm.\3"),
            (_CVT_BLOCK + r"\.0\.fn\.qkv\.pw\.(weight|bias)", r"stages.\1.blocks.\2.attention.qkv.\3"),
            (_CVT_BLOCK + r"\.0\.fn\.proj_out\.(weight|bias)", r"stages.\1.blocks.\2.attention.projection.\3"),
            (
                _CVT_BLOCK + r"\.0\.fn\.rel_pos_bias_table",
                r"stages.\1.blocks.\2.attention.relative_position_bias_table",
            ),
            (_CVT_BLOCK + r"\.0\.fn\.rel_pos_idx", r"stages.\1.blocks.\2.attention.relative_position_index"),
            (_CVT_BLOCK + r"\.1\.norm\.(weight|bias)", r"stages.\1.blocks.\2.mlp_norm.\3"),
            (_CVT_BLOCK + r"\.1\.fn\.net\.0\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
            (_CVT_BLOCK + r"\.1\.fn\.net\.2\.(weight|bias)", r"stages.\1.blocks.\2.mlp.contract.\3"),
            (r"norm\.(weight|bias)", r"norm.\1"),
        ),
        recomputed=r".*\.relative_position_index",
        infer_config=_infer_cvt_config,
        pointwise=r".*\.(?:attention\.(?:qkv|projection)|mlp\.(?:expand|contract))\.weight",
    ),
)

# Names behind "head." (view) and "head_dense." (region). A head of one layer has no index in the reference.
_HEAD_RENAMES: tuple[Rename, ...] = (
    (r"mlp\.(\d+)\.(\w+)", r"layers.\1.\2"),
    (r"mlp\.(weight|bias)", r"layers.0.\1"),
    (r"last_layer\.weight_g", r"prototype_gain"),
    (r"last_layer\.weight_v", r"prototype_direction"),
)


def read_reference_checkpoint(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint file of the reference without executing anything in it.

    Args:
        path: `checkpoint.pth` as the reference's training writes it.

    Returns:
        The dictionary in the file; `student` and `teacher`, where present, map names to tensors.

    Raises:
        ValueError: If there is no file, or it is truncated, foreign, or holds objects other than tensors, plain values
            and the `argparse.Namespace` of the run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {str(path)!r}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = _first_reason(error)
        raise ValueError(f"{str(path)!r} is not a readable checkpoint of the reference: {reason}") from error
    networks = [name for name in ("student", "teacher") if isinstance(checkpoint, dict) and name in checkpoint]
    if not networks:
        raise ValueError(f"{str(path)!r} holds neither 'student' nor 'teacher' weights: not a reference checkpoint.")
    for name in networks:
        state = checkpoint[name]
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
        ):
            raise ValueError(f"{name!r} in {str(path)!r} does not map names to tensors: not a reference checkpoint.")
    return checkpoint


def _first_reason(error: Exception) -> str:
    message = str(error)
    if blocked := re.search(r"Unsupported (?:global|class|operand)[^.]*?(?:GLOBAL )?([\w.]+)", message):
        return f"it holds a forbidden object, {blocked[0].strip()}."
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else f"{type(error).__name__}."


def split_reference_state_dict(state: Mapping[str, Tensor], *, arch: str | None = None) -> tuple[State, State, State]:
    """Separate backbone, view head and region head and give their tensors this package's names.

    Args:
        state: `student` or `teacher` of a reference checkpoint, with or without the prefix `module.`.
        arch: Family of the backbone; recognised from the names if None.

    Returns:
        State dicts of the backbone, of the view head and of the region head; a head that is not there is empty.

    Raises:
        ValueError: If the family is not recognised or a name belongs to no part.
    """
    return _split(state, _find_rule(state, arch))[:3]


def _find_rule(state: Mapping[str, Tensor], arch: str | None) -> NetworkRule:
    known = ", ".join(rule.name for rule in NETWORK_RULES)
    if arch is not None:
        for rule in NETWORK_RULES:
            if rule.name == arch:
                return rule
        raise ValueError(f"arch={arch!r} is unknown; known: {known}.")
    for rule in NETWORK_RULES:
        if any(re.fullmatch(rf"(?:module\.)?{rule.signature}", name) for name in state):
            return rule
    sample = ", ".join(list(state)[:3])
    raise ValueError(f"the names ({sample}, ...) belong to none of the known networks ({known}).")


def _rename(name: str, renames: tuple[Rename, ...]) -> str | None:
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None


def _split(state: Mapping[str, Tensor], rule: NetworkRule) -> tuple[State, State, State, State]:
    backbone: State = {}
    view_head: State = {}
    region_head: State = {}
    recomputed: State = {}
    shared: State = {}
    unused = []
    for reference_name, tensor in state.items():
        name = reference_name.removeprefix("module.")
        if name.startswith("head_dense."):
            part, renamed = region_head, _rename(name.removeprefix("head_dense."), _HEAD_RENAMES)
        elif name.startswith("head."):
            part, renamed = view_head, _rename(name.removeprefix("head."), _HEAD_RENAMES)
        else:
            part, renamed = backbone, _rename(name, rule.renames)
            if renamed is not None and rule.recomputed and re.fullmatch(rule.recomputed, renamed):
                part = recomputed
            elif rule.shared and re.fullmatch(rule.shared, name):
                part = shared
        if renamed is None:
            unused.append(reference_name)
        elif renamed in part:
            raise ValueError(f"the checkpoint names the tensor {reference_name!r} twice, with and without 'module.'.")
        else:
            pointwise = rule.pointwise and part is backbone and re.fullmatch(rule.pointwise, renamed)
            part[renamed] = tensor.flatten(1) if pointwise else tensor
    if unused:
        raise ValueError(f"{len(unused)} names have no place in a {rule.name} network: {', '.join(unused[:8])}.")
    for name, tensor in shared.items():
        if name not in backbone or not torch.equal(backbone[name], tensor):
            raise ValueError(
                f"the checkpoint has a second {name} of its own, for global tokens: only networks whose global tokens "
                "share the projections of all others can be converted."
            )
    return backbone, view_head, region_head, recomputed


def convert_checkpoint(
    path: str | Path,
    *,
    weights: Literal["teacher", "student"] = "teacher",
    arch: str | None = None,
    **config_fields: Any,
) -> PreTrainedModel:
    """Turn the backbone of a reference checkpoint into a model of this package.

    The configuration is read off the shapes of the tensors; what leaves no trace there (`drop_path_rate`, an
    `image_size` that changes no window, the windows and heads of a CvT-T) has its default unless given.

    Args:
        path: `checkpoint.pth` of the reference.
        weights: Which network of the file; the paper evaluates the teacher.
        arch: Family of the backbone; recognised from the names if None.
        **config_fields: Configuration fields that win over the inferred ones.

    Returns:
        The base model in eval mode.

    Raises:
        ValueError: If the file is unreadable, a name or shape does not fit, or a tensor is missing or left over.
    """
    checkpoint = read_reference_checkpoint(path)
    if weights not in checkpoint:
        there = ", ".join(name for name in ("student", "teacher") if name in checkpoint)
        raise ValueError(f"{str(path)!r} holds no {weights!r} weights, only: {there}.")
    rule = _find_rule(checkpoint[weights], arch)
    backbone, _, _, recomputed = _split(checkpoint[weights], rule)
    try:
        config = rule.infer_config(backbone, config_fields)
    except (KeyError, IndexError) as error:
        raise ValueError(f"{str(path)!r} is no complete {rule.name} network: {error} is missing.") from error
    model = AutoModel.from_config(config)
    _load(model, backbone, recomputed)
    return model.eval()


def _load(model: PreTrainedModel, state: State, recomputed: State) -> None:
    expected = model.state_dict()
    if missing := [name for name in expected if name not in state]:
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors of the network: {', '.join(missing[:8])}.")
    if surplus := [name for name in state if name not in expected]:
        raise ValueError(f"the network has no place for {len(surplus)} tensors: {', '.join(surplus[:8])}.")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the checkpoint and {tuple(expected[name].shape)} in the network: "
                "correct the configuration fields."
            )
    buffers = dict(model.named_buffers())
    for name, tensor in recomputed.items():
        if name not in buffers or not torch.equal(buffers[name].flatten(), tensor.flatten()):
            raise ValueError(f"{name} in the checkpoint differs from what the network computes.")
    model.load_state_dict(state)
