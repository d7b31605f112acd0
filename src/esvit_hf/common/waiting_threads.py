"""How long threads that compute turn in circles while they wait for each other."""

import os
import sys

__all__ = ["SPINS", "limit_spinning"]

SPINS = 1000
"""Turns before a thread sleeps: some ten microseconds."""

_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Let threads that wait go to sleep soon, in this process and those that it starts.

    PyTorch for Linux computes with threads of libgomp, which turn for milliseconds while they wait
    for the slowest of them. Where other processes need the cores too, that is time lost for all.
    libgomp reads its settings when PyTorch is loaded: afterwards, this does nothing. Settings of
    the user stay.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
