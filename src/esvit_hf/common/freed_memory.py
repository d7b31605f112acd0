"""Memory that a process keeps for its next tensors and images."""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h. 32 MiB is the most that glibc takes.
_SETTINGS = {-1: 256 << 20, -3: 32 << 20}
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory(worker: int | None = None) -> None:
    """Let this process keep up to 256 MiB that it frees, where the C library is glibc.

    Without it, the activations of a step, or the pixels of large photographs, get their memory from
    the system again and again, page by page. On a CPU that may take a fifth of a training, and
    longer than to decode a photograph. Settings of the user (`MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_`) stay.

    Args:
        worker: number of the process among the workers of a DataLoader, which passes it.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in _VARIABLES):
        change = getattr(ctypes.CDLL(None), "mallopt", None)
        if change is not None:
            for setting, size in _SETTINGS.items():
                change(setting, size)
