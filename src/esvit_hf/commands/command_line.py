"""What the command lines share: arguments from a typed function, errors in one line, results as
JSON.
"""

import contextlib
import difflib
import functools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from esvit_hf.common.command_line import parse_function
from esvit_hf.common.errors import NoSuchModelError, one_line

__all__ = ["report_errors", "run", "without_bars_of_networks"]

_SECONDS_FOR_THE_FIRST = 20
_SAY_AFTER = """
import select, sys
launcher = select.poll()
launcher.register(int(sys.argv[1]))
launcher.poll(60_000)
print(sys.argv[2], file=sys.stderr)
"""


def report_errors(main: Callable[..., int]) -> Callable[..., int]:
    """Turn what users can correct into one line on stderr and an exit code.

    Args:
        main: program that returns its exit code.

    Returns:
        The same program; it returns 2 after a ValueError, a wrong argument, a run that diverged, or
        a file that cannot be read or written (a full disk), and 130 after Ctrl-C. Other exceptions
        are faults of the program and pass.
    """

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> int:
        try:
            with _warnings_of_one_line():
                return main(*args, **kwargs)
        except (ValueError, FloatingPointError, OSError, SafetensorError) as error:
            _say(one_line(error, None) + _zoo_hint(error))
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return guarded


def _zoo_hint(error: Exception) -> str:
    """How to get the network that was meant, where the zoo has it."""
    if not isinstance(error, NoSuchModelError):
        return ""
    # Imported late: it is rarely needed.
    from esvit_hf.zoo.entries import ENTRIES

    released = [entry.name for entry in ENTRIES if entry.kind == "released"]
    near = difflib.get_close_matches(error.name, released, 1, cutoff=0.8)
    if near:
        return (
            f"; the zoo has {near[0]}: `esvit zoo build {near[0]} --checkpoint FILE --output "
            f"FOLDER` makes its folder from the authors' file"
        )
    return "; `esvit zoo` lists the networks of the zoo" if error.name.startswith("esvit_") else ""


@contextlib.contextmanager
def _warnings_of_one_line() -> Iterator[None]:
    before = warnings.formatwarning

    def describe(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"warning: {one_line(message, None)}\n"

    warnings.formatwarning = cast("Any", describe)
    try:
        yield
    finally:
        warnings.formatwarning = before


def _say(problem: str) -> None:
    if rank := int(os.environ.get("RANK", "0")):
        # The first process mostly says the same, and the launcher then ends this one.
        time.sleep(_SECONDS_FOR_THE_FIRST)
        problem = f"process {rank}: {problem}"
    line = f"error: {problem}"
    print(line, file=sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _tell_launcher(line)


def _tell_launcher(line: str) -> None:
    """Give torch's elastic launcher, which `accelerate launch` starts too, the reason for its
    report, and repeat the line after the traceback that the launcher ends with (on Linux).
    """
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": line, "timestamp": str(int(time.time()))}
        reason = {"message": {"message": line, "extraInfo": details}}
        with contextlib.suppress(OSError):
            Path(report).write_text(json.dumps(reason))
    if sys.platform == "linux":
        launcher = os.pidfd_open(os.getppid())
        # In a session of its own: the launcher ends those of its processes.
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SAY_AFTER, str(launcher), line],
            pass_fds=[launcher],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


@contextlib.contextmanager
def without_bars_of_networks() -> Iterator[None]:
    """Keep transformers from drawing bars between ours while it loads and saves networks."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def run(function: Callable[..., dict[str, Any] | None]) -> None:
    """Run a function as a program and exit: its signature is the command line, its docstring the
    help.

    What the function returns is printed as one JSON object on the last line; a process that has
    nothing to say (not the first of several) returns None.

    Args:
        function: typed function with a docstring of the Google style.

    Raises:
        SystemExit: always; the code is 0, or that of `report_errors`.
    """

    @report_errors
    def main() -> int:
        result = function(**parse_function(function, sys.argv[1:], program=Path(sys.argv[0]).name))
        if result is not None:
            print(json.dumps(result))
        return 0

    sys.exit(main())
