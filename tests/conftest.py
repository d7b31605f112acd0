"""Shared fixtures: golden numbers of the reference implementation."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.paths import GOLDENS

if TYPE_CHECKING:
    import torch
    from tests.support.golden import Golden

# PyTorch is imported in the fixtures: the process that hands tests out to others reads this file
# before they start, and has no use for it.


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let Python look for garbage among the objects of tests alone: those that importing makes stay
    to the end, and to look through them again and again takes a quarter of the time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        # It searches what refers to the random states of libraries, which is not found later.
        import hypothesis  # noqa: F401

        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Let every test choose its own precision: Accelerate keeps the first choice of a process."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def nothing_frozen():
    """Undo for a test what was done after the collection of all tests."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture
def exact_convolutions():
    """Let a GPU convolve as exactly as it multiplies matrices, without TF32."""
    import torch

    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, exact_convolutions) -> torch.device:
    import torch

    return torch.device(request.param)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    from tests.support.golden import load_golden

    return load_golden


@pytest.fixture(scope="session")
def manifest() -> Callable[[str], dict[str, Any]]:
    """Load the key list of a full-size reference checkpoint."""

    def load(name: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((GOLDENS / "manifests" / f"{name}.json").read_text())
        return manifest

    return load
