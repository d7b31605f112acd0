"""Shards of encoded images, parquet or tar, on disk or remote: where they are, and their index."""

import functools
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from datasets import Features, Value, load_dataset_builder
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetsError
from PIL import Image

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import check_writable, expand_home, write_aside
from esvit_hf.common.places import find_path, similar_path
from esvit_hf.data.loading import check_hub_data
from esvit_hf.data.shard_files import (
    READING_ERRORS,
    index_tar,
    is_parquet,
    is_tar,
    open_shard,
    read_footer,
    read_row_group,
    read_samples,
)

OPEN_SHARDS = 16
MOST_IMAGES = 2**40
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
            if is_parquet(url):
                values = read_row_group(url, start, column)
            else:
                is_last = (
                    chunk + 1 == len(self.sizes) or self.shards[chunk + 1] != self.shards[chunk]
                )
                samples = read_samples(url, start, None if is_last else int(self.starts[chunk + 1]))
                names = column.split(";")
                values = [
                    next((sample[name] for name in names if name in sample), None)
                    for sample in samples
                ]
        except READING_ERRORS as error:
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
    name_or_path = expand_home(name_or_path)
    path = Path(name_or_path)
    if (
        "://" in name_or_path
        or "*" in name_or_path
        or NUMBER_RANGE.search(name_or_path)
        or path.is_file()
    ):
        urls = [url for pattern in _expand_range(name_or_path) for url in _expand_star(pattern)]
    elif path.is_dir():
        urls = _shards_of_split(str(path), split, config_name)
    elif find_path(name_or_path) is None:
        check_hub_data(name_or_path)
        urls = _shards_of_split(name_or_path, split, config_name)
    else:
        raise ValueError(
            f"{name_or_path} does not exist{similar_path(path)}; give a folder, shards, an index, "
            f"or a name on the Hub"
        )
    if not urls:
        raise ValueError(f"no file matches {name_or_path}; check the pattern")
    other = next((url for url in urls if not is_parquet(url) and not is_tar(url)), None)
    if other is not None:
        raise ValueError(
            f"{name_or_path} has files such as {other}, and shards are .parquet or uncompressed "
            f".tar files: {_remedy(other)}"
        )
    if len({is_parquet(url) for url in urls}) > 1:
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
        index = _read_index(expand_home(name_or_path))
    else:
        urls = find_shards(name_or_path, split=split, config_name=config_name)
        if is_tar(urls[0]):
            raise ValueError(
                f"{name_or_path} has tar shards, which do not say how many images they hold: run "
                f"'esvit index {name_or_path} index.json' once and give index.json in place of "
                f"{name_or_path}"
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
    read_footer.cache_clear()
    with ThreadPoolExecutor(OPEN_SHARDS) as pool:
        return list(pool.map(_index_shard, urls))


def write_index(
    dataset: str, output: Path, *, split: str = "train", config_name: str | None = None
) -> dict[str, Any] | None:
    """Write an index, as :func:`esvit_hf.commands.shards.index` says."""
    output = expand_home(output)
    if output.suffix != ".json":
        raise ValueError(f"output {output} must end with .json")
    try:
        check_writable(output.parent)
    except OSError as error:
        raise ValueError(f"output {output} cannot be written ({error}): choose another") from error
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
        if is_parquet(url):
            return Features.from_arrow_schema(read_footer(url).schema.to_arrow_schema())
        end = (
            int(index.starts[1])
            if len(index.starts) > 1 and index.shards[1] == index.shards[0]
            else None
        )
        sample = next(read_samples(url, int(index.starts[0]), end))
    except (*READING_ERRORS, StopIteration) as error:
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
    try:
        files, path = fsspec.core.url_to_fs(pattern)
        found = files.glob(path)
    except ImportError as error:
        raise ValueError(
            f"{pattern} needs one more package ({one_line(error)}): install it with pip"
        ) from error
    # File systems raise nearly anything: ValueError, errors of their own libraries.
    except Exception as error:
        raise ValueError(
            f"{pattern} cannot be listed ({one_line(error)}): check the address"
        ) from error
    return sorted(files.unstrip_protocol(name) if "://" in pattern else name for name in found)


def _remedy(other: str) -> str:
    """Say what helps with a file that is no shard."""
    name = other.split("?")[0].lower()
    if re.search(r"\.(tgz|tar\.\w+)$", name):
        return "decompress it"
    if name.endswith((".tsv", ".zip")):
        return "write shards with esvit repack"
    return "such files need no index and are read without streaming"


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


def _index_shard(url: str) -> list[tuple[int, int]]:
    try:
        if is_parquet(url):
            footer = read_footer(url)
            return [
                (group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)
            ]
        return index_tar(url)
    except READING_ERRORS as error:
        raise UnreadableShardError(
            f"{url} cannot be read ({one_line(error)}): repair it, or leave it out"
        ) from error


def _relative(url: str, folder: Path) -> str:
    path = Path(url)
    if "://" in url or not path.resolve().is_relative_to(folder):
        return url if "://" in url else str(path.resolve())
    return str(path.resolve().relative_to(folder))


def _read_index(url: str) -> ShardIndex:
    try:
        with open_shard(url) as file:
            shards = json.load(file)["shards"]
        urls = [str(shard["url"]) for shard in shards]
        index = ShardIndex.of(urls, [shard["chunks"] for shard in shards])
    except (
        ArithmeticError,
        ImportError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{url} is not a readable index of shards ({one_line(error)}): write it with esvit "
            f"index"
        ) from error
    fault = None
    other = [address for address in urls if not is_parquet(address) and not is_tar(address)]
    if (index.sizes < 0).any() or (index.starts < 0).any():
        fault = "negative numbers"
    elif sum(index.sizes.tolist()) > MOST_IMAGES:
        fault = f"more than {MOST_IMAGES} images"
    elif other:
        fault = f"{other[0]} is neither .parquet nor .tar"
    if fault is not None:
        raise ValueError(
            f"{url} is not a readable index of shards ({fault}): write it with esvit index"
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
