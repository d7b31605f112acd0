"""Windows of a map of tokens: the gathers are the rolls and views, there and back, and in their
derivatives.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esvit_hf.models.modeling_esvit_windows import (
    WindowPlan,
    _GatheringPlan,
    _TokensToWindows,
    _WindowsToTokens,
    plan_windows,
    window_attention_layout,
)

AS_THEY_ARE = nn.Identity()


def gathering_plan(grid: tuple[int, int], window: int, shift: int) -> _GatheringPlan:
    plan = plan_windows(torch.empty(0), grid, window, shift, every_slot=True)
    assert isinstance(plan, _GatheringPlan)
    return plan


@given(
    grid=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    window=st.integers(1, 6),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_joining_undoes_cutting_and_the_gather_is_the_same(grid, window, data):
    shift = data.draw(st.integers(0, window - 1))
    plan, gathering = WindowPlan(grid, window, shift), gathering_plan(grid, window, shift)
    tokens = torch.randn(2, grid[0] * grid[1], 3, requires_grad=True)
    windows = plan.cut(tokens, AS_THEY_ARE)
    assert torch.equal(plan.join(windows), tokens)
    weights = torch.randn_like(windows)
    gathered = gathering.cut(tokens, AS_THEY_ARE)
    assert torch.equal(gathered, windows)
    assert torch.equal(
        torch.autograd.grad((gathered * weights).sum(), tokens)[0],
        torch.autograd.grad((windows * weights).sum(), tokens)[0],
    )
    windows = windows.detach().requires_grad_()
    weights = torch.randn_like(tokens)
    taken = gathering.join(windows)
    assert torch.equal(taken, tokens)
    assert torch.equal(
        torch.autograd.grad((taken * weights).sum(), windows)[0],
        torch.autograd.grad((plan.join(windows) * weights).sum(), windows)[0],
    )
    bias = torch.randn(1, 2, window**2, window**2)
    assert torch.equal(gathering.mask(bias), plan.mask(bias))


def test_all_padded_slots_get_the_projection_of_zeros_and_return_its_gradient():
    plan = WindowPlan((3, 5), 2, 1)
    projection = nn.Linear(3, 4).double()
    tokens = torch.randn(2, 15, 3, dtype=torch.double, requires_grad=True)
    inputs = [tokens, *projection.parameters()]
    expected = plan.cut(tokens, projection)
    found = gathering_plan((3, 5), 2, 1).cut(tokens, projection)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
    )


@pytest.mark.parametrize("grid", [(3, 5), (4, 4)])
def test_second_derivative_of_the_windows(grid):
    slots = gathering_plan(grid, 2, 1).slots
    assert slots is not None
    tokens = torch.randn(
        1, grid[0] * grid[1] + (len(slots.padded_slots) > 0), 2, dtype=torch.double
    )

    def there_and_back(tokens: Tensor) -> Tensor:
        windows = _TokensToWindows.apply(tokens, *slots).square()
        return _WindowsToTokens.apply(windows, *slots).square()

    assert torch.autograd.gradcheck(there_and_back, (tokens.requires_grad_(),))
    assert torch.autograd.gradgradcheck(there_and_back, (tokens,))


@pytest.mark.parametrize("shift", [0, 1])
def test_layout_names_the_token_of_every_slot(shift):
    plan = WindowPlan((3, 4), 2, shift)
    layout = window_attention_layout(plan, (4, 8))
    assert (layout.grid, layout.stride, layout.num_global_tokens) == ((3, 4), (4, 8), 0)
    numbers = torch.arange(12.0).view(1, 12, 1)
    there = layout.queries >= 0
    assert torch.equal(
        plan.cut(numbers, AS_THEY_ARE).view_as(layout.queries)[there], layout.queries[there].float()
    )
    assert torch.equal(layout.keys, layout.queries)
    assert layout.queries[there].sort().values.tolist() == list(range(12))
    # In the first window of the rolled map all tokens lie together; in the last, each is from
    # another side.
    first, last = layout.allowed[0], layout.allowed[-1]
    assert first.all()
    assert torch.equal(last, torch.eye(4, dtype=torch.bool)) if shift else last.all()
