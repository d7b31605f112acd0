"""Command lines of reports name what is not at its default, and no folder of a machine."""

from pathlib import Path
from typing import Any

import pytest

from esvit_hf.evaluation.command_words import flag, word


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("org/net", "org/net"),
        ("/home/me/net", "net"),
        (Path("../x y"), Path("../x y").resolve().name),
        ((0.1, 2), "[0.1,2]"),
        (["a"], '["a"]'),
        (True, "true"),
        (1e-5, "1e-05"),
        (object(), "in-memory object"),
    ],
)
def test_words(value: Any, written: str) -> None:
    assert word(value) == written


def test_flags() -> None:
    assert flag("linear.learning_rates", [0.1], (0.1,)) == []
    assert flag("linear.augment", True, False) == ["--linear.augment", "true"]
