"""Files that are never half written, and what identifies them."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = [
    "HUB_NAME",
    "digest_file",
    "expand_home",
    "flush_to_disk",
    "public_name",
    "write_aside",
]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What the name of a repository on the Hub looks like."""
_CHUNK_BYTES = 1 << 20

Place = TypeVar("Place", str, Path)


def digest_file(path: Path) -> str:
    """Return the SHA-256 digest of a file's content in hexadecimal digits.

    Args:
        path: the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk.

    Args:
        path: file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expand_home(place: Place) -> Place:
    """Replace `~` at the start of a path by the home folder, as the shell does.

    Args:
        place: path, pattern, address or Hub name, of which only paths start with `~`.

    Returns:
        The same, of the same type.

    Raises:
        ValueError: it names a user that there is not.
    """
    if not str(place).startswith("~"):
        return place
    try:
        return type(place)(Path(place).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{place} names no home folder: give the path without ~") from error


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Write a file or folder elsewhere and move it at the end: readers see all of it or nothing.

    Args:
        path: the file, which replaces one that is there, or the folder, which replaces an empty
            one.

    Yields:
        The path to write to, of the same name, in a hidden folder beside it; it is removed after an
        error.
    """
    workplace = path.with_name(f".{path.name}.partial")
    # What a process left that was killed.
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir()
    try:
        aside = workplace / path.name
        yield aside
        for written in (aside, *aside.rglob("*")):
            flush_to_disk(written)
        aside.replace(path)
    finally:
        shutil.rmtree(workplace)


def public_name(name_or_path: str | Path) -> str:
    """Return what may be published of a Hub name or a path: folders of a machine stay private.

    Args:
        name_or_path: Hub name or path.

    Returns:
        The name, or the last part of a path that is absolute or points upwards.
    """
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.is_absolute() or ".." in path.parts else str(name_or_path)
