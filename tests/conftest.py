"""Shared fixtures: golden numbers of the reference implementation."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Let every test choose its own precision: Accelerate keeps the first choice of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def exact_convolutions():
    """Let a GPU convolve as exactly as it multiplies matrices, without TF32."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, exact_convolutions) -> torch.device:
    return torch.device(request.param)


GOLDENS = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Golden:
    """One folder of `tests/goldens`: its specification and the tensors that the reference computed."""

    folder: Path
    spec: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pth"

    def to(self, device: torch.device) -> "Golden":
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Load a golden folder by name; a missing one is an error, not a skip."""

    def load(name: str) -> Golden:
        folder = GOLDENS / name
        return Golden(
            folder, json.loads((folder / "spec.json").read_text()), load_file(folder / "expected.safetensors")
        )

    return load


@pytest.fixture(scope="session")
def manifest() -> Callable[[str], dict[str, Any]]:
    """Load the key list of a full-size reference checkpoint."""

    def load(name: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((GOLDENS / "manifests" / f"{name}.json").read_text())
        return manifest

    return load
