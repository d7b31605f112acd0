"""Configurations of networks by name, and one line for what cannot be loaded."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from esvit_hf.common.errors import one_line
from esvit_hf.common.places import check_model_place

__all__ = ["cannot_load", "load_configuration"]


def load_configuration(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **config_fields: Any,
) -> PreTrainedConfig:
    """Load the configuration of a network.

    Args:
        name_or_path: Hub name or folder.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that the repository ships.
        config_fields: fields to override.

    Returns:
        The configuration.

    Raises:
        ValueError: there is none, it is damaged, or a field does not exist or fit.
    """
    check_model_place(name_or_path, revision=revision)
    try:
        config, unknown = AutoConfig.from_pretrained(
            name_or_path,
            return_unused_kwargs=True,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **config_fields,
        )
    # A file of JSON may hold anything.
    except (
        *(AttributeError, KeyError, OSError, RuntimeError, StrictDataclassError),
        *(TypeError, ValueError),
    ) as error:
        raise cannot_load(name_or_path, error, config_fields) from error
    if unknown := sorted(set(unknown) & set(config_fields)):
        raise ValueError(
            f"{type(config).__name__} has no field {', '.join(map(repr, unknown))}: remove it "
            f"or correct its name"
        )
    return config


def cannot_load(name_or_path: str, error: Exception, fields: Iterable[str] = ()) -> ValueError:
    """Make the error of a network that cannot be loaded.

    Args:
        name_or_path: Hub name or folder.
        error: what went wrong.
        fields: names of the fields of its configuration that were overridden.

    Returns:
        The error, with what to do.
    """
    remedy = "give a Hub name or a folder with config.json and model.safetensors"
    reason = one_line(error)
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its configuration says"
    if "trust_remote_code" in str(error):
        remedy = "set trust_remote_code if you trust the code that comes with it"
    elif fields:
        remedy = f"correct {', '.join(fields)}, or {remedy}"
    return ValueError(f"cannot load a model from {name_or_path!r} ({reason}): {remedy}")
