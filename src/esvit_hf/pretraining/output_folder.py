"""The output folder of a run: it can be written, and belongs to one run at a time."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator

from esvit_hf.pretraining.launching import decide_together

__all__ = ["locked_output"]

_LOCK = ".run.lock"


@contextmanager
def locked_output(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep other runs out of a folder in this context, or until the process ends.

    A lock of the system, not the file itself: what a killed run leaves behind locks nothing.

    Args:
        folder: output folder of a run; it is made, and removed if nothing came into it, as
            are those above it.
        accelerator: the process's accelerator; the main process holds the lock for all.

    Raises:
        ValueError: the folder cannot be written, or a run is at work in it.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    held: list[TextIO] = []
    decide_together(accelerator, lambda: held.append(_lock(folder)))
    try:
        yield
    finally:
        for file in held:
            (folder / _LOCK).unlink(missing_ok=True)
            file.close()
            for each in made:
                if any(each.iterdir()):
                    break
                each.rmdir()


def _lock(folder: Path) -> TextIO:
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A lock of POSIX is not inherited by the data-loading workers, which outlive a killed run.
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(file)
            raise ValueError(
                f"run.output_dir {folder} is in use by {owner}: wait until that run has ended, or "
                f"give another run.output_dir"
            ) from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            # Its owner has removed it since it was opened: the lock is on a file without a name.
            file.close()
            return _lock(folder)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        file.flush()
    except OSError as error:
        raise ValueError(
            f"run.output_dir {folder} cannot be written ({error.strerror}): give another folder"
        ) from error
    return file


def _read_owner(file: TextIO) -> str:
    with file:
        file.seek(0)
        try:
            owner = json.loads(file.read())
            return f"process {owner['process']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            return "another process"
