"""The zoo as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from esvit_hf.zoo.entries import ENTRIES, ZooEntry

__all__ = ["list_entries"]

_COLUMNS = ("name", "network", "window", "tasks", "data", "linear", "k-NN", "numbers")


def list_entries(
    *,
    arch: str | None = None,
    tasks: Literal["V", "V+R"] | None = None,
    data: str | None = None,
    json: bool = False,
) -> dict[str, Any] | None:
    """List the checkpoints of the zoo with their top-1 accuracies in percent.

    Args:
        arch: part of the network's name, for example swin or Swin-T.
        tasks: V for the view loss alone, V+R with the region loss.
        data: part of the training data's name, for example imagenet.
        json: one JSON object in place of a table.

    Returns:
        The records if they are to be printed as JSON, otherwise None.

    Raises:
        ValueError: nothing fits.
    """
    found = [
        entry
        for entry in ENTRIES
        if (arch is None or arch.lower() in entry.architecture.title.lower())
        and tasks in (None, entry.tasks)
        and (data is None or data.lower() in entry.data.name.lower())
    ]
    if not found:
        raise ValueError(
            f"no entry of the zoo fits: networks are "
            f"{_names(entry.architecture.title for entry in ENTRIES)}; data are "
            f"{_names(entry.data.name for entry in ENTRIES)}"
        )
    if json:
        return {"entries": [_record(entry) for entry in found]}
    print(_table([_COLUMNS, *(_row(entry) for entry in found)]))
    return None


def _names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _record(entry: ZooEntry) -> dict[str, Any]:
    measurements = [asdict(measurement) for measurement in entry.measurements]
    return {"kind": entry.kind, **asdict(entry), "measurements": measurements}


def _row(entry: ZooEntry) -> tuple[str, ...]:
    if entry.release is not None:
        numbers = entry.release.readme
        linear, knn, source = (
            f"{numbers.linear:.1f}",
            f"{numbers.knn:.1f}",
            "reported by the authors",
        )
    else:
        linear, knn = (_measured(entry, task) for task in ("linear probe", "k-NN"))
        source = "measured here"
    architecture = entry.architecture
    window = str(architecture.window or "-")
    return entry.name, architecture.title, window, entry.tasks, entry.data.name, linear, knn, source


def _measured(entry: ZooEntry, task: str) -> str:
    values = [row.value for row in entry.measurements if (row.task, row.metric) == (task, "top1")]
    return f"{values[0]:.1f}" if values else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)
