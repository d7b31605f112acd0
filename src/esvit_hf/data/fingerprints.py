"""What tells one set of images from another without reading all of them: for kept features."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset

__all__ = ["fingerprint_rows"]

_ROWS_AT_ONCE = 1000


def fingerprint_rows(images: Dataset) -> bytes:
    """Digest what decides the images of a column, every one of them.

    Images in files count by name, size and times of change, those in tables on disk by the table's
    files and the history of its rows (``datasets``' own fingerprint), those in memory by content.

    Args:
        images: rows with the column of the images alone, in the format "arrow".

    Returns:
        The digest.
    """
    digest = hashlib.sha256(str(len(images)).encode())
    tables = [file["filename"] for file in images.cache_files]
    if tables:
        digest.update(images._fingerprint.encode())
        for path in [*tables, *_paths_in(images.data.column(0))]:
            digest.update(_identify_file(path))
        return digest.digest()
    for start in range(0, len(images), _ROWS_AT_ONCE):
        rows = images[start : start + _ROWS_AT_ONCE].column(0)
        for value in rows.to_pylist():
            digest.update(_identify_value(value))
    return digest.digest()


def _paths_in(column: pyarrow.ChunkedArray) -> list[str]:
    """Paths of the images that are not in the table itself."""
    paths: list[str] = []
    for chunk in column.chunks:
        if pyarrow.types.is_struct(chunk.type):
            paths += chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist()
        elif pyarrow.types.is_string(chunk.type) or pyarrow.types.is_large_string(chunk.type):
            paths += chunk.to_pylist()
    return paths


def _identify_value(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, str):
        return _identify_file(value)
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(content).digest()


def _identify_file(path: str | None) -> bytes:
    try:
        status = Path(path or "").stat()
        # The second time, of the entry, also tells of copies that keep the first, and of renaming.
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        facts = f"{Path(path or '').name} {status.st_size} {times}"
    except OSError as error:
        facts = f"{path} {error.errno}"
    return hashlib.sha256(facts.encode()).digest()
