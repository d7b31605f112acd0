"""Prove on the CPU that code never reads a tensor's numbers, for which it would wait for a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# The size of the result of the last few depends on the numbers; to index by a mask is `nonzero`.
READING_OPERATORS = {
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"),
    *("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"),
}
READING_METHODS = ("cpu", "numpy", "tolist", "__array__")


@contextmanager
def refuse_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if the body reads numbers of a tensor."""

    def refuse(tensor: Tensor, *arguments: object, **options: object) -> NoReturn:
        raise AssertionError("the numbers of a tensor are read")

    with monkeypatch.context() as patch, profile(activities=[ProfilerActivity.CPU]) as profiler:
        for method in READING_METHODS:
            patch.setattr(Tensor, method, refuse)
        yield
    events = profiler.events()
    assert events, "nothing ran"
    callers = [callers_of(event) for event in events if event.name in READING_OPERATORS]
    # On the CPU its kernel reads the number of the step; on a GPU it does not.
    callers = [each for each in callers if "aten::_fused_adamw_" not in each]
    assert not callers, callers


def callers_of(event: FunctionEvent) -> list[str]:
    """Name an operator and those that called it."""
    names = [event.name]
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names
