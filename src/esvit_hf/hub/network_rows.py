"""The table that a card begins with: how large a network is, what it costs, who may use it."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LICENSE_ROW", "NO_LICENSE", "count_operations", "describe_time", "network_rows"]

LICENSE_ROW = "license"
NO_LICENSE = "not stated: ask the owner before you use the weights"


def count_operations(model: "PreTrainedModel", shape: tuple[int, int, int]) -> int | None:
    """Count the floating-point operations of one image in a network, without computing anything.

    Args:
        model: the network; only its class and configuration are used.
        shape: channels, height and width of an image as the network sees it.

    Returns:
        The number, in which a multiplication and an addition are two; None if the network cannot be
        run without its weights.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = copy.deepcopy(model.config)
    # The counter does not know every fused attention.
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            type(model)(config).eval()(torch.empty(1, *shape))
    # A network of other hands may look at values, which there are none of.
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    return int(counter.get_total_flops())


def network_rows(
    config: Mapping[str, Any],
    parameters: int,
    *,
    operations: int | None = None,
    training_time: str | None = None,
    license_name: str | None = None,
) -> dict[str, str]:
    """Say how large a network is, and what it costs.

    Args:
        config: fields of its configuration.
        parameters: their number.
        operations: floating-point operations of one image, None if they are not known.
        training_time: how long it was trained on what, None if that is not known.
        license_name: license of the weights, None if the owner has not chosen one.

    Returns:
        Rows of a table, by name; what is not known is left out.
    """
    rows = {
        "parameters": f"{parameters:,}",
        "weights in float32": f"{_two_digits(4 * parameters / 1e6)} MB",
    }
    width = config.get("hidden_size") or (config.get("hidden_sizes") or [None])[-1]
    if width is None and isinstance(config.get("embed_dim"), int) and "depths" in config:
        width = config["embed_dim"] * 2 ** (len(config["depths"]) - 1)
    if width is not None:
        rows["numbers of a feature"] = str(width)
    if size := config.get("image_size"):
        height, side = (size, size) if isinstance(size, int) else size
        channels = config.get("num_channels", 3)
        rows["input"] = f"{height} x {side} pixels, {channels} channels"
    if operations is not None:
        rows["operations for one image"] = f"{_two_digits(operations / 1e9)} GFLOP"
    if training_time is not None:
        rows["training time"] = training_time
    return rows | {LICENSE_ROW: license_name or NO_LICENSE}


def describe_time(seconds: float) -> str:
    """Write a length of time with two digits, in the unit that suits it.

    Args:
        seconds: the length.

    Returns:
        For example "3.5 hours".
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds)} seconds"


def _two_digits(value: float) -> str:
    """Write a number with two digits; beyond 100 without decimals."""
    return f"{value:.0f}" if value >= 100 else f"{float(f'{value:.2g}'):g}"
