"""Checks and small conversions that the configurations of all EsViT networks share."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

# Fields of transformers' SwinConfig, CvtConfig and ViTConfig that change the network there and have
# no counterpart here: accepting them as free attributes would ignore them silently.
_FIELDS_OF_OTHER_CONFIGS = frozenset(
    {
        "attention_drop_rate",
        "attention_probs_dropout_prob",
        "cls_token",
        "depth",
        "drop_rate",
        "encoder_stride",
        "hidden_dropout_prob",
        "intermediate_size",
        "patch_padding",
        "qkv_projection_method",
        "stride_kv",
        "stride_q",
    }
)


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


def check_unknown_fields(config: PreTrainedConfig, unknown: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that are misspelled fields or fields of another architecture.

    Args:
        config: The configuration under construction.
        unknown: Keyword arguments that are no fields of it.

    Raises:
        ValueError: If a name looks like one of the fields, or is known to mean something elsewhere.
    """
    known = {field.name for field in fields(config)} | set(config.attribute_map)
    own = {name for name in known if name not in {field.name for field in fields(PreTrainedConfig)}}
    for name in unknown:
        if name in _FIELDS_OF_OTHER_CONFIGS:
            raise ValueError(
                f"{type(config).__name__} has no field {name!r}: the EsViT networks do not have "
                f"this setting. Fields: {', '.join(sorted(own))}."
            )
        if similar := difflib.get_close_matches(name, own, n=1, cutoff=0.75):
            raise ValueError(
                f"{type(config).__name__} has no field {name!r}; did you mean {similar[0]!r}?"
            )


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
