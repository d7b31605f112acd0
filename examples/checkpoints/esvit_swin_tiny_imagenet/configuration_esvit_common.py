"""What the configurations of all EsViT networks share: the base class, checks and small
conversions.
"""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

# What transformers, timm or the reference call something that has another name here: of several
# names the one that the network has counts. Written in lower case; the reference shouts.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "act_layer": ("hidden_act",),
    "activation": ("hidden_act",),
    "activation_function": ("hidden_act",),
    "ape": ("use_absolute_embeddings", "position_embedding"),
    "block_depths": ("depths",),
    "blocks": ("depths",),
    "depth": ("depths",),
    "dim": ("hidden_sizes", "embed_dim"),
    "dim_embed": ("hidden_sizes", "embed_dim"),
    "dims": ("hidden_sizes", "embed_dim"),
    "drop_path": ("drop_path_rate",),
    "droppath": ("drop_path_rate",),
    "embed_dim": ("hidden_sizes",),
    "embed_dims": ("hidden_sizes", "embed_dim"),
    "eps": ("layer_norm_eps",),
    "epsilon": ("layer_norm_eps",),
    "global_tokens": ("num_global_tokens",),
    "heads": ("num_heads",),
    "hidden_activation": ("hidden_act",),
    "hidden_size": ("hidden_sizes", "embed_dim"),
    "hidden_sizes": ("embed_dim",),
    "image_resolution": ("image_size",),
    "img_dim": ("image_size",),
    "img_size": ("image_size",),
    "in_channels": ("num_channels",),
    "in_chans": ("num_channels",),
    "input_resolution": ("image_size",),
    "input_size": ("image_size",),
    "kernel_qkv": ("qkv_kernel_sizes",),
    "layers": ("depths",),
    "ln_eps": ("layer_norm_eps",),
    "mlp_ratios": ("mlp_ratio",),
    "mode": ("sparse_training_mode",),
    "n_classes": ("num_labels",),
    "n_layers": ("depths",),
    "nb_classes": ("num_labels",),
    "nglo": ("num_global_tokens",),
    "norm_eps": ("layer_norm_eps",),
    "num_class": ("num_labels",),
    "num_classes": ("num_labels",),
    "num_encoder_blocks": ("depths",),
    "num_hidden_layers": ("depths",),
    "num_layers": ("depths",),
    "num_stages": ("depths",),
    "patch": ("patch_size", "patch_sizes"),
    "patch_size": ("patch_sizes",),
    "patch_sizes": ("patch_size",),
    "patch_stride": ("patch_strides", "patch_sizes", "patch_size"),
    "pos_embed": ("use_absolute_embeddings", "position_embedding"),
    "position_embedding": ("use_absolute_embeddings", "relative_position_bias"),
    "rel_pos_embed": ("relative_position_bias", "position_embedding"),
    "relative_position_bias": ("position_embedding",),
    "res_stem": ("deep_stem",),
    "resolution": ("image_size",),
    "rpe": ("relative_position_bias", "position_embedding"),
    "stochastic_depth_prob": ("drop_path_rate",),
    "stochastic_depth_rate": ("drop_path_rate",),
    "strides": ("patch_strides", "patch_sizes", "patch_size"),
    "use_absolute_embeddings": ("position_embedding",),
    "use_absolute_position_embeddings": ("use_absolute_embeddings", "position_embedding"),
    "use_ape": ("use_absolute_embeddings", "position_embedding"),
    "use_pos_embed": ("use_absolute_embeddings", "position_embedding"),
    "use_relative_position_bias": ("relative_position_bias", "position_embedding"),
    "w": ("window_size",),
    "window": ("window_size",),
    "windows": ("window_size",),
}

_NO_DROPOUT = "the EsViT networks have no dropout; drop_path_rate is the rate of stochastic depth"
_NO_CHOICE = "the EsViT networks leave no choice here"
# Settings of such networks elsewhere that the EsViT networks do not have: accepting them as free
# attributes would ignore them silently.
_WITHOUT_COUNTERPART: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "attention_drop_rate",
            "attention_dropout",
            "attention_probs_dropout_prob",
            "attn_drop",
            "attn_drop_rate",
            "classifier_dropout",
            "classifier_dropout_prob",
            "drop",
            "drop_block_rate",
            "drop_rate",
            "dropout",
            "dropout_prob",
            "dropout_rate",
            "hidden_dropout_prob",
            "patch_drop_rate",
            "pos_drop_rate",
            "proj_drop",
            "proj_drop_rate",
        ),
        _NO_DROPOUT,
    ),
    **dict.fromkeys(
        (
            "add_pooled",
            "always_partition",
            "attn_type",
            "avg_pool",
            "class_token",
            "cls_token",
            "conv_mlp",
            "dynamic_img_pad",
            "dynamic_img_size",
            "embed_layer",
            "encoder_stride",
            "exportable",
            "fc_norm",
            "final_norm",
            "fused_attn",
            "fused_window_process",
            "global_pool",
            "head_dim",
            "head_hidden_size",
            "head_init_scale",
            "head_norm_first",
            "init_values",
            "is_teacher",
            "layer_scale_init_value",
            "layerscale_value",
            "linear_attention",
            "ls_init_value",
            "mask_ratio",
            "masked_unit_size",
            "mlp_layer",
            "no_embed_class",
            "norm_embed",
            "norm_layer",
            "num_query_pool",
            "num_register_tokens",
            "only_glo",
            "only_global",
            "output_fmt",
            "output_stride",
            "padding_kv",
            "padding_q",
            "padding_qkv",
            "patch_norm",
            "patch_padding",
            "pool_layer",
            "pool_method",
            "pooler_act",
            "pooler_output_size",
            "pre_norm",
            "pretrained_window_size",
            "pretrained_window_sizes",
            "proj_bias",
            "qk_norm",
            "qk_scale",
            "qkv_proj_method",
            "qkv_projection_method",
            "query_stride",
            "reg_tokens",
            "reshape_last_stage",
            "scale_attn_norm",
            "scale_mlp_norm",
            "scriptable",
            "share_kv",
            "share_w",
            "sharew",
            "sr_ratios",
            "stem_type",
            "strict_img_size",
            "stride_kv",
            "stride_q",
            "sw_exact",
            "use_auxiliary_head",
            "use_conv_embed",
            "use_dense_prediction",
            "use_layerscale",
            "use_mask_token",
            "use_mean_pooling",
            "use_shared_relative_position_bias",
            "use_swiglu_ffn",
            "weight_init",
            "with_cls_token",
            "with_se",
        ),
        _NO_CHOICE,
    ),
    "arch": "depths, hidden_sizes and the other fields say what an architecture string does",
    "checkpoint_path": "from_pretrained() of the model loads weights",
    "features_only": "the Backbone class of the network returns maps",
    "intermediate_size": "mlp_ratio gives the hidden channels of the MLP",
    "pretrained": "from_pretrained() of the model loads weights",
    "shift": "odd blocks of a Swin always shift their windows, and a CvT never does: the reference "
    "then only masks as if it did",
    "use_checkpoint": "call gradient_checkpointing_enable() of the model",
}

Config = TypeVar("Config", bound="EsvitConfig")


class EsvitConfig(BackboneConfigMixin, PreTrainedConfig):
    """Base of the configurations: names are checked, stages have names.

    A network adds its fields, among them `depths`, and `validate_architecture`.
    """

    attribute_map = {"num_attention_heads": "num_heads", "layer_norm_epsilon": "layer_norm_eps"}

    def __post_init__(self, **kwargs: Any) -> None:
        """Check names and fields and resolve the stages that a backbone returns."""
        out_features = kwargs.pop("out_features", None)
        out_indices = kwargs.pop("out_indices", None)
        # Whatever was set on a configuration is saved with it, and what was saved can be loaded.
        if self.transformers_version is None:
            check_names(type(self), kwargs)
        # Called here as well as by @strict, which would wrap the ValueError in an error that is
        # none.
        self.validate_architecture()
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls: type[Config], config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from what was saved (see transformers).

        Args:
            config_dict: Saved fields.
            **kwargs: Fields that win over them, and settings of the loading.

        Returns:
            The configuration and, if asked for, the settings that are no fields.

        Raises:
            ValueError: If the fields contradict each other or a name is misspelled.
        """
        check_names(cls, [name for name in kwargs if name not in config_dict])
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save a configuration that can be loaded again (see transformers).

        Args:
            save_directory: Folder to write.
            *args: As in transformers.
            **kwargs: As in transformers.

        Raises:
            ValueError: If it cannot, because of what was set on it since it was made.
        """
        try:
            type(self).from_dict(self.to_dict())
        except (AttributeError, LookupError, StrictDataclassError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{type(self).__name__} holds values that could not be loaded again ({reason}): "
                f"correct them before saving."
            ) from error
        super().save_pretrained(save_directory, *args, **kwargs)

    def validate_architecture(self) -> None:
        """Check that the fields describe a network that can be built.

        Raises:
            ValueError: With the field, its value and what would work.
        """

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that a backbone can return."""
        return ["stem", *(f"stage{stage}" for stage in range(1, len(self.depths) + 1))]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the whole network."""
        return sum(self.depths)


def check_names(config_class: type[EsvitConfig], names: Iterable[str]) -> None:
    """Refuse names that are misspelled fields, or what a field is called elsewhere.

    Args:
        config_class: Configuration that is given them.
        names: Keyword arguments.

    Raises:
        ValueError: With the right name, or why there is none.
    """
    common = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(config_class)} | {"out_features", "out_indices"}
    own = {name for name in own - common if not name.startswith("_")}
    known = common | own | set(config_class.attribute_map) | {"num_labels"}
    # transformers takes the settings of text generation in every configuration.
    known |= set(vars(GenerationConfig()))
    for name in names:
        if name in known:
            continue
        start = f"{config_class.__name__} has no field {name!r}"
        lower = name.lower()
        if renamed := [ours for ours in _OTHER_NAMES.get(lower, ()) if ours in known]:
            raise ValueError(f"{start}: here it is {renamed[0]!r}.")
        # What one of the networks has another may lack.
        if reason := _WITHOUT_COUNTERPART.get(lower, lower in _OTHER_NAMES and _NO_CHOICE):
            raise ValueError(f"{start}: {reason}. Fields: {', '.join(sorted(own))}.")
        if similar := difflib.get_close_matches(lower, own, n=1, cutoff=0.75):
            raise ValueError(f"{start}; did you mean {similar[0]!r}?")


def as_pair(value: int | Sequence[int], field: str) -> tuple[int, int]:
    """Read a size given as one number or as (height, width).

    Args:
        value: One size in pixels or tokens for both axes, or (height, width).
        field: Name of the configuration field, for the error message.

    Returns:
        (height, width).

    Raises:
        ValueError: If there are not exactly two positive numbers.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(size < 1 for size in pair):
        raise ValueError(
            f"{field}={value!r} is not a size: give one positive integer or (height, width)."
        )
    return pair


def check_one_value_a_stage(config: PreTrainedConfig, names: Iterable[str]) -> None:
    """Check that the listed fields hold one positive number for every stage.

    Args:
        config: The configuration.
        names: Fields to check; the first one sets the number of stages.

    Raises:
        ValueError: If a list is empty, has another length than the first one, or holds a number
            below one.
    """
    stages: int | None = None
    for name in names:
        values = list(getattr(config, name))
        if not values or any(value < 1 for value in values):
            raise ValueError(f"{name}={values} must hold one positive number for each stage.")
        stages = len(values) if stages is None else stages
        if len(values) != stages:
            raise ValueError(
                f"{name}={values} has {len(values)} entries; the network has {stages} stages."
            )


def check_rate(config: PreTrainedConfig, name: str) -> None:
    """Check that a field is a probability below one.

    Args:
        config: The configuration.
        name: The field.

    Raises:
        ValueError: If it is outside [0, 1).
    """
    if not 0 <= (rate := getattr(config, name)) < 1:
        raise ValueError(f"{name}={rate} must be at least 0 and below 1.")
