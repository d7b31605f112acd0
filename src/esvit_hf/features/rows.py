"""Where rows of features come from: encoded images by index, and what says which image is which."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature

from esvit_hf.common.errors import one_line
from esvit_hf.data.loading import load_dataset_split
from esvit_hf.data.shards import shard_features
from esvit_hf.data.sources import ImageSource, find_image_column
from esvit_hf.data.streaming import StreamSource, open_stream

__all__ = ["RowSource", "StreamRows", "TableRows", "file_name", "open_rows", "row_name"]

_USUAL_LABEL_COLUMNS = ("label", "labels")
_ADDRESS_MARKS = ("://", "*", "{")
_ADDRESS_ENDINGS = (".tar", ".json")
_ROWS_AT_ONCE = 1000


class RowSource(Protocol):
    """Images by index, and the columns that identify them."""

    @property
    def columns(self) -> Features:
        """Types of the columns that identify an image: `index` is its place in the source."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that tells this source from another."""

    def __len__(self) -> int: ...

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """Fetch images as they are stored, for :func:`esvit_hf.data.decoding.open_image`."""

    def identify(self, start: int, stop: int) -> dict[str, pyarrow.Array]:
        """Give the identifying columns of the images from `start` to before `stop`."""


class TableRows:
    """Rows of a data set that is read by index.

    Args:
        dataset: the rows.
        root: folder that the paths of image files are given from; as they are if None.
        name: what to call the data in messages.
        image_column: column with the images; found by its type or name if None.
        label_column: column with the labels; found by its name or type if None.
        id_column: column to keep as `id`.

    Raises:
        ValueError: there are no rows, or a column is missing or of another kind.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        root: Path | None = None,
        name: str = "in-memory data set",
        image_column: str | None = None,
        label_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        image_column = find_image_column(dataset.features, image_column, name)
        self._source = ImageSource(
            dataset.select_columns([image_column]), image_column=image_column, name=name
        )
        self._root = root
        self._dataset = dataset.with_format("arrow")
        self._image_column = image_column
        self._kept = _kept_columns(dataset.features, label_column, id_column, name)
        has_files = next(self._paths(0, 1), None) is not None
        self.columns = _identifying_columns(dataset.features, self._kept, has_files)

    @property
    def fingerprint(self) -> str:
        """As that of `ImageSource`."""
        return self._source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """As `ImageSource.read_encoded`."""
        return self._source.read_encoded(indices)

    def identify(self, start: int, stop: int) -> dict[str, pyarrow.Array]:
        """Give the identifying columns of the images from `start` to before `stop`."""
        values: dict[str, list[Any]] = {}
        if "file" in self.columns:
            paths = self._paths(start, stop)
            values["file"] = [path and file_name(path, self._root) for path in paths]
        if self._kept:
            # Without the images.
            rows = self._dataset.select_columns(list(set(self._kept.values())))[start:stop]
            for kept, column in self._kept.items():
                values[kept] = rows.column(column).to_pylist()
        return _identified(self.columns, start, stop, values)

    def _paths(self, start: int, stop: int) -> Iterator[str | None]:
        """Path of each image, None where the data has none; few images are looked at at once."""
        images = self._dataset.select_columns([self._image_column])
        for first in range(start, stop, _ROWS_AT_ONCE):
            for chunk in images[first : min(stop, first + _ROWS_AT_ONCE)].column(0).chunks:
                storage = chunk.storage if isinstance(chunk, pyarrow.ExtensionArray) else chunk
                if pyarrow.types.is_struct(storage.type):
                    yield from storage.field("path").to_pylist()
                elif pyarrow.types.is_string(storage.type):
                    yield from storage.to_pylist()
                else:
                    yield from [None] * len(storage)


class StreamRows:
    """Rows of shards that are read while they are needed.

    A worker keeps the chunks of the shards that it reads at the moment, and no more.

    Args:
        source: the shards.
        label_column: column (parquet) or field (tar) with the labels; found by its name or type if
            None.
        id_column: column or field to keep as `id`.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(
        self,
        source: StreamSource,
        *,
        label_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        self._source = source
        features = shard_features(source.index)
        self._kept = _kept_columns(features, label_column, id_column, source.description)
        is_typed = isinstance(features.get(source.image_column), ImageFeature)
        self._has_paths = is_typed and source.index.urls[0].split("?")[0].endswith(".parquet")
        self.columns = _identifying_columns(features, self._kept, self._has_paths)

    @property
    def fingerprint(self) -> str:
        """Digest of the addresses of the shards and the number of images in their parts."""
        index = self._source.index
        digest = hashlib.sha256("\0".join(index.urls).encode())
        for numbers in (index.shards, index.starts, index.sizes):
            digest.update(np.ascontiguousarray(numbers).tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._source)

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """As `StreamSource.read_encoded`."""
        return self._source.read_encoded(indices)

    def identify(self, start: int, stop: int) -> dict[str, pyarrow.Array]:
        """Give the identifying columns of the images from `start` to before `stop`."""
        columns = dict(self._kept)
        if self._has_paths:
            columns["file"] = f"{self._source.image_column}.path"
        values = {kept: list(self._read(column, start, stop)) for kept, column in columns.items()}
        return _identified(self.columns, start, stop, values)

    def _read(self, column: str, start: int, stop: int) -> Iterator[Any]:
        """Values of a column; those of a tar file are text."""
        index, place = self._source.index, start
        while place < stop:
            chunk, row = index.locate(place)
            rows = index.read(chunk, column)[row : row + stop - place]
            for value in rows:
                yield value.decode(errors="replace") if isinstance(value, bytes) else value
            place += len(rows)


def open_rows(
    dataset: "str | Path | Sequence[str | Path] | Dataset",
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    streaming: bool = False,
) -> RowSource:
    """Open images of any kind.

    Args:
        dataset: as for :func:`esvit_hf.data.sources.load_image_source`, or one or more image files,
            addresses or a pattern of shards (see :func:`esvit_hf.data.shards.find_shards`), or rows
            in memory.
        split: which images of a data set that has splits.
        config_name: configuration of a data set that has several.
        image_column: column with the images; found by its type or name if None.
        label_column: column with the labels; found by its name or type if None.
        id_column: column to keep as `id`.
        streaming: read shards while they are needed, also those of a folder or of the Hub; done in
            any case for addresses and patterns.

    Returns:
        The rows.

    Raises:
        ValueError: the images cannot be found or read, or a column is missing; the message names
            the remedy.
    """
    if isinstance(dataset, Dataset):
        return TableRows(
            dataset, image_column=image_column, label_column=label_column, id_column=id_column
        )
    given = [dataset] if isinstance(dataset, (str, Path)) else dataset
    places = [
        str(Path(place).expanduser()) if _is_image_file(place) else str(place) for place in given
    ]
    options = {"split": split, "config_name": config_name, "image_column": image_column}
    if len(places) == 1:
        (place,) = places
        if streaming or _is_address(place):
            stream = _open_stream(place, **options)
            return StreamRows(stream, label_column=label_column, id_column=id_column)
        if not _is_image_file(place):
            return TableRows(
                load_dataset_split(place, split=split, config_name=config_name),
                root=Path(place).expanduser(),
                name=f"{place} (split {split})",
                image_column=image_column,
                label_column=label_column,
                id_column=id_column,
            )
    missing = next((place for place in places if not _is_image_file(place)), None)
    if missing is not None or not places:
        raise ValueError(
            f"{missing} is no image file: give one folder or data set, or the paths of image files"
        )
    rows = Dataset.from_dict({"image": places}, features=Features({"image": ImageFeature()}))
    return TableRows(
        rows, name=f"{len(places)} files", label_column=label_column, id_column=id_column
    )


def file_name(path: str, root: Path | None) -> str:
    """Name an image file as it is written beside its features.

    Args:
        path: of the file.
        root: folder of the source.

    Returns:
        The path from the root on; of an absolute path elsewhere the last part; the path as it is
        without a root.
    """
    if root is None or not Path(path).is_absolute():
        return path
    # Without following links, of which the source may be full.
    absolute = root.absolute()
    found = Path(path)
    return str(found.relative_to(absolute) if found.is_relative_to(absolute) else found.name)


def row_name(source: RowSource, index: int) -> str:
    """Name an image in messages.

    Args:
        source: the images.
        index: place of the image.

    Returns:
        Its file, or its place where it has none.
    """
    file = source.identify(index, index + 1).get("file")
    known = None if file is None else file[0].as_py()
    return known or f"image {index}"


def _open_stream(place: str, **options: Any) -> StreamSource:
    try:
        # Nothing is shuffled, so a worker keeps no more than what it reads.
        return open_stream(place, shuffle_buffer=0, **options)
    except ImportError as error:
        raise ValueError(
            f"{place} needs one more package ({one_line(error)}): install it with pip"
        ) from error


def _is_address(place: str) -> bool:
    if Path(place).expanduser().exists():
        return place.endswith(_ADDRESS_ENDINGS)
    return any(mark in place for mark in _ADDRESS_MARKS) or place.endswith(_ADDRESS_ENDINGS)


def _is_image_file(place: str | Path) -> bool:
    path = Path(place).expanduser()
    return path.is_file() and path.suffix.lower() != ".parquet"


def _kept_columns(
    features: Features, label_column: str | None, id_column: str | None, name: str
) -> dict[str, str]:
    """The source's columns of labels and ids, by the names they are kept under."""
    for flag, column in (("label_column", label_column), ("id_column", id_column)):
        if column is not None and column not in features:
            raise ValueError(
                f"{name} has no column '{column}'; set --{flag} to one of: {', '.join(features)}"
            )
    if label_column is None:
        usual = [column for column in _USUAL_LABEL_COLUMNS if column in features]
        typed = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
        found = usual or typed
        # Among several class columns (coarse, fine, ...) only a usual name decides.
        label_column = found[0] if len(found) == 1 else None
    named = {"id": id_column, "label": label_column}
    return {kept: column for kept, column in named.items() if column is not None}


def _identifying_columns(features: Features, kept: dict[str, str], has_files: bool) -> Features:
    columns: dict[str, Any] = {"index": Value("int64")}
    if has_files:
        columns["file"] = Value("string")
    for name, column in kept.items():
        kind = features[column]
        is_bytes = isinstance(kind, Value) and "binary" in kind.dtype
        columns[name] = Value("string") if is_bytes or isinstance(kind, ImageFeature) else kind
        if name == "label" and isinstance(kind, ClassLabel):
            columns["class_name"] = Value("string")
    return Features(columns)


def _identified(
    columns: Features, start: int, stop: int, values: dict[str, list[Any]]
) -> dict[str, pyarrow.Array]:
    """The columns in their types, with the names of classes."""
    values = {"index": list(range(start, stop)), **values}
    if "class_name" in columns:
        names: Callable[[int], str] = columns["label"].int2str
        # The Hub's convention for labels that are kept secret is -1.
        values["class_name"] = [
            None if number is None or number < 0 else names(number) for number in values["label"]
        ]
    types = columns.arrow_schema
    return {name: pyarrow.array(values[name], types.field(name).type) for name in columns}
