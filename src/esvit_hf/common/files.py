"""Files that are never half written, and what identifies them."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "HUB_NAME",
    "check_writable",
    "digest_file",
    "expand_home",
    "expand_homes",
    "flush_to_disk",
    "give_usual_modes",
    "link_or_copy",
    "public_name",
    "write_aside",
]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What the name of a repository on the Hub looks like."""
_CHUNK_BYTES = 1 << 20

Place = TypeVar("Place", bound=str | Path)


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


def check_writable(folder: Path) -> None:
    """Find out, before anything is computed, whether files can be written to a folder.

    Args:
        folder: need not exist, and is not made.

    Raises:
        OSError: it cannot be made or written to.
    """
    while not (folder.exists() or folder.is_symlink()):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # Without the name of the file that was tried.
        raise OSError(error.errno, error.strerror, str(folder)) from error


def give_usual_modes(path: Path) -> None:
    """Let others read files of tensors as the umask says; safetensors makes them for the owner
    alone.

    Args:
        path: file, or folder of files, that was written just now.
    """
    written = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not written:
        return
    # A umask can only be read by changing it, for every thread; a new file shows it as well.
    example = path.with_name(f".{path.name}.mode")
    example.touch()
    mode = example.stat().st_mode
    example.unlink()
    for file in written:
        file.chmod(mode)


def link_or_copy(source: str, target: str) -> None:
    """Give a file that nobody changes a second name, or copy it where a file system has none.

    Args:
        source: the file.
        target: the new name.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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
        give_usual_modes(aside)
        for written in (aside, *aside.rglob("*")):
            flush_to_disk(written)
        aside.replace(path)
    finally:
        shutil.rmtree(workplace)


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


def expand_homes(value: Any) -> Any:
    """Replace `~` in paths, and in lists and mappings of them.

    Args:
        value: of any kind.

    Returns:
        The same; what holds no path is left alone.

    Raises:
        ValueError: as `expand_home`.
    """
    if isinstance(value, (str, Path)):
        return expand_home(value)
    if type(value) in (list, tuple):
        return type(value)(map(expand_homes, value))
    if type(value) is dict:
        return {name: expand_homes(item) for name, item in value.items()}
    return value


def public_name(name_or_path: str | Path) -> str:
    """Return what may be published of a Hub name, a path, a pattern or an address: folders of a
    machine, logins and signatures stay private.

    Args:
        name_or_path: Hub name, path, pattern of paths, or address.

    Returns:
        The name; of a path that is absolute, starts at a home or points upwards its last part, of
        such a pattern its last folder and what follows; of an address neither login nor query.
    """
    return "::".join(map(_public_part, str(name_or_path).split("::")))


def _public_part(name: str) -> str:
    scheme, mark, place = name.partition("://")
    if mark and scheme not in ("file", "local"):
        host, slash, rest = re.split(r"[?#]", place, maxsplit=1)[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{rest}"
    path = Path(place if mark else name)
    parts = path.parts
    if not (path.is_absolute() or ".." in parts or name.startswith("~")):
        return name
    first = next((at for at, part in enumerate(parts) if re.search(r"[*?\[{]", part)), len(parts))
    if first == len(parts):
        parts = (path.resolve() if parts[-1] == ".." else path).parts
    # Neither the root, nor a home, nor a way upwards is a name.
    shown = [
        each for each in parts[max(first - 1, 0) :] if each not in ("/", "..") and each[0] != "~"
    ]
    return "/".join(shown[-1:] if first == len(parts) else shown) or "data"
