"""One shard of images, parquet or tar, on disk or remote: opening it and reading parts of it."""

import functools
import io
import tarfile
import time
import warnings
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet
from datasets import config
from datasets.utils.file_utils import xopen
from pyarrow.lib import ArrowException

__all__ = [
    "READING_ERRORS",
    "TAR_CHUNK_IMAGES",
    "index_tar",
    "is_parquet",
    "is_tar",
    "open_shard",
    "read_footer",
    "read_row_group",
    "read_samples",
]

TAR_CHUNK_IMAGES = 128
KNOWN_FOOTERS = 256
# What a file system reads ahead is read for nothing, as each chunk is read at once.
READ_AHEAD_BYTES = 2**16
NOT_THERE = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
# A file system that is not installed is an ImportError, an address of no form a ValueError, a row
# group that there is not an IndexError or, far away, an ArithmeticError.
READING_ERRORS = (
    ArithmeticError,
    ImportError,
    IndexError,
    OSError,
    ValueError,
    ArrowException,
    tarfile.TarError,
)


def is_parquet(url: str) -> bool:
    """Tell whether a path or an address is that of a parquet file."""
    return url.split("?")[0].endswith(".parquet")


def is_tar(url: str) -> bool:
    """Tell whether a path or an address is that of a tar file."""
    return url.split("?")[0].endswith(".tar")


def open_shard(url: str, read_ahead: int = READ_AHEAD_BYTES) -> IO[bytes]:
    """Open a shard for reading at any place; lost connections are retried.

    Args:
        url: path or address.
        read_ahead: bytes that a remote file system reads beyond what is asked for.

    Raises:
        READING_ERRORS: it cannot be opened.
    """
    if "://" not in url:
        return Path(url).open("rb")
    for _ in range(config.STREAMING_OPEN_MAX_RETRIES):
        try:
            file: IO[bytes] = xopen(url, "rb", block_size=read_ahead)
            return file
        except FileNotFoundError as error:
            # To a web server's file system, every failure to ask for the size of a file is a
            # missing file.
            status = getattr(error.__cause__, "status", HTTPStatus.SERVICE_UNAVAILABLE)
            if error.__cause__ is None or status in NOT_THERE:
                raise
            warnings.warn(
                f"{url} cannot be reached ({error.__cause__}), trying again", stacklevel=2
            )
            time.sleep(config.STREAMING_OPEN_RETRY_INTERVAL)
    raise ConnectionError(
        f"it cannot be reached after {config.STREAMING_OPEN_MAX_RETRIES} attempts"
    )


@functools.lru_cache(maxsize=KNOWN_FOOTERS)
def read_footer(url: str) -> pyarrow.parquet.FileMetaData:
    """Read what a parquet file says about itself; kept for the files asked for last.

    Raises:
        READING_ERRORS: it cannot be read.
    """
    with open_shard(url) as file:
        return pyarrow.parquet.read_metadata(file)


def index_tar(url: str) -> list[tuple[int, int]]:
    """Read the headers of a tar file.

    Args:
        url: path or address.

    Returns:
        First byte and number of samples of each chunk.

    Raises:
        READING_ERRORS: it cannot be read.
    """
    starts, count, current = [], 0, None
    with (
        open_shard(url, read_ahead=2**22) as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        for member in _members(archive):
            key, _ = _sample_field(member.name)
            if key != current:
                if count % TAR_CHUNK_IMAGES == 0:
                    starts.append(member.offset)
                current, count = key, count + 1
    sizes = [
        min(TAR_CHUNK_IMAGES, count - TAR_CHUNK_IMAGES * chunk) for chunk in range(len(starts))
    ]
    return list(zip(starts, sizes, strict=True))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of a tar archive that belong to samples; unlike the archive's own list, they are
    not kept.
    """
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        if member.isfile() and _sample_field(member.name)[1]:
            yield member
    # The archive takes a damaged header for its end.
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {archive.offset}")


def _sample_field(name: str) -> tuple[str, str]:
    """Split a name at the first dot after its folders, as webdataset does: key of the sample,
    field.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, field = file.partition(".")
    return f"{folder}{slash}{stem}", field if stem else ""


def read_row_group(url: str, group: int, column: str) -> list[Any]:
    """Read a column of a row group of a parquet file, of images the bytes, or the path where there
    are none.

    Raises:
        READING_ERRORS: it cannot be read.
    """
    footer = read_footer(url)
    paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
    # Of an image column only the bytes are read.
    leaf = f"{column}.bytes" if f"{column}.bytes" in paths else column
    with open_shard(url) as file:
        shard = pyarrow.parquet.ParquetFile(file, metadata=footer)

        def read(name: str) -> list[Any]:
            table = shard.read_row_group(group, columns=[name], use_threads=False)
            values = table.column(0).to_pylist()
            # Of a structure one field was read.
            return [
                next(iter(each.values())) if isinstance(each, dict) else each for each in values
            ]

        found = read(leaf)
        # What `datasets` writes of a folder of images; an address may not name files of this disk.
        if None in found and f"{column}.path" in paths and "://" not in url:
            found = [
                path if content is None else content
                for content, path in zip(found, read(f"{column}.path"), strict=True)
            ]
    return found


def read_samples(url: str, start: int, end: int | None) -> Iterator[dict[str, bytes]]:
    """Read samples of a tar file.

    Args:
        url: path or address.
        start: first byte.
        end: byte after the last one; None for the end of the file.

    Yields:
        Content of each field of a sample.

    Raises:
        READING_ERRORS: they cannot be read.
    """
    with open_shard(url) as file:
        file.seek(start)
        data = file.read() if end is None else file.read(end - start)
    current, sample = None, dict[str, bytes]()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in _members(archive):
            key, field = _sample_field(member.name)
            if key != current and sample:
                yield sample
                sample = {}
            content = archive.extractfile(member)
            assert content is not None
            current, sample[field] = key, content.read()
    if sample:
        yield sample
