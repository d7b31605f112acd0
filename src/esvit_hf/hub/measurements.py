"""Measured numbers as records: what an evaluation writes beside a model, and what a model card
quotes.
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

__all__ = ["MEASUREMENTS_FILE", "Measurement", "read_measurements", "write_measurements"]

MEASUREMENTS_FILE = "measurements.json"
"""Name of the file in a model's folder."""


@dataclass(frozen=True)
class Measurement:
    """One number, with all that is needed to get it again.

    Attributes:
        task: what was done with the features, such as `k-NN` or `linear probe`.
        dataset: name of the data set, without folders of a machine.
        split: images that the number is for, such as `test`.
        metric: name of the metric, such as `top1`.
        value: the number; shares are in percent.
        protocol: how it was measured, in one line.
        command: command line that gives the number.
        random_network: the same number of a network with random weights; None if it was not
            measured.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    protocol: str
    command: str
    random_network: float | None = None


def write_measurements(measurements: Sequence[Measurement], path: Path) -> None:
    """Write records as a JSON list.

    Args:
        measurements: the records.
        path: file to write.
    """
    records = [
        {name: value for name, value in asdict(measurement).items() if value is not None}
        for measurement in measurements
    ]
    path.write_text(json.dumps(records, indent=2) + "\n")


def read_measurements(path: Path) -> list[Measurement]:
    """Read what `write_measurements` wrote.

    Args:
        path: the file.

    Returns:
        The records.

    Raises:
        ValueError: the file is unreadable or holds something else.
    """
    names = {field.name for field in fields(Measurement)}
    needed = {field.name for field in fields(Measurement) if field.default is MISSING}
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a readable list of measurements ({error}): write it again"
        ) from error
    if not isinstance(records, list) or any(
        not isinstance(record, dict) or not needed <= set(record) <= names for record in records
    ):
        raise ValueError(
            f"{path} must be a list of records with the fields {', '.join(sorted(needed))}: write "
            f"it again"
        )
    return [Measurement(**record) for record in records]
