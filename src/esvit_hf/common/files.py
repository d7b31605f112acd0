"""Files that are never half written, and what identifies them."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = ["digest_file", "expand_home", "flush_to_disk", "public_name", "write_aside"]

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
    """Write a file under another name and rename it at the end: readers see all of it or nothing.

    Args:
        path: the file; one that is there is replaced.

    Yields:
        The path to write to, in the same folder; it is removed after an error.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        flush_to_disk(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def public_name(name_or_path: str | Path) -> str:
    """Return what may be published of a Hub name or a path: folders of a machine stay private.

    Args:
        name_or_path: Hub name or path.

    Returns:
        The name, or the last part of a path that is absolute or points upwards.
    """
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.is_absolute() or ".." in path.parts else str(name_or_path)
