"""What the command lines share: arguments from a typed function, errors in one line, results as
JSON.
"""

import contextlib
import difflib
import errno
import functools
import json
import os
import socket
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

# What torch's launcher and that of Accelerate for one process set.
_SIGNS_OF_LAUNCHERS = {"ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
        with _lines_of_their_own():
            try:
                return main(*args, **kwargs)
            except (ValueError, FloatingPointError, OSError, SafetensorError) as error:
                _say(_describe(error) + _zoo_hint(error))
                return 2
            except KeyboardInterrupt:
                print(f"{_line_end()}interrupted", file=sys.stderr)
                return 130

    return guarded


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return (
            f"cannot read or write {error.filename} ({error.strerror}): check the path, its "
            f"permissions and the room on the disk"
        )
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"{one_line(error, None)}: make room on the disk that the output goes to"
    return one_line(error, None)


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


class _LineKeeper:
    """A stream that knows whether what was written ends a line, which bars do not."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.is_between_lines = True

    def write(self, text: str) -> int:
        if text:
            self.is_between_lines = text.endswith("\n")
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _lines_of_their_own() -> Iterator[None]:
    """Let each warning be one line, and each start on a line of its own, as errors do."""
    before = sys.stderr, warnings.formatwarning

    def describe(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"{_line_end()}warning: {one_line(message, None)}\n"

    sys.stderr, warnings.formatwarning = cast("Any", (_LineKeeper(sys.stderr), describe))
    try:
        yield
    finally:
        sys.stderr, warnings.formatwarning = before


def _line_end() -> str:
    return "" if getattr(sys.stderr, "is_between_lines", True) else "\n"


def _say(problem: str) -> None:
    line = f"error: {problem}"
    if _SIGNS_OF_LAUNCHERS.isdisjoint(os.environ):
        print(f"{_line_end()}{line}", file=sys.stderr)
        return
    _report_to_launcher(line)
    # Of the processes of a launcher the first says for all what is wrong: it takes a name, of no
    # file, which is free again when the launcher has ended.
    with socket.socket(socket.AF_UNIX) as name:
        if sys.platform == "linux":
            try:
                name.bind(f"\0esvit-hf.{os.getppid()}")
            except OSError:
                return
            _say_after_launcher(line, name)
        print(f"{_line_end()}{line}", file=sys.stderr)


def _report_to_launcher(line: str) -> None:
    """Give torch's elastic launcher, which `accelerate launch` starts too, the reason for its
    report.
    """
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": line, "timestamp": str(int(time.time()))}
        reason = {"message": {"message": line, "extraInfo": details}}
        with contextlib.suppress(OSError):
            Path(report).write_text(json.dumps(reason))


def _say_after_launcher(line: str, name: socket.socket) -> None:
    """Repeat a line after the traceback that launchers end with, and keep a name until then."""
    launcher = os.pidfd_open(os.getppid())
    # In a session of its own: the launcher ends those of its processes.
    subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SAY_AFTER, str(launcher), line],
        pass_fds=[launcher, name.fileno()],
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
