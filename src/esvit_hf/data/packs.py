"""The reference implementation's data packs: a zip file with a map, or TSV files with images in
base64.
"""

import base64
import binascii
import itertools
import json
import zipfile
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from esvit_hf.common.errors import one_line

MAX_ENCODED_BYTES = 2**28
"""Rows that claim more than this are refused unread; no photograph is so large."""
_CHECKED_BYTES = 1024


class BrokenRowError(ValueError):
    """A row of a pack is not what the format says."""


class Pack(Protocol):
    """Rows of encoded images with labels, by number."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> tuple[str, bytes, int | str]:
        """Read one row.

        Returns:
            Name of the image, encoded image, label.

        Raises:
            BrokenRowError: saying what is wrong.
        """
        ...

    def describe(self, row: int) -> str:
        """Name a row in messages."""
        ...


def open_pack(source: Path) -> Pack:
    """Open a pack.

    Args:
        source: NAME.zip with NAME_map.txt beside it, a .tsv file, or a folder of .tsv files.

    Raises:
        ValueError: it is none of these.
    """
    if source.suffix == ".zip" and source.is_file():
        return ZipPack(source, source.with_name(f"{source.stem}_map.txt"))
    files = (
        sorted(source.glob("*.tsv")) if source.is_dir() else [source] * (source.suffix == ".tsv")
    )
    if not files or not all(file.is_file() for file in files):
        raise ValueError(
            f"{source} is no pack: give NAME.zip with NAME_map.txt beside it, a .tsv file or a "
            f"folder of them"
        )
    return TsvPack(files)


class ZipPack:
    """Images in a zip file; each line of the map is `path in the zip <TAB> class number`.

    Args:
        archive: the zip file.
        map_file: the map; its paths may start with `NAME.zip@/`.

    Raises:
        ValueError: a file is missing or is no zip file.
    """

    def __init__(self, archive: Path, map_file: Path) -> None:
        if not map_file.is_file():
            raise ValueError(
                f"{archive} needs {map_file} beside it, with lines 'path in the zip<TAB>class "
                f"number'"
            )
        try:
            self._archive = zipfile.ZipFile(archive)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{archive} cannot be read as a zip file ({error}): get it again"
            ) from error
        self._lines = _Lines(map_file, None)

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, row: int) -> tuple[str, bytes, int | str]:
        """Read one row; see :class:`Pack`."""
        path, tab, label = _decode(self._lines.read(row)).partition("\t")
        if not tab:
            raise BrokenRowError("the line is not 'path<TAB>class number'")
        try:
            member = self._archive.getinfo(path.rpartition("@/")[2])
            if member.file_size > MAX_ENCODED_BYTES:
                raise BrokenRowError(f"{path} would have {member.file_size} bytes")
            # Reading checks the checksum.
            data = self._archive.read(member)
        except KeyError as error:
            raise BrokenRowError(f"{path} is not in the zip file") from error
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise BrokenRowError(f"{path} cannot be unpacked ({error})") from error
        return Path(path).name, data, _class_number(label)

    def describe(self, row: int) -> str:
        """Name a row in messages."""
        return f"line {row + 1} of {self._lines.path}"


class TsvPack:
    """Images in TSV files; each line is `key <TAB> label <TAB> image in base64`.

    The label is a class number, or JSON `[{"class": name}]`. A file NAME.lineidx with the first
    byte of each line is used if there is one, otherwise the lines are looked for.

    Args:
        files: the .tsv files.

    Raises:
        ValueError: a .lineidx file cannot be read, or belongs to another file.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [_Lines(file, file.with_suffix(".lineidx")) for file in files]
        self._ends = np.cumsum([len(lines) for lines in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, row: int) -> tuple[str, bytes, int | str]:
        """Read one row; see :class:`Pack`."""
        lines, number = self._locate(row)
        columns = lines.read(number).split(b"\t")
        if len(columns) != 3:
            raise BrokenRowError(
                f"the line has {len(columns)} columns instead of key, label and image"
            )
        try:
            data = base64.b64decode(columns[2].strip(), validate=True)
        except binascii.Error as error:
            raise BrokenRowError(f"the image is not base64 ({error})") from error
        return Path(_decode(columns[0]).strip()).name, data, _label(_decode(columns[1]).strip())

    def describe(self, row: int) -> str:
        """Name a row in messages."""
        lines, number = self._locate(row)
        return f"line {number + 1} of {lines.path}"

    def _locate(self, row: int) -> tuple["_Lines", int]:
        file = int(np.searchsorted(self._ends, row, side="right"))
        return self._files[file], row - int(self._ends[file]) + len(self._files[file])


class _Lines:
    """Lines of a file by number; only where they start is in memory."""

    def __init__(self, path: Path, index: Path | None) -> None:
        self.path = path
        self._file = path.open("rb")
        self._starts = (
            self._find_lines() if index is None or not index.is_file() else self._read_starts(index)
        )

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int) -> bytes:
        start = int(self._starts[number])
        self._file.seek(max(0, start - 1))
        if start and self._file.read(1) != b"\n":
            raise BrokenRowError(f"no line starts at byte {start}: remove the .lineidx file")
        line = self._file.readline(2 * MAX_ENCODED_BYTES)
        if not line.endswith(b"\n") and self._file.tell() < self.path.stat().st_size:
            raise BrokenRowError(f"the line is longer than {2 * MAX_ENCODED_BYTES} bytes")
        return line.rstrip(b"\r\n")

    def _find_lines(self) -> np.ndarray:
        starts, first = array("q"), 0
        while line := self._file.readline():
            if line.strip():
                starts.append(first)
            first += len(line)
        return np.asarray(starts)

    def _read_starts(self, index: Path) -> np.ndarray:
        size = self.path.stat().st_size
        try:
            starts = np.array(list(map(int, index.read_text().split())), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{index} must hold a number a line ({one_line(error)}): remove it, it is made up "
                f"for"
            ) from error
        places = [-1, *starts.tolist(), size]
        is_ascending = all(one < other for one, other in itertools.pairwise(places))
        # The last line must reach the end of the file, but for empty lines.
        self._file.seek(int(starts[-1]) if is_ascending and len(starts) else 0)
        self._file.readline()
        if not is_ascending or self._file.read(_CHECKED_BYTES).strip():
            raise ValueError(
                f"{index} does not belong to {self.path}, which has {size} bytes: remove it, it is "
                f"made up for"
            )
        return starts


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise BrokenRowError("the line is not UTF-8 text") from error


def _class_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise BrokenRowError(f"the label {text!r} is no class number") from error


def _label(text: str) -> int | str:
    if not text.startswith("["):
        return _class_number(text)
    try:
        objects: Any = json.loads(text)
        return str(objects[0]["class"])
    except (ValueError, LookupError, TypeError) as error:
        raise BrokenRowError(f"the label {text!r} has no class") from error
