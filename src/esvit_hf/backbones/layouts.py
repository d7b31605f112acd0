"""How the outputs of a foreign network lie: as maps or as tokens, and in which grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = [
    "BackboneFeatures",
    "MapLayout",
    "TokenLayout",
    "find_hidden_layouts",
    "find_layout",
    "find_token_layout",
    "is_ambiguous",
]


@dataclass(frozen=True)
class BackboneFeatures:
    """What a backbone says about a batch of images.

    Attributes:
        regions: (B, N, C) spatial tokens of the last stage, row-major, without class or register
            tokens.
        pooled: (B, C) view feature.
        grid: (h, w) with h * w = N.
    """

    regions: Tensor
    pooled: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class MapLayout:
    """Outputs are feature maps.

    Attributes:
        channels_last: (B, h, w, C) instead of (B, C, h, w).
    """

    channels_last: bool

    def read(self, last_hidden_state: Tensor, height: int, width: int) -> BackboneFeatures:
        """Read regions, view feature and grid off an output.

        Args:
            last_hidden_state: the map.
            height: of the images in pixels.
            width: of the images in pixels.

        Returns:
            The features; the view feature is the mean of the regions.
        """
        maps = last_hidden_state if self.channels_last else last_hidden_state.permute(0, 2, 3, 1)
        regions = maps.flatten(1, 2)
        return BackboneFeatures(regions, regions.mean(dim=1), (maps.shape[1], maps.shape[2]))

    def pool(self, hidden_state: Tensor) -> Tensor:
        """Average a map over its positions: (B, C)."""
        return hidden_state.mean(dim=(1, 2) if self.channels_last else (2, 3))


@dataclass(frozen=True)
class TokenLayout:
    """Outputs are tokens (B, prefix + h * w, C); a prefix starts with the class token.

    Attributes:
        stride: pixels between neighboring regions, (vertical, horizontal).
        prefix: number of class, distillation and register tokens in front of the regions.
        is_row_major: whether the regions lie row by row.
    """

    stride: tuple[int, int]
    prefix: int
    is_row_major: bool = True

    def read(self, last_hidden_state: Tensor, height: int, width: int) -> BackboneFeatures:
        """Read regions, view feature and grid off an output.

        Args:
            last_hidden_state: the tokens.
            height: of the images in pixels.
            width: of the images in pixels.

        Returns:
            The features; the view feature is the class token, else the mean of the regions.

        Raises:
            ValueError: the tokens form no grid, or not row by row.
        """
        if not self.is_row_major:
            raise ValueError(
                "the tokens of this layer do not lie row by row, so that their places are unknown: "
                "choose another layer"
            )
        count = last_hidden_state.shape[1] - self.prefix
        grid = self.grid(count, height, width)
        if grid is None:
            raise ValueError(
                f"the network turned {height} x {width} pixels into {count} regions, which form no "
                f"grid of stride {self.stride[0]} x {self.stride[1]}: use an input size that is a "
                f"multiple of the stride"
            )
        return BackboneFeatures(
            last_hidden_state[:, self.prefix :], self.pool(last_hidden_state), grid
        )

    def grid(self, count: int, height: int, width: int) -> tuple[int, int] | None:
        """Grid of a number of regions of an image of height x width pixels; None if they form
        none.
        """
        grids = _possible_grids(height, width, self.stride)
        return next((grid for grid in grids if grid[0] * grid[1] == count), None)

    def pool(self, hidden_state: Tensor) -> Tensor:
        """Take the class token where there is one, else the mean over the positions: (B, C)."""
        return hidden_state[:, 0] if self.prefix else hidden_state.mean(dim=1)


def find_layout(
    last_hidden_state: Tensor,
    image_size: tuple[int, int],
    first_stride: tuple[int, int],
    name: str,
    wider: Tensor | None = None,
) -> MapLayout | TokenLayout:
    """Tell how a network lays out its last output.

    Args:
        last_hidden_state: What it makes of one image.
        image_size: Height and width of that image in pixels.
        first_stride: Pixels between its patches, vertically and horizontally.
        name: Of the network, for errors.
        wider: What it makes of an image of twice the width, if it takes one; needed for maps that
            are ambiguous.

    Returns:
        The layout.

    Raises:
        ValueError: The output holds no grid of regions, or its axes may be either.
    """
    if last_hidden_state.ndim == 3:
        return find_token_layout(last_hidden_state.shape[1], image_size, first_stride, name)
    channels_last = _measured_channels_last(last_hidden_state, image_size, wider)
    if channels_last is None and is_ambiguous(last_hidden_state, image_size):
        raise ValueError(
            f"{name} turns an image of {image_size[0]} x {image_size[1]} pixels into a map of "
            f"shape {tuple(last_hidden_state.shape)}, whose channels may come first or last: pass "
            f"image_size with a size whose map has another number of rows than channels"
        )
    return MapLayout(channels_last is True)


def find_hidden_layouts(
    hidden_states: Sequence[Any],
    last: MapLayout | TokenLayout,
    image_size: tuple[int, int],
    first_stride: tuple[int, int],
    name: str,
    wider: Sequence[Any] = (),
) -> list[MapLayout | TokenLayout | None]:
    """Tell how a network lays out every hidden state; not all need to lie as the last output does.

    Args:
        hidden_states: What it makes of one image, in order.
        last: Layout of its last output.
        image_size: Height and width of that image in pixels.
        first_stride: Pixels between its patches, vertically and horizontally.
        name: Of the network, for errors.
        wider: What it makes of an image of twice the width, if it takes one; needed for maps that
            are ambiguous.

    Returns:
        The layouts; None for a state that is neither a map nor tokens of a grid, or may be read in
        two ways.
    """
    measured = [
        _measured_channels_last(state, image_size, wider[layer] if wider else None)
        if isinstance(state, Tensor) and state.ndim == 4
        else None
        for layer, state in enumerate(hidden_states)
    ]
    # A map as wide as it has channels tells nothing: it lies as the other maps do.
    known = {channels_last for channels_last in measured if channels_last is not None}
    others = known.pop() if len(known) == 1 else None
    prefixes = {0, last.prefix} if isinstance(last, TokenLayout) else {0}
    layouts: list[MapLayout | TokenLayout | None] = []
    for state, channels_last in zip(hidden_states, measured, strict=True):
        layout: MapLayout | TokenLayout | None = None
        if isinstance(state, Tensor) and state.ndim == 4:
            if channels_last is None and is_ambiguous(state, image_size):
                channels_last = others
            layout = None if channels_last is None else MapLayout(channels_last)
        elif isinstance(state, Tensor) and state.ndim == 3:
            found = _tokens_of_a_grid(state.shape[1], image_size, first_stride, name)
            layout = found if found is not None and found.prefix in prefixes else None
        layouts.append(layout)
    return layouts


def is_ambiguous(state: Any, image_size: tuple[int, int]) -> bool:
    """Say whether the channels of a map may come first or last.

    Args:
        state: What a network makes of one image.
        image_size: Height and width of that image in pixels.
    """
    return isinstance(state, Tensor) and state.ndim == 4 and len(_sides(state, image_size)) == 2


def _tokens_of_a_grid(
    tokens: int, image_size: tuple[int, int], first_stride: tuple[int, int], name: str
) -> TokenLayout | None:
    try:
        return find_token_layout(tokens, image_size, first_stride, name)
    except ValueError:
        return None


def _sides(state: Tensor, image_size: tuple[int, int]) -> list[bool]:
    """Say which readings give a grid with the image's proportions: True for channels last."""
    height, width = image_size
    _, first, second, third = state.shape
    # Each side may be rounded by less than one token.
    rounding = max(height, width)
    grids = {True: (first, second), False: (second, third)}
    return [
        channels_last
        for channels_last, (rows, columns) in grids.items()
        if abs(rows * width - columns * height) < rounding
    ]


def _measured_channels_last(
    state: Tensor, image_size: tuple[int, int], wider: Tensor | None
) -> bool | None:
    """Read off a map of one image whether channels come last; None if it may be either, or is no
    map.
    """
    found = _sides(state, image_size)
    if len(found) == 2 and wider is not None:
        # The axis that grows with the image is its width.
        found = [axis == 2 for axis in (2, 3) if wider.shape[axis] > state.shape[axis]]
    return found[0] if len(found) == 1 else None


def find_token_layout(
    tokens: int, image_size: tuple[int, int], first_stride: tuple[int, int], name: str
) -> TokenLayout:
    """Find stride and prefix: hierarchical networks halve the grid until its regions fit into the
    tokens.

    Args:
        tokens: Number of them.
        image_size: Height and width of the image in pixels.
        first_stride: Pixels between the network's patches, vertically and horizontally.
        name: Of the network, for errors.

    Returns:
        The layout.

    Raises:
        ValueError: There are fewer tokens than any grid has regions.
    """
    height, width = image_size
    stride = first_stride
    while stride[0] <= height or stride[1] <= width:
        for grid in _possible_grids(height, width, stride):
            if 0 < grid[0] * grid[1] <= tokens:
                return TokenLayout(stride, tokens - grid[0] * grid[1])
        stride = (2 * stride[0], 2 * stride[1])
    raise ValueError(
        f"{name} has no spatial tokens (an image of {height} x {width} pixels becomes {tokens} "
        f"tokens): choose a network that gives features per region"
    )


def _possible_grids(height: int, width: int, stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of an input whose remainder is padded, or dropped."""
    return [
        (math.ceil(height / stride[0]), math.ceil(width / stride[1])),
        (height // stride[0], width // stride[1]),
    ]
