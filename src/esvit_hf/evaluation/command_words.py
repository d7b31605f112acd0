"""Words of the command line that gives a number, without folders of a machine."""

import json
from pathlib import Path
from typing import Any

from esvit_hf.common.files import public_name

__all__ = ["flag", "word"]


def flag(name: str, value: Any, default: Any) -> list[str]:
    """Write an option.

    Args:
        name: of the option, without dashes.
        value: that it has.
        default: that it need not be given for.

    Returns:
        The flag and its value; nothing at the default.
    """
    return [] if word(value) == word(default) else [f"--{name}", word(value)]


def word(value: Any) -> str:
    """Write a value as the command line takes it; of a path the public part, of an object in memory
    its kind.
    """
    if isinstance(value, str | Path):
        return public_name(value)
    if isinstance(value, list | tuple):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return f"in-memory {type(value).__name__}"
