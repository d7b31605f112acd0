"""Python's objects in the memory that a process shares with its workers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["leave_objects_in_place"]


@contextmanager
def leave_objects_in_place() -> Iterator[None]:
    """Keep the garbage collector from all objects that exist now, until the context ends.

    A worker that is forked shares the memory of its parent, until one of them writes to it. A full
    collection writes to every object: it would give each of them a copy, of some 130 MiB with
    PyTorch and transformers, hours after the start. In a context within a context nothing changes.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
