"""Shards of encoded images, parquet or tar, on disk or remote: where they are, their index, reading
a part of one.
"""

import functools
import io
import json
import re
import tarfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pyarrow.parquet
from datasets import Features, Value, config, load_dataset_builder
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetsError
from datasets.utils.file_utils import xopen
from PIL import Image
from pyarrow.lib import ArrowException

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import write_aside
from esvit_hf.data.loading import HUB_NAME

TAR_CHUNK_IMAGES = 128
OPEN_SHARDS = 16
KNOWN_FOOTERS = 256
# What a file system reads ahead is read for nothing, as each chunk is read at once.
READ_AHEAD_BYTES = 2**16
NOT_THERE = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
NUMBER_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class UnreadableShardError(ValueError):
    """A shard is missing, damaged, or not what its index says."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again with the worker's traceback as its message;
        # only its end is ours.
        super().__init__(message.strip().split(f"{type(self).__name__}: ")[-1])


@dataclass(frozen=True)
class ShardIndex:
    """All shards of a data set, cut into chunks that are read as a whole; images are numbered
    through all of them.

    Attributes:
        urls: path or address of each shard.
        shards: (chunks,) int64, the shard of each chunk.
        starts: (chunks,) int64, where a chunk starts: number of a row group in parquet, of a byte
            in tar.
        sizes: (chunks,) int64, images in each chunk.
    """

    urls: tuple[str, ...]
    shards: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, urls: Sequence[str], chunks: Sequence[Sequence[Sequence[int]]]) -> "ShardIndex":
        """Join the chunks of all shards.

        Args:
            urls: path or address of each shard.
            chunks: (start, images) of each chunk of each shard.
        """
        rows = [
            (shard, start, size)
            for shard, parts in enumerate(chunks)
            for start, size in parts
            if size
        ]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return cls(tuple(urls), *columns)

    def locate(self, index: int) -> tuple[int, int]:
        """Return the chunk of an image and its row in the chunk."""
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        return chunk, index - int(self._ends[chunk] - self.sizes[chunk])

    def describe(self, index: int) -> str:
        """Name an image by its shard and its row in the shard, counted from 0."""
        chunk, row = self.locate(index)
        first = int(np.searchsorted(self.shards, self.shards[chunk]))
        return (
            f"image {int(self.sizes[first:chunk].sum()) + row} of {self.urls[self.shards[chunk]]}"
        )

    def read(self, chunk: int, column: str) -> list[Any]:
        """Read a chunk.

        Args:
            chunk: its number.
            column: column of parquet shards, or field of tar shards (several as `jpg;png`).

        Returns:
            One value an image, for :func:`esvit_hf.data.decoding.decode_image`.

        Raises:
            UnreadableShardError: the shard cannot be read or was changed after it was indexed.
        """
        url, start, size = (
            self.urls[self.shards[chunk]],
            int(self.starts[chunk]),
            int(self.sizes[chunk]),
        )
        try:
            if _is_parquet(url):
                values = _read_row_group(url, start, column)
            else:
                is_last = (
                    chunk + 1 == len(self.sizes) or self.shards[chunk + 1] != self.shards[chunk]
                )
                samples = _read_samples(
                    url, start, None if is_last else int(self.starts[chunk + 1])
                )
                names = column.split(";")
                values = [
                    next((sample[name] for name in names if name in sample), None)
                    for sample in samples
                ]
        except (OSError, ArrowException, tarfile.TarError) as error:
            raise UnreadableShardError(
                f"{url} cannot be read ({one_line(error)}): repair it, or leave it out"
            ) from error
        if len(values) != size:
            raise UnreadableShardError(
                f"{url} has {len(values)} images where its index says {size}: run esvit index "
                f"again, and start anew"
            )
        return values

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)


def find_shards(
    name_or_path: str, *, split: str = "train", config_name: str | None = None
) -> list[str]:
    """Find the shards of a data set.

    Args:
        name_or_path: name on the Hub, a folder, one shard, or a pattern with `*` or a range of
            numbers such as `{00000..00127}`; a shard and a pattern may be a path or an address
            (http, https, hf, ...).
        split: which part of a folder or of a data set on the Hub.
        config_name: configuration of a data set on the Hub that has several.

    Returns:
        Paths or addresses of parquet files or of tar files.

    Raises:
        ValueError: there are none, or they are of another kind; the message names the remedy.
    """
    path = Path(name_or_path).expanduser()
    if (
        "://" in name_or_path
        or "*" in name_or_path
        or NUMBER_RANGE.search(name_or_path)
        or path.is_file()
    ):
        urls = [url for pattern in _expand_range(name_or_path) for url in _expand_star(pattern)]
    elif path.is_dir() or HUB_NAME.fullmatch(name_or_path):
        urls = _shards_of_split(str(path) if path.is_dir() else name_or_path, split, config_name)
    else:
        raise ValueError(
            f"{name_or_path} does not exist; give a folder, shards, an index, or a name on the Hub"
        )
    if not urls:
        raise ValueError(f"no file matches {name_or_path}; check the pattern")
    other = next((url for url in urls if not _is_parquet(url) and not _is_tar(url)), None)
    if other is not None:
        raise ValueError(
            f"{name_or_path} has files such as {other}; streaming takes .parquet or uncompressed "
            f".tar files: set streaming to false, or write shards with esvit repack"
        )
    if len({_is_parquet(url) for url in urls}) > 1:
        raise ValueError(
            f"{name_or_path} has both parquet and tar files; give a pattern that matches one kind"
        )
    return urls


def open_index(
    name_or_path: str, *, split: str = "train", config_name: str | None = None
) -> ShardIndex:
    """Find the shards of a data set with the number of images in each.

    Parquet files say it themselves. Tar files do not: they need the file that :func:`write_index`
    writes.

    Args:
        name_or_path: as for :func:`find_shards`, or path or address of an index.
        split: as for :func:`find_shards`; an index has one split.
        config_name: as for :func:`find_shards`.

    Raises:
        ValueError: there are no shards, they cannot be read, or hold no image.
    """
    if name_or_path.endswith(".json"):
        index = _read_index(name_or_path)
    else:
        urls = find_shards(name_or_path, split=split, config_name=config_name)
        if _is_tar(urls[0]):
            raise ValueError(
                f"{name_or_path} has tar shards, which do not say how many images they hold: run "
                f"'esvit index {name_or_path} index.json' once and set dataset to the file it "
                f"writes"
            )
        index = ShardIndex.of(urls, index_shards(urls))
    if not len(index.sizes):
        raise ValueError(f"{name_or_path} holds no image; check the path and the split")
    return index


def index_shards(urls: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Read the (start, images) of each chunk of each shard; see :class:`ShardIndex`.

    Of a parquet file only the footer is read; of a tar file on disk the headers, of a remote one
    everything.

    Raises:
        ValueError: a shard cannot be read.
    """
    # What this process knows of an earlier data set may be out of date.
    _footer.cache_clear()
    with ThreadPoolExecutor(OPEN_SHARDS) as pool:
        return list(pool.map(_index_shard, urls))


def write_index(
    dataset: str, output: Path, *, split: str = "train", config_name: str | None = None
) -> dict[str, Any] | None:
    """Write the index of a data set in shards, which streaming needs for tar files and starts
    faster with.

    Args:
        dataset: folder, shards, pattern or Hub name; remote tar files are read as a whole, once.
        output: file to write, ending with .json; set `dataset` to it for pretraining.
        split: which part of the data.
        config_name: configuration of a data set that has several.
    """
    if output.suffix != ".json":
        raise ValueError(f"output {output} must end with .json")
    urls = find_shards(dataset, split=split, config_name=config_name)
    chunks = index_shards(urls)
    folder = output.parent.resolve()
    shards = [
        {"url": _relative(url, folder), "chunks": parts}
        for url, parts in zip(urls, chunks, strict=True)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(output) as aside:
        aside.write_text(json.dumps({"shards": shards}) + "\n")
    return {
        "output": str(output),
        "shards": len(urls),
        "images": sum(size for parts in chunks for _, size in parts),
    }


def shard_features(index: ShardIndex) -> Features:
    """Read the columns of parquet shards, or the fields of the first sample of tar shards.

    Raises:
        UnreadableShardError: the first shard cannot be read.
    """
    url = index.urls[index.shards[0]]
    try:
        if _is_parquet(url):
            return Features.from_arrow_schema(_footer(url).schema.to_arrow_schema())
        end = (
            int(index.starts[1])
            if len(index.starts) > 1 and index.shards[1] == index.shards[0]
            else None
        )
        sample = next(_read_samples(url, int(index.starts[0]), end))
    except (OSError, ArrowException, tarfile.TarError, StopIteration) as error:
        raise UnreadableShardError(
            f"{url} cannot be read ({one_line(error)}): repair it, or leave it out"
        ) from error
    known = Image.registered_extensions()
    return Features(
        {
            name: ImageFeature() if f".{name.split('.')[-1].lower()}" in known else Value("binary")
            for name in sample
        }
    )


def _is_parquet(url: str) -> bool:
    return url.split("?")[0].endswith(".parquet")


def _is_tar(url: str) -> bool:
    return url.split("?")[0].endswith(".tar")


def _expand_range(pattern: str) -> list[str]:
    match = NUMBER_RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _expand_star(pattern: str) -> list[str]:
    if "*" not in pattern:
        return [pattern]
    files, path = fsspec.core.url_to_fs(pattern)
    return sorted(
        files.unstrip_protocol(found) if "://" in pattern else found for found in files.glob(path)
    )


def _shards_of_split(name_or_path: str, split: str, config_name: str | None) -> list[str]:
    try:
        files = load_dataset_builder(name_or_path, config_name).config.data_files or {}
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name_or_path} cannot be loaded ({one_line(error)}); check the path or name and "
            f"--config_name"
        ) from error
    by_split = {str(name): list(urls) for name, urls in files.items()}
    if split not in by_split:
        raise ValueError(
            f"{name_or_path} has no split '{split}' to stream; streaming takes whole splits: "
            f"{', '.join(by_split)}"
        )
    return by_split[split]


def _open(url: str, read_ahead: int = READ_AHEAD_BYTES) -> IO[bytes]:
    """Open a shard for reading at any place; lost connections are retried."""
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
def _footer(url: str) -> pyarrow.parquet.FileMetaData:
    with _open(url) as file:
        return pyarrow.parquet.read_metadata(file)


def _index_shard(url: str) -> list[tuple[int, int]]:
    try:
        if _is_parquet(url):
            footer = _footer(url)
            return [
                (group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)
            ]
        return _index_tar(url)
    except (OSError, ArrowException, tarfile.TarError) as error:
        raise UnreadableShardError(
            f"{url} cannot be read ({one_line(error)}): repair it, or leave it out"
        ) from error


def _index_tar(url: str) -> list[tuple[int, int]]:
    starts, count, current = [], 0, None
    with _open(url, read_ahead=2**22) as file, tarfile.open(fileobj=file, mode="r:") as archive:
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


def _read_row_group(url: str, group: int, column: str) -> list[Any]:
    footer = _footer(url)
    paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
    # Of an image column only the bytes are read.
    leaf = f"{column}.bytes" if f"{column}.bytes" in paths else column
    with _open(url) as file:
        table = pyarrow.parquet.ParquetFile(file, metadata=footer).read_row_group(
            group, columns=[leaf], use_threads=False
        )
    values = table.column(0).to_pylist()
    # Of a structure one field was read.
    return [next(iter(value.values())) if isinstance(value, dict) else value for value in values]


def _read_samples(url: str, start: int, end: int | None) -> Iterator[dict[str, bytes]]:
    with _open(url) as file:
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


def _relative(url: str, folder: Path) -> str:
    path = Path(url)
    if "://" in url or not path.resolve().is_relative_to(folder):
        return url if "://" in url else str(path.resolve())
    return str(path.resolve().relative_to(folder))


def _read_index(url: str) -> ShardIndex:
    try:
        with _open(url) as file:
            shards = json.load(file)["shards"]
        urls = [str(shard["url"]) for shard in shards]
        index = ShardIndex.of(urls, [shard["chunks"] for shard in shards])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url} is not a readable index of shards ({one_line(error)}): write it with esvit "
            f"index"
        ) from error
    if (index.sizes < 0).any() or (index.starts < 0).any():
        raise ValueError(
            f"{url} is not a readable index of shards (negative numbers): write it with esvit index"
        )
    folder = url.rpartition("/")[0]
    joined = [
        address if "://" in address or not folder else f"{folder}/{address}" for address in urls
    ]
    absolute = [
        address if Path(address).is_absolute() else there
        for address, there in zip(urls, joined, strict=True)
    ]
    return ShardIndex(tuple(absolute), index.shards, index.starts, index.sizes)
