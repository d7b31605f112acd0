"""How many decoded images are in memory while a batch is made."""

import weakref
from types import ModuleType
from typing import Any

import pytest
import torch

from esvit_hf.features.preprocessing import preprocess_image


def count_held_images(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[int]:
    """Count, each time a module preprocesses an image, those that it still holds."""
    decoded: list[weakref.ref[object]] = []
    held: list[int] = []

    def watch(processor: Any, image: object, **settings: bool) -> torch.Tensor:
        decoded.append(weakref.ref(image))
        held.append(sum(each() is not None for each in decoded))
        return preprocess_image(processor, image, **settings)

    monkeypatch.setattr(module, "preprocess_image", watch)
    return held
