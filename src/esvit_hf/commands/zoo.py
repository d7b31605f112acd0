"""`esvit zoo`: the catalog as a table, and the folder of one checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.markdown import format_columns
from esvit_hf.zoo.listing import EntryFilter, list_checkpoints

__all__ = ["build", "print_checkpoints"]

_COLUMNS = ("name", "network", "window", "objectives", "data", "linear", "k-NN", "numbers")


@flat_arguments
def print_checkpoints(chosen: EntryFilter, *, json: bool = False) -> dict[str, Any] | None:
    """List the checkpoints of the zoo with their top-1 accuracies in percent.

    `esvit zoo build` makes the Hub folder of one.

    Args:
        json: one JSON object in place of a table.

    Returns:
        The records if they are to be printed as JSON, otherwise None.

    Raises:
        ValueError: nothing fits.
    """
    records = list_checkpoints(**asdict(chosen))
    if json:
        return {"entries": records}
    print(format_columns([_COLUMNS, *map(_row, records)]))
    return None


@flat_arguments
def build(name: str, *, checkpoint: str | Path, output: str | Path) -> dict[str, Any]:
    """Turn a released checkpoint of the authors into a Hub folder: model, image processor, heads
    and card.

    The file is compared with the record of the entry first. The folder appears under its name only
    when it is complete.

    Args:
        name: entry of the zoo.
        checkpoint: the file that the authors released for it.
        output: folder to write; it must not exist or be empty.

    Returns:
        What was written: `output`, `model_type`, `parameters` (of the model), `heads` (their
        objectives).

    Raises:
        ValueError: there is no such entry, the file is not what its record says, or the folder is
            not free.
    """
    from esvit_hf.zoo.build import build_folder

    return build_folder(name, checkpoint=Path(checkpoint), output=Path(output))


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    if record["release"] is not None:
        numbers = record["release"]["readme"]
        linear, knn = f"{numbers['linear']:.1f}", f"{numbers['knn']:.1f}"
        source = "reported by the authors"
    else:
        linear, knn = (_measured(record, task) for task in ("linear probe", "k-NN"))
        source = "measured here"
    network, window = record["architecture"]["title"], record["architecture"]["window"]
    data = record["data"]["name"]
    facts = (record["name"], network, str(window or "-"), record["objectives"], data)
    return (*facts, linear, knn, source)


def _measured(record: Mapping[str, Any], task: str) -> str:
    rows = record["measurements"]
    values = [row["value"] for row in rows if (row["task"], row["metric"]) == (task, "top1")]
    return f"{values[0]:.1f}" if values else "-"
