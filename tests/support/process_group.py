"""Runs a function on several processes that talk by gloo, with the environment that torchrun gives
them.

torchrun starts Python anew, which takes seconds for the libraries alone; these are forks of a
server that has them.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.other import get_free_port
from torch.multiprocessing import start_processes

TIMEOUT_SECONDS = 180


def work(
    rank: int, function: Callable[..., None], processes: int, port: int, arguments: tuple[Any, ...]
) -> None:
    """What each process runs."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    function(*arguments)


def run_on_processes(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function of a module on each of several processes, and raise the first error with its
    traceback.

    Raises:
        TimeoutError: if they wait for each other.
    """
    multiprocessing.set_forkserver_preload(["esvit_hf.pretraining", "esvit_hf.evaluation.running"])
    context = start_processes(
        work,
        (function, processes, get_free_port(), arguments),
        processes,
        join=False,
        start_method="forkserver",
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(
                f"{processes} processes have not ended after {TIMEOUT_SECONDS} seconds"
            )
