"""Programs in new processes, and functions on several processes that talk by gloo.

A new Python takes seconds for the libraries alone; these are forks of a server that has them.
"""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.other import get_free_port
from torch.multiprocessing import start_processes

TIMEOUT_SECONDS = 180
PRELOADED = ["tests.support.preloaded"]


def start_program(words: Sequence[str | Path], output: Path) -> BaseProcess:
    """Start a program, in a process group of its own, as `python words` would.

    Args:
        words: path of a script, or `-m` and a module; then its arguments.
        output: file that what it prints is added to.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_run_program, args=([*map(str, words)], output))
    process.start()
    return process


def _run_program(words: list[str], output: Path) -> None:
    os.setsid()
    _be_a_new_python()
    with output.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def run_on_processes(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function of a module on each of several processes, and raise the first error with its
    traceback. Their environment is that which torchrun gives, one alone gets none.

    Raises:
        TimeoutError: if they wait for each other.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = start_processes(
        _run_function,
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


def _run_function(
    rank: int, function: Callable[..., None], processes: int, port: int, arguments: tuple[Any, ...]
) -> None:
    _be_a_new_python()
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(*arguments)


def _be_a_new_python() -> None:
    # Otherwise its own processes, such as data-loading workers, would come from a server too.
    multiprocessing.set_start_method(None, force=True)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
