"""How each network family of the reference is laid out in a checkpoint, as data."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from esvit_hf.models.configuration_esvit_cvt import EsvitCvtConfig
from esvit_hf.models.configuration_esvit_swin import EsvitSwinConfig
from esvit_hf.models.configuration_esvit_vil import EsvitVilConfig

# A pattern of a whole name of the reference; what it becomes: a template for `Match.expand`, or a
# function.
Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class NetworkRule:
    """How the checkpoints of one network family are read.

    Attributes:
        name: Family, as in the `arch` argument.
        signature: Pattern that one of the reference's names matches in this family alone.
        renames: (pattern of a whole name, replacement) pairs; the first that matches wins.
        recomputed: Pattern of names that hold no weights: the model computes them itself, the
            converter compares.
        infer_config: Builds the configuration from the renamed tensors and the fields that the
            caller sets.
        shared: Pattern of the reference's names for a module that it registers a second time: they
            are renamed to the first one, whose tensor they must repeat.
        pointwise: Pattern of new names for 1 x 1 convolutions of the reference that are linear
            layers here.
        parts: What `{part}` in a new name stands for: the reference stacks these tensors along
            their first axis.
        model_options: Arguments of the network's class beside the configuration.
    """

    name: str
    signature: str
    renames: tuple[Rename, ...]
    recomputed: str | None
    infer_config: Callable[[Mapping[str, Tensor], dict[str, Any]], PreTrainedConfig]
    shared: str | None = None
    pointwise: str | None = None
    parts: tuple[str, ...] = ()
    model_options: Mapping[str, Any] = field(default_factory=dict)


def count_modules(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the modules of a list in a state dict.

    Args:
        state: Tensors by name.
        prefix: Pattern of the list's name.

    Returns:
        How many different numbers follow the prefix.
    """
    found = {int(match[1]) for name in state if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
    return len(found)


def _infer_swin_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    projection = state["embeddings.projection.weight"]
    depths = [
        count_modules(state, rf"stages\.{stage}\.blocks")
        for stage in range(count_modules(state, "stages"))
    ]
    tables = [
        state[f"stages.{stage}.blocks.0.attention.relative_position_bias_table"]
        for stage in range(len(depths))
    ]
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
    # A window below the configured one is the grid of its stage, rounded down. It does not tell one
    # size, but all that give the same windows give the same network.
    clipped = [stage for stage, window in enumerate(windows) if window < config.window_size]
    if config.stage_windows != windows and clipped and "image_size" not in given:
        scale = 2 ** clipped[0]
        for tokens in range(windows[clipped[0]] * scale, (windows[clipped[0]] + 1) * scale):
            side = [tokens * pixels for pixels in patch]
            config = EsvitSwinConfig(
                **fields | {"image_size": side[0] if side[0] == side[1] else side}
            )
            if config.stage_windows == windows:
                break
    if config.stage_windows != windows:
        raise ValueError(
            f"the checkpoint has windows of {windows} tokens, the configuration with "
            f"image_size={config.image_size} and window_size={config.window_size} gives "
            f"{config.stage_windows}: pass the image_size and window_size it was trained with."
        )
    return config


# Of a network without sparse stages: it has no effect.
_DEFAULT_VIL_WINDOW = 7


def _infer_vil_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    stages = range(count_modules(state, "stages"))
    projections = [state[f"stages.{stage}.embeddings.projection.weight"] for stage in stages]
    patches = [projection.shape[2] for projection in projections]
    sparse = [f"stages.{stage}.blocks.0.attention.query.weight" in state for stage in stages]
    rows = [state.get(f"stages.{stage}.embeddings.row_positions") for stage in stages]
    tables = [
        state.get(f"stages.{stage}.blocks.0.attention.relative_position_bias_table")
        for stage in stages
    ]
    windows, grids = [], []
    for stage in stages:
        row, table = rows[stage], tables[stage]
        side = 0 if table is None else math.isqrt(table.shape[0]) + 1
        windows.append(side // 4 if sparse[stage] else None)
        grids.append(row.shape[1] if row is not None else 0 if sparse[stage] else side // 2)
    fields: dict[str, Any] = {
        "num_channels": projections[0].shape[1],
        "patch_sizes": patches,
        "hidden_sizes": [projection.shape[0] for projection in projections],
        "depths": [count_modules(state, rf"stages\.{stage}\.blocks") for stage in stages],
        "sparse_stages": sparse,
        "num_global_tokens": [
            state[name].shape[1]
            if (name := f"stages.{stage}.embeddings.global_tokens") in state
            else 0
            for stage in stages
        ],
        "mlp_ratio": state["stages.0.blocks.0.mlp.expand.weight"].shape[0]
        / projections[0].shape[0],
        "qkv_bias": f"stages.0.blocks.0.attention.{'query' if sparse[0] else 'qkv'}.bias" in state,
        "position_embedding": _one_or_all(
            ["relative" if row is None else "absolute" for row in rows]
        ),
    }
    # The finest grid bounds the size that the network was built for most closely.
    for stage, grid in enumerate(grids):
        if grid:
            fields["image_size"] = grid * math.prod(patches[: stage + 1])
            break
    if None not in tables:
        fields["num_heads"] = [table.shape[1] for table in tables if table is not None]
    if 0 not in windows:
        # Full stages have no chunks: any size will do.
        known = [window for window in windows if window] or [_DEFAULT_VIL_WINDOW]
        fields["window_size"] = _one_or_all([window or known[0] for window in windows])
    unseen = [name for name in ("num_heads", "window_size") if name not in fields | given]
    if unseen:
        raise ValueError(
            f"the checkpoint has absolute positions, which do not show {' and '.join(unseen)}: "
            f"pass {' and '.join(unseen)}."
        )
    return EsvitVilConfig(**{**fields, **given})


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else values


def _infer_cvt_config(state: Mapping[str, Tensor], given: dict[str, Any]) -> PreTrainedConfig:
    stages = range(count_modules(state, "stages"))
    deep_stem = "stages.0.embeddings.convolutions.0.weight" in state
    first = f"stages.0.embeddings.{'convolutions.0' if deep_stem else 'projection'}.weight"
    projections = [
        state[first if stage == 0 else f"stages.{stage}.embeddings.projection.weight"]
        for stage in stages
    ]
    blocks = [f"stages.{stage}.blocks.0." for stage in stages]
    expansions = [state[block + "mlp.expand.weight"] for block in blocks]
    relative = "stages.0.blocks.0.attention.relative_position_bias_table" in state
    default = EsvitCvtConfig()
    fields: dict[str, Any] = {
        "num_channels": projections[0].shape[1],
        "patch_sizes": [projection.shape[2] for projection in projections],
        "hidden_sizes": [projection.shape[0] for projection in projections],
        "depths": [count_modules(state, rf"stages\.{stage}\.blocks") for stage in stages],
        "mlp_ratio": [expansion.shape[0] / expansion.shape[1] for expansion in expansions],
        "qkv_kernel_sizes": [
            state[block + "attention.depthwise.weight"].shape[2] for block in blocks
        ],
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
    # A wrong guess would load without a complaint and compute something else: only the published
    # shape has known heads. Every published CvT has windows of 7, the configuration's default;
    # another one has to be passed.
    unseen = []
    if any(fields[name] != list(getattr(default, name)) for name in ("hidden_sizes", "depths")):
        unseen.append("num_heads")
    if len(blocks) != len(default.depths):
        unseen.append("window_size")
    if fields["patch_sizes"] != list(default.patch_sizes):
        unseen += ["patch_strides", "patch_padding"]
    if missing := [name for name in unseen if name not in fields | given]:
        raise ValueError(
            f"the tensors of this checkpoint do not show {' and '.join(missing)}: pass them."
        )
    return EsvitCvtConfig(**{**fields, **given})


_SWIN_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)"

# Layer 0 of a stage embeds the patches; then attention and MLP take turns, so that two layers make
# a block.
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


ESVIT_RULES: tuple[NetworkRule, ...] = (
    NetworkRule(
        name="swin",
        signature=r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table",
        renames=(
            (r"patch_embed\.proj\.(weight|bias)", r"embeddings.projection.\1"),
            (r"patch_embed\.norm\.(weight|bias)", r"embeddings.norm.\1"),
            (r"absolute_pos_embed", r"embeddings.position_embeddings"),
            (_SWIN_BLOCK + r"\.norm1\.(weight|bias)", r"stages.\1.blocks.\2.attention_norm.\3"),
            (_SWIN_BLOCK + r"\.attn\.qkv\.(weight|bias)", r"stages.\1.blocks.\2.attention.qkv.\3"),
            (
                _SWIN_BLOCK + r"\.attn\.proj\.(weight|bias)",
                r"stages.\1.blocks.\2.attention.projection.\3",
            ),
            (_SWIN_BLOCK + r"\.attn\.(relative_position_\w+)", r"stages.\1.blocks.\2.attention.\3"),
            (_SWIN_BLOCK + r"\.norm2\.(weight|bias)", r"stages.\1.blocks.\2.mlp_norm.\3"),
            (_SWIN_BLOCK + r"\.mlp\.fc1\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
            (_SWIN_BLOCK + r"\.mlp\.fc2\.(weight|bias)", r"stages.\1.blocks.\2.mlp.contract.\3"),
            (r"layers\.(\d+)\.downsample\.norm\.(weight|bias)", r"stages.\1.downsample.norm.\2"),
            (
                r"layers\.(\d+)\.downsample\.reduction\.weight",
                r"stages.\1.downsample.reduction.weight",
            ),
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
                (
                    _VIL_ATTENTION + r"\.attn\.query(?:_global)?\." + _KIND,
                    _VIL_BLOCK + "attention.query.{kind}",
                ),
                (
                    _VIL_ATTENTION + r"\.attn\.kv(?:_global)?\." + _KIND,
                    _VIL_BLOCK + "attention.key_value.{kind}",
                ),
                (
                    _VIL_ATTENTION + r"\.attn\.proj(?:_global)?\." + _KIND,
                    _VIL_BLOCK + "attention.projection.{kind}",
                ),
                (
                    _VIL_ATTENTION + r"\.attn\.local_relative_position_bias_table",
                    _VIL_BLOCK + "attention.relative_position_bias_table",
                ),
                (
                    _VIL_ATTENTION + r"\.attn\.g2l_relative_position_bias",
                    _VIL_BLOCK + "attention.global_to_grid_bias",
                ),
                (
                    _VIL_ATTENTION + r"\.attn\.g2g_relative_position_bias",
                    _VIL_BLOCK + "attention.global_to_global_bias",
                ),
                (
                    _VIL_ATTENTION + r"\.attn\.relative_position_index",
                    _VIL_BLOCK + "attention.relative_position_index",
                ),
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
            (
                r"stage0\.0\.stem\.(?P<layer>[036])\.(?P<kind>weight)",
                _cvt_stem_name("convolutions"),
            ),
            (r"stage0\.0\.stem\.(?P<layer>[147])\.(?P<kind>\w+)", _cvt_stem_name("norms")),
            (_CVT_BLOCK + r"\.0\.norm\.(weight|bias)", r"stages.\1.blocks.\2.attention_norm.\3"),
            (
                _CVT_BLOCK + r"\.0\.fn\.qkv\.dw\.weight",
                r"stages.\1.blocks.\2.attention.depthwise.weight",
            ),
            (
                _CVT_BLOCK + r"\.0\.fn\.qkv\.bn\.(\w+)",
                r"stages.\1.blocks.\2.attention.batch_norm.\3",
            ),
            (
                _CVT_BLOCK + r"\.0\.fn\.qkv\.pw\.(weight|bias)",
                r"stages.\1.blocks.\2.attention.qkv.\3",
            ),
            (
                _CVT_BLOCK + r"\.0\.fn\.proj_out\.(weight|bias)",
                r"stages.\1.blocks.\2.attention.projection.\3",
            ),
            (
                _CVT_BLOCK + r"\.0\.fn\.rel_pos_bias_table",
                r"stages.\1.blocks.\2.attention.relative_position_bias_table",
            ),
            (
                _CVT_BLOCK + r"\.0\.fn\.rel_pos_idx",
                r"stages.\1.blocks.\2.attention.relative_position_index",
            ),
            (_CVT_BLOCK + r"\.1\.norm\.(weight|bias)", r"stages.\1.blocks.\2.mlp_norm.\3"),
            (_CVT_BLOCK + r"\.1\.fn\.net\.0\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
            (
                _CVT_BLOCK + r"\.1\.fn\.net\.2\.(weight|bias)",
                r"stages.\1.blocks.\2.mlp.contract.\3",
            ),
            (r"norm\.(weight|bias)", r"norm.\1"),
        ),
        recomputed=r".*\.relative_position_index",
        infer_config=_infer_cvt_config,
        pointwise=r".*\.(?:attention\.(?:qkv|projection)|mlp\.(?:expand|contract))\.weight",
    ),
)
