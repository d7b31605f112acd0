"""The numbers of the reference implementation that `tests/goldens` keeps."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.support.paths import GOLDENS


@dataclass(frozen=True)
class Golden:
    """One folder of `tests/goldens`: its specification and the tensors that the reference
    computed.
    """

    folder: Path
    spec: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pth"

    def to(self, device: torch.device) -> "Golden":
        return replace(
            self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()}
        )


def load_golden(name: str) -> Golden:
    """Load a golden folder by name; a missing one is an error, not a skip."""
    folder = GOLDENS / name
    return Golden(
        folder,
        json.loads((folder / "spec.json").read_text()),
        load_file(folder / "expected.safetensors"),
    )
