"""Features of all images of a source, kept part by part or in memory."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import pyarrow
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.table import InMemoryTable
from tqdm.auto import tqdm

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.common.files import public_name
from esvit_hf.features.row_features import RowOptions, compute_parts
from esvit_hf.features.row_files import make_feature_table
from esvit_hf.features.row_output import RowOutput
from esvit_hf.features.rows import RowSource
from esvit_hf.features.store import FeatureStore

__all__ = ["rows_in_memory", "write_features"]

Result = TypeVar("Result")

_BROKEN_SHOWN = 5


def write_features(
    store: FeatureStore,
    source: RowSource,
    output: RowOutput,
    options: RowOptions,
    rows_per_shard: int,
) -> dict[str, Any] | None:
    """Write a row for every image, part by part; every process computes every n-th part.

    Args:
        store: gives the network and its image processor.
        source: the images.
        output: where the rows go. Complete parts that are there already are not computed again.
        options: what to compute.
        rows_per_shard: images of a part: what memory holds at once.

    Returns:
        As `extract_features`; None on processes but the first.

    Raises:
        ValueError: a stopped run with other settings left parts, or as `compute_parts`.
    """
    accelerator = store.accelerator
    parts = _split(len(source), rows_per_shard)
    settings = _settings(store, source, options, rows_per_shard)
    _on_first_process(accelerator, lambda: output.check(settings))
    own = range(accelerator.process_index, len(parts), accelerator.num_processes)
    missing = [number for number in own if not output.is_kept(number)]
    begin = partial(_on_first_process, accelerator, lambda: output.begin(settings))

    def load() -> RegionBackbone:
        backbone = store.backbone
        # Not before: a network that cannot be loaded leaves nothing behind.
        begin()
        return backbone

    if not missing:
        # The processes with parts wait for this one.
        begin()
    own_parts = [parts[number] for number in missing]
    tables = _tables(load, store, source, own_parts, options, settings)
    for number, (table, broken) in zip(missing, tables, strict=True):
        output.write_part(number, table, broken)
    accelerator.wait_for_everyone()
    finished = _on_first_process(accelerator, lambda: output.finish(len(parts)))
    if finished is None:
        return None
    paths, records = finished
    broken = {name: reason for record in records for name, reason in record.broken.items()}
    _warn_of(broken, len(source))
    return {
        "output": [str(path) for path in paths],
        "rows": sum(record.rows for record in records),
        "dimension": max(record.dimension for record in records),
        "broken": broken,
    }


def rows_in_memory(
    store: FeatureStore, source: RowSource, options: RowOptions, rows_per_shard: int
) -> Dataset:
    """Compute a row for every image, and keep all of them in memory.

    Args:
        store: gives the network and its image processor.
        source: the images.
        options: what to compute.
        rows_per_shard: images that are put together at once.

    Returns:
        The rows.

    Raises:
        ValueError: several processes, no image that can be decoded, or as `compute_parts`.
    """
    processes = store.accelerator.num_processes
    if processes > 1:
        raise ValueError(
            f"{processes} processes cannot put their rows together in memory: give an output"
        )
    parts = _split(len(source), rows_per_shard)
    settings = _settings(store, source, options, rows_per_shard)
    tables: list[pyarrow.Table] = []
    broken: dict[str, str] = {}
    tables_of_parts = _tables(lambda: store.backbone, store, source, parts, options, settings)
    for table, left_out in tables_of_parts:
        broken |= left_out
        tables += [] if table is None else [table]
    _warn_of(broken, len(source))
    if not tables:
        raise ValueError("none of the images can be decoded: check the data")
    return Dataset(InMemoryTable(pyarrow.concat_tables(tables)))


def _split(images: int, size: int) -> list[range]:
    if size < 1:
        raise ValueError(f"rows_per_shard is {size}: give at least 1")
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


def _settings(
    store: FeatureStore, source: RowSource, options: RowOptions, rows_per_shard: int
) -> dict[str, Any]:
    """All that decides the rows."""
    return {
        **store.identity(source),  # type: ignore[arg-type]
        "model": public_name(store.model) if isinstance(store.model, str) else "in memory",
        "columns": {name: str(kind) for name, kind in source.columns.items()},
        "class_names": getattr(source.columns.get("label"), "names", None),
        "blocks": options.blocks,
        "regions": options.regions,
        "refuse_broken": options.refuse_broken,
        "reduce_jpegs": options.reduce_jpegs,
        "max_image_pixels": options.max_image_pixels,
        "rows_per_shard": rows_per_shard,
    }


def _tables(
    load_backbone: Callable[[], RegionBackbone],
    store: FeatureStore,
    source: RowSource,
    parts: list[range],
    options: RowOptions,
    settings: Mapping[str, Any],
) -> Iterator[tuple[pyarrow.Table | None, dict[str, str]]]:
    """The rows of each part, and what is wrong with the images left out, by name."""
    if not parts:
        return
    progress = tqdm(
        total=sum(map(len, parts)),
        desc="features",
        unit="image",
        leave=False,
        disable=not store.accelerator.is_main_process,
    )
    with progress:
        for features in compute_parts(
            load_backbone, store.processor, source, parts, options, store.accelerator
        ):
            yield make_feature_table(features, source, settings)
            progress.update(len(features.part))


def _on_first_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result | None:
    """Do something on the first process while the others wait; all raise what is wrong."""
    result: Result | None = None
    problem: str | None = None
    if accelerator.is_main_process:
        try:
            result = work()
        except ValueError as error:
            problem = str(error)
    (problem,) = broadcast_object_list([problem])
    if problem is not None:
        raise ValueError(problem)
    return result


def _warn_of(broken: Mapping[str, str], images: int) -> None:
    if not broken:
        return
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:_BROKEN_SHOWN])
    rest = f"; and {len(broken) - _BROKEN_SHOWN} more" if len(broken) > _BROKEN_SHOWN else ""
    warnings.warn(
        f"{len(broken)} of {images} images cannot be decoded and are left out ({shown}{rest})",
        stacklevel=3,
    )
