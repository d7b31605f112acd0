"""Rows of features as tables, and as files of each format."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import torch
from datasets import Features, List, Value
from safetensors.torch import save_file

from esvit_hf.common.files import write_aside
from esvit_hf.features.row_features import PartFeatures
from esvit_hf.features.rows import RowSource

__all__ = ["WRITERS", "WRITERS_OF_REGIONS", "companion", "make_feature_table", "write_rows"]

_PROVENANCE = b"esvit_hf"


def make_feature_table(
    features: PartFeatures, source: RowSource, provenance: Mapping[str, Any]
) -> tuple[pyarrow.Table | None, dict[str, str]]:
    """Put features beside what identifies their images.

    Args:
        features: of a part of the images.
        source: the images.
        provenance: what the features were made from, kept in the table's metadata.

    Returns:
        A table with the columns of `source`, `feature`, and with regions `grid` and `regions`; its
        metadata give `datasets` the types; None without rows. And what is wrong with the images
        left out, by their files, or places where they have none.
    """
    part, kept = features.part, features.kept
    identities = source.identify(part.start, part.stop)
    names = identities.get("file", pyarrow.nulls(len(part)))
    broken = {
        names[index - part.start].as_py() or f"image {index}": features.broken[index]
        for index in sorted(features.broken)
    }
    if not len(kept):
        return None, broken
    rows = pyarrow.array((kept - part.start).numpy())
    columns = {name: values.take(rows) for name, values in identities.items()}
    types = dict(source.columns)
    types["feature"] = List(Value("float32"), length=features.values.shape[1])
    columns["feature"] = _nested(features.values)
    if features.regions is not None:
        assert features.grid is not None
        _, regions, channels = features.regions.shape
        types["grid"] = List(Value("int32"), length=2)
        grid = torch.tensor(features.grid, dtype=torch.int32)
        columns["grid"] = _nested(grid.expand(len(kept), 2))
        types["regions"] = List(List(Value("float32"), length=channels), length=regions)
        columns["regions"] = _nested(features.regions)
    schema = Features(types).arrow_schema
    schema = schema.with_metadata(
        {**schema.metadata, _PROVENANCE: json.dumps(provenance, sort_keys=True)}
    )
    return pyarrow.table(columns).cast(schema), broken


def write_rows(path: Path, tables: Iterator[pyarrow.Table], rows: int) -> None:
    """Write tables of one schema as one file; readers see all of it or nothing.

    Args:
        path: the file; its ending is the format. `.npy` and `.safetensors` hold numbers, and
            `companion(path)` says which row is which image.
        tables: the rows in order, taken one at a time.
        rows: number of rows of all tables.

    Raises:
        OSError: the file cannot be written.
    """
    WRITERS[path.suffix](path, tables, rows)


def companion(path: Path) -> Path:
    """Name the file with the other columns of a file that holds numbers alone.

    Args:
        path: of that file.
    """
    return path.with_name(f"{path.name}.rows.csv")


def _nested(values: torch.Tensor) -> pyarrow.Array:
    """An array (n, ...) as lists of fixed lengths, without a copy."""
    array = pyarrow.array(values.contiguous().view(-1).numpy())
    for length in reversed(values.shape[1:]):
        array = pyarrow.FixedSizeListArray.from_arrays(array, length)
    return array


def _numbers(table: pyarrow.Table, column: str) -> np.ndarray:
    """A column of nested lists as an array (n, ...)."""
    array = table.column(column).combine_chunks()
    shape = [len(array)]
    while pyarrow.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    values: np.ndarray = array.to_numpy(zero_copy_only=True).reshape(shape)
    return values


def _plain_columns(table: pyarrow.Table) -> dict[str, pyarrow.ChunkedArray]:
    """What identifies the images, in columns that a CSV file can hold."""
    columns = {}
    for name in table.column_names:
        if name in ("feature", "grid", "regions"):
            continue
        column = table.column(name)
        if pyarrow.types.is_nested(column.type):
            column = pyarrow.chunked_array([[json.dumps(value) for value in column.to_pylist()]])
        columns[name] = column
    return columns


def _write_parquet(path: Path, tables: Iterator[pyarrow.Table], rows: int) -> None:
    first = next(tables)
    with (
        write_aside(path) as aside,
        # Numbers that hardly ever repeat gain nothing from a dictionary.
        pyarrow.parquet.ParquetWriter(aside, first.schema, use_dictionary=["class_name"]) as file,
    ):
        file.write_table(first)
        for table in tables:
            file.write_table(table)


def _write_csv(path: Path, tables: Iterator[pyarrow.Table], rows: int) -> None:
    def flat() -> Iterator[pyarrow.Table]:
        for table in tables:
            values = _numbers(table, "feature")
            numbers = {f"feature_{place}": values[:, place] for place in range(values.shape[1])}
            yield pyarrow.table({**_plain_columns(table), **numbers})

    _write_csv_tables(path, flat())


def _write_csv_tables(path: Path, tables: Iterator[pyarrow.Table]) -> None:
    first = next(tables)
    with write_aside(path) as aside, pyarrow.csv.CSVWriter(aside, first.schema) as file:
        file.write_table(first)
        for table in tables:
            file.write_table(table)


def _write_npy(path: Path, tables: Iterator[pyarrow.Table], rows: int) -> None:
    def written(file: Any) -> Iterator[pyarrow.Table]:
        for table in tables:
            values = _numbers(table, "feature")
            if not file.tell():
                shape = (rows, values.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(values.tobytes())
            yield pyarrow.table(_plain_columns(table))

    with write_aside(path) as aside, aside.open("wb") as file:
        _write_csv_tables(companion(path), written(file))


def _write_safetensors(path: Path, tables: Iterator[pyarrow.Table], rows: int) -> None:
    # The format has all sizes at its start and one tensor behind the other.
    table = pyarrow.concat_tables(tables)
    _write_csv_tables(companion(path), iter([pyarrow.table(_plain_columns(table))]))
    tensors = {"features": _numbers(table, "feature")}
    if "label" in table.column_names and pyarrow.types.is_integer(table["label"].type):
        tensors["labels"] = table["label"].to_numpy().astype(np.int64)
    if "regions" in table.column_names:
        tensors["regions"] = _numbers(table, "regions")
        tensors["grid"] = _numbers(table, "grid")[0]
    with write_aside(path) as aside:
        save_file(
            {name: torch.from_numpy(values.copy()) for name, values in tensors.items()},
            aside,
            metadata={_PROVENANCE.decode(): table.schema.metadata[_PROVENANCE].decode()},
        )


WRITERS: Mapping[str, Callable[[Path, Iterator[pyarrow.Table], int], None]] = {
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
    ".npy": _write_npy,
    ".csv": _write_csv,
}
"""Formats by the endings of files."""

WRITERS_OF_REGIONS = (".parquet", ".safetensors")
"""Endings of the formats that hold more than one row of numbers an image."""
