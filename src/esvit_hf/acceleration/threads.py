"""How many threads compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["use_threads"]


@contextmanager
def use_threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads in this context; as it is if None.

    Raises:
        ValueError: it is less than 1.
    """
    if number is None:
        yield
        return
    if number < 1:
        raise ValueError(f"threads is {number}: give 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
