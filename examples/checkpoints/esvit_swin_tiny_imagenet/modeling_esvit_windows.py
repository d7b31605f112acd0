"""Square windows of a map of tokens: how they are cut, joined and masked, and their relative
positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .modeling_esvit_common import AttentionLayout, constant, is_plain

# Added to the scores of token pairs that lie on different sides of the image before the shift; the
# reference's value.
_MASKED_SCORE = -100.0


def relative_position_index(window: int, device: torch.device | None = None) -> Tensor:
    """Row of the bias table for every pair of tokens in a window.

    Args:
        window: Side of the window in tokens, w.
        device: Device of the result.

    Returns:
        (w^4,) int64, query-major, values in [0, (2w - 1)^2).
    """
    axis = torch.arange(window, device=device)
    offset = axis[:, None] - axis[None, :] + window - 1
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]
    return index.reshape(-1)


@dataclass(frozen=True)
class WindowPlan:
    """How a map of tokens becomes windows: padded at the right and the bottom, rolled up and to the
    left, and cut.

    Windows lie in their own order, row by row; a slot is a place in one of them.

    Attributes:
        grid: (h, w) of the map.
        window: Side of the windows in tokens, w.
        shift: Tokens by which the padded map is rolled; 0 for none.
    """

    grid: tuple[int, int]
    window: int
    shift: int = 0

    @property
    def window_tokens(self) -> int:
        """Slots of a window."""
        return self.window**2

    @property
    def padded_grid(self) -> tuple[int, int]:
        """Grid of the padded map: multiples of the window."""
        height, width = self.grid
        return height + -height % self.window, width + -width % self.window

    def pad(self, tokens: Tensor) -> Tensor:
        """Lay tokens out as a map and pad it with zeros.

        Args:
            tokens: (B, h * w, C), row-major.

        Returns:
            (B, H, W, C) with the padded grid.
        """
        (height, width), (padded_height, padded_width) = self.grid, self.padded_grid
        padding = (0, 0, 0, padded_width - width, 0, padded_height - height)
        return F.pad(tokens.unflatten(1, self.grid), padding)

    def as_windows(self, token_map: Tensor) -> Tensor:
        """View a padded map as windows.

        Args:
            token_map: (B, H, W, C).

        Returns:
            (B, H / w, W / w, w, w, C), the same memory.
        """
        rows = token_map.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return rows.transpose(2, 3)

    def cut(self, tokens: Tensor, projection: Callable[[Tensor], Tensor]) -> Tensor:
        """Cut a map into windows and project its tokens.

        Args:
            tokens: (B, h * w, C), row-major.
            projection: Applied to every token on its own; padded tokens are 0 in front of it.

        Returns:
            (B, slots, projected C).
        """
        token_map = self.pad(tokens)
        if self.shift:
            token_map = token_map.roll((-self.shift, -self.shift), dims=(1, 2))
        return projection(self.as_windows(token_map).flatten(1, 4))

    def join(self, windows: Tensor) -> Tensor:
        """Put windows together to the map that they were cut from, without the padded tokens.

        Args:
            windows: (B, slots, C).

        Returns:
            (B, h * w, C), row-major.
        """
        (height, width), (padded_height, padded_width) = self.grid, self.padded_grid
        rows, columns = padded_height // self.window, padded_width // self.window
        windows = windows.unflatten(1, (rows, columns, self.window, self.window))
        token_map = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shift:
            token_map = token_map.roll((self.shift, self.shift), dims=(1, 2))
        return token_map[:, :height, :width].flatten(1, 2)

    def mask(self, bias: Tensor) -> Tensor:
        """Keep tokens apart which only the roll brought together.

        Args:
            bias: (1, heads, w^2, w^2) added to the scores of every window.

        Returns:
            (windows, heads, slots, slots), or the bias itself where nothing is rolled.
        """
        return bias + constant(shift_mask, self, bias.dtype, like=bias) if self.shift else bias


def shift_mask(plan: WindowPlan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask that keeps tokens apart which only the roll brought together.

    Args:
        plan: Windows with a shift of at least 1.
        dtype: Type of the scores.
        device: Device of the scores.

    Returns:
        (windows, 1, w^2, w^2), 0 or -100.
    """
    height, width = plan.padded_grid
    rolled_rows = torch.arange(height, device=device) < plan.shift
    rolled_columns = torch.arange(width, device=device) < plan.shift
    sides = (rolled_rows[:, None] * 2 + rolled_columns).roll((-plan.shift, -plan.shift), (0, 1))
    sides = plan.as_windows(sides[None, :, :, None]).reshape(-1, 1, plan.window**2)
    apart = sides.unsqueeze(2) != sides.unsqueeze(3)
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, _MASKED_SCORE)


def plan_windows(
    tokens: Tensor, grid: tuple[int, int], window: int, shift: int, *, every_slot: bool = False
) -> WindowPlan:
    """Plan the windows of a map by the means that are fast for it.

    Args:
        tokens: (B, h * w, C).
        grid: (h, w).
        window: Side of the windows in tokens.
        shift: Tokens by which the padded map is rolled.
        every_slot: Whether each padded token must have a slot of its own.

    Returns:
        The plan; which one it is changes no value that attention gives a token of the map.
    """
    # The grid of an exported network is not known yet.
    known = isinstance(grid[0], int) and isinstance(grid[1], int)
    if known and not every_slot and max(grid) <= window and min(grid) < window:
        return _MergingPlan(grid, window, shift)
    # A compiler fuses rolls and views; run one by one, they are several copies where a gather is
    # one.
    if is_plain(tokens):
        return constant(_gathering_plan, grid, window, shift, like=tokens)
    return WindowPlan(grid, window, shift)


@dataclass(frozen=True)
class _MergingPlan(WindowPlan):
    """One window that is larger than its map: all padded tokens share one slot, the last.

    They have the same key and the same value, so together they weigh as much as one token whose
    score has the logarithm of the sum of their exponentials as its bias.
    """

    @property
    def window_tokens(self) -> int:
        return self.grid[0] * self.grid[1] + 1

    def cut(self, tokens: Tensor, projection: Callable[[Tensor], Tensor]) -> Tensor:
        return projection(F.pad(tokens, (0, 0, 0, 1)))

    def join(self, windows: Tensor) -> Tensor:
        return windows[:, :-1]

    def mask(self, bias: Tensor) -> Tensor:
        slot_of_token, is_token = constant(_slots_of_one_window, self, like=bias)
        rows = super().mask(bias).index_select(2, slot_of_token)
        padding = rows.masked_fill(is_token, -torch.inf).logsumexp(3, keepdim=True)
        merged = torch.cat((rows.index_select(3, slot_of_token), padding), dim=3)
        # What a padded token attends to is not used.
        return F.pad(merged, (0, 0, 0, 1))


def _slots_of_one_window(plan: WindowPlan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the slot of each token (N,), and which slots have a token (w^2,)."""
    whole = WindowPlan(plan.grid, plan.window, plan.shift)
    slots = torch.arange(whole.window_tokens, device=device)
    ones = torch.ones(1, plan.grid[0] * plan.grid[1], 1, device=device)
    is_token = whole.cut(ones, lambda windows: windows).flatten() > 0
    return whole.join(slots.view(1, -1, 1)).flatten(), is_token


class _Slots(NamedTuple):
    """How tokens lie in windows.

    Attributes:
        token_of_slot: token of each slot of the windows, N for a padded one (slots,).
        slot_of_token: slot of each token (N,).
        padded_slots: slots without a token.
    """

    token_of_slot: Tensor
    slot_of_token: Tensor
    padded_slots: Tensor


@dataclass(frozen=True)
class _GatheringPlan(WindowPlan):
    """The same windows by one gather each way.

    Attributes:
        slots: How tokens lie in windows; None if they lie in their own order.
    """

    slots: _Slots | None = field(default=None, compare=False)

    def cut(self, tokens: Tensor, projection: Callable[[Tensor], Tensor]) -> Tensor:
        if self.slots is None:
            return projection(tokens)
        if len(self.slots.padded_slots):
            # One zero token behind the others stands for all padded ones, so that they cost no
            # products.
            projected = projection(F.pad(tokens, (0, 0, 0, 1)))
            return cast("Tensor", _TokensToWindows.apply(projected, *self.slots))
        return projection(_TokensToWindows.apply(tokens, *self.slots))

    def join(self, windows: Tensor) -> Tensor:
        if self.slots is None:
            return windows
        return cast("Tensor", _WindowsToTokens.apply(windows, *self.slots))


def _gathering_plan(
    grid: tuple[int, int], window: int, shift: int, device: torch.device
) -> _GatheringPlan:
    plan = WindowPlan(grid, window, shift)
    tokens = grid[0] * grid[1]
    numbers = torch.arange(1, tokens + 1, device=device).view(1, -1, 1)
    token_of_slot = plan.cut(numbers, lambda windows: windows).flatten() - 1
    slots = torch.arange(len(token_of_slot), device=device)
    if len(slots) == tokens and torch.equal(token_of_slot, slots):
        return _GatheringPlan(grid, window, shift)
    slot_of_token = plan.join(slots.view(1, -1, 1)).flatten()
    padded = token_of_slot < 0
    token_of_slot = torch.where(padded, tokens, token_of_slot)
    return _GatheringPlan(grid, window, shift, _Slots(token_of_slot, slot_of_token, slots[padded]))


class _TokensToWindows(torch.autograd.Function):
    """Put tokens into windows in one copy, and their gradients back in one copy.

    Tokens are (B, N, C), or (B, N + 1, C) with the token that all padded slots get; windows are (B,
    slots, C).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        tokens: Tensor, token_of_slot: Tensor, slot_of_token: Tensor, padded_slots: Tensor
    ) -> Tensor:
        return tokens.index_select(1, token_of_slot)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, slot_of_token, padded_slots = ctx.saved_tensors
        if not len(padded_slots):
            return gradient.index_select(1, slot_of_token), None, None, None
        for_tokens = gradient.index_select(1, torch.cat((slot_of_token, padded_slots[:1])))
        for_tokens[:, -1] = gradient.index_select(1, padded_slots).sum(1)
        return for_tokens, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _TokensToWindows.apply(tangent, *ctx.saved_tensors)


class _WindowsToTokens(torch.autograd.Function):
    """Take tokens (B, N, C) out of windows (B, slots, C) in one copy, and put their gradients back
    in one copy.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        windows: Tensor, token_of_slot: Tensor, slot_of_token: Tensor, padded_slots: Tensor
    ) -> Tensor:
        return windows.index_select(1, slot_of_token)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slots = ctx.saved_tensors
        # A padded slot takes no part in what follows.
        padded = F.pad(gradient, (0, 0, 0, 1)) if len(slots[2]) else gradient
        return _TokensToWindows.apply(padded, *slots), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _WindowsToTokens.apply(tangent, *ctx.saved_tensors)


def window_attention_layout(plan: WindowPlan, stride: tuple[int, int]) -> AttentionLayout:
    """Describe attention inside windows.

    Args:
        plan: The windows.
        stride: Pixels from one token to the next, vertically and horizontally.

    Returns:
        The layout of (B * windows, heads, w^2, w^2) probabilities, windows row by row. Tokens that
        only the roll brought together may not attend to each other; padding is not masked.
    """
    numbers = torch.arange(1, plan.grid[0] * plan.grid[1] + 1).view(1, -1, 1)
    tokens = plan.cut(numbers, lambda windows: windows).view(-1, plan.window**2) - 1
    if plan.shift:
        allowed = shift_mask(plan, torch.float32, torch.device("cpu"))[:, 0] == 0
    else:
        allowed = torch.ones(len(tokens), plan.window**2, plan.window**2, dtype=torch.bool)
    return AttentionLayout(plan.grid, stride, 0, tokens, tokens, allowed)
