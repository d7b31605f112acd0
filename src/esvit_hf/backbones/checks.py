"""What the outputs of a foreign network on one image must be for it to serve as a backbone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_hf.backbones.layouts import MapLayout, TokenLayout

__all__ = ["check_deterministic", "check_order", "check_spatial", "check_tokens"]


def check_spatial(output: Any, name: str) -> None:
    """Refuse a network without tokens or a map.

    Args:
        output: What it makes of one image.
        name: Of the network.

    Raises:
        ValueError: There are none.
    """
    last = getattr(output, "last_hidden_state", None)
    if isinstance(last, Tensor) and last.ndim in (3, 4):
        return
    found = f"a last_hidden_state of type {type(last).__name__}"
    if last is None:
        found = "no last_hidden_state"
    elif isinstance(last, Tensor):
        found = f"a last_hidden_state of shape {tuple(last.shape)}"
    raise ValueError(
        f"{name} has no spatial tokens ({found}): choose a network that gives features per region"
    )


def check_deterministic(output: Any, repeated: Any, name: str) -> None:
    """Refuse a network whose features are random.

    Args:
        output: What it makes of one image in evaluation mode.
        repeated: What it makes of the same image once more.
        name: Of the network.

    Raises:
        ValueError: They differ.
    """
    first, second = output.last_hidden_state, repeated.last_hidden_state
    if first.shape != second.shape or not torch.equal(first, second):
        raise ValueError(
            f"{name} gives different outputs for the same image in evaluation mode (random "
            f"masking, as in MAE?): load the weights as the plain encoder class, for MAE ViTModel"
        )


def check_tokens(
    hidden_states: Sequence[Any], layout: MapLayout | TokenLayout, pixels: Tensor, name: str
) -> None:
    """Refuse tokens behind the regions, such as those that YOLOS detects objects with, and tokens
    in front of them that were taken for regions.

    Args:
        hidden_states: What a network makes of one image, in order.
        layout: How its last output was read.
        pixels: The image, which has a gradient.
        name: Of the network.

    Raises:
        ValueError: There are such tokens.
    """
    first = hidden_states[0] if len(hidden_states) else None
    if not isinstance(first, Tensor) or first.ndim != 3 or not first.requires_grad:
        return
    if not _depends(first[:, -1], pixels):
        raise ValueError(
            f"{name} puts tokens that belong to no region behind its regions: choose a network "
            f"whose further tokens come first"
        )
    if isinstance(layout, TokenLayout) and not layout.prefix and not _depends(first[:, 0], pixels):
        height, width = pixels.shape[-2:]
        raise ValueError(
            f"{name} turns an image of {height} x {width} pixels into as many tokens as a grid of "
            f"stride {layout.stride[0]} x {layout.stride[1]} has, but the first one is no region: "
            f"pass image_size with a multiple of the stride"
        )


def check_order(
    hidden_states: Sequence[Any],
    layouts: Sequence[MapLayout | TokenLayout | None],
    pixels: Tensor,
) -> list[MapLayout | TokenLayout | None]:
    """Find tokens that do not lie row by row, such as those of Hiera, which lie window by window.

    Args:
        hidden_states: What a network makes of one image, in order.
        layouts: How each of them lies.
        pixels: The image, which has a gradient.

    Returns:
        The layouts, in which such tokens are marked.
    """
    first = layouts[0] if layouts else None
    # Only patch embeddings depend on their own place alone; where they lie in order, all do.
    if not isinstance(first, TokenLayout) or _is_row_major(hidden_states[0], first, pixels):
        return list(layouts)
    return [
        replace(layout, is_row_major=_is_row_major(state, layout, pixels))
        if isinstance(layout, TokenLayout)
        else layout
        for state, layout in zip(hidden_states, layouts, strict=True)
    ]


def _is_row_major(state: Tensor, layout: TokenLayout, pixels: Tensor) -> bool:
    """Whether two regions depend most on their own places in the image."""
    regions = state[:, layout.prefix :]
    grid = layout.grid(regions.shape[1], *pixels.shape[-2:])
    if grid is None or min(grid) < 3 or not state.requires_grad:
        return True
    rows, columns = grid
    for row, column in ((1, columns // 2), (rows // 2, 1)):
        gradient = _gradient(regions[:, row * columns + column], pixels)
        if gradient is None:
            return True
        shares = F.adaptive_avg_pool2d(gradient.abs().sum(1), grid)
        found = divmod(int(shares.argmax()), columns)
        if max(abs(found[0] - row), abs(found[1] - column)) > 1:
            return False
    return True


def _depends(token: Tensor, pixels: Tensor) -> bool:
    """Whether a token (1, C) depends on the image at all."""
    gradient = _gradient(token, pixels)
    return gradient is not None and bool(gradient.any())


def _gradient(token: Tensor, pixels: Tensor) -> Tensor | None:
    # Unequal weights: a sum of normalized channels is constant.
    total = (token * torch.arange(1, token.shape[1] + 1, device=token.device)).sum()
    return torch.autograd.grad(total, pixels, retain_graph=True, allow_unused=True)[0]
