"""How time and memory of a pretraining step grow, one quantity at a time; a line is fitted to each.

`python -m benchmarks.growth AXIS VALUE` measures one point in its own process and prints it.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import losses, step
from benchmarks.measure import MEBIBYTE, ROOT, Run, measure_peak

BATCH = 2
TIMED_STEPS = 3


@dataclass(frozen=True)
class Axis:
    """One quantity that is varied while the others stay.

    Attributes:
        label: the quantity.
        values: its values.
        prepare: builds the step for a value.
        term: what time and memory are linear in, as a function of the value.
        term_label: the term in words.
    """

    label: str
    values: tuple[int, ...]
    prepare: Callable[[int], Run]
    term: Callable[[float], float]
    term_label: str


def _regions_of(side: float) -> float:
    return (side / 32) ** 2


AXES: dict[str, Axis] = {
    "batch": Axis(
        "images in a batch",
        (1, 2, 4),
        lambda value: step.prepare_ours(batch=value),
        float,
        "an image",
    ),
    "prototypes": Axis(
        "prototypes K",
        (8192, 32768, 65536, 131072),
        lambda value: step.prepare_ours(batch=BATCH, num_prototypes=value),
        lambda value: value / 1024,
        "1024 prototypes",
    ),
    "local_crops": Axis(
        "local crops of 96 pixels",
        (0, 4, 8, 12),
        lambda value: step.prepare_ours(
            batch=BATCH, views=((2, 224), (value, 96)) if value else ((2, 224),)
        ),
        float,
        "a local crop",
    ),
    "image_side": Axis(
        "side of the global crops",
        (160, 224, 288, 352),
        lambda value: step.prepare_ours(batch=BATCH, views=((2, value), (8, 96))),
        _regions_of,
        "a region of each global crop",
    ),
    "regions": Axis(
        "student regions, heads and losses alone",
        (170, 340, 680, 1360),
        lambda value: losses.prepare_ours(batch=value // 170),
        lambda value: value / 170,
        "170 regions",
    ),
}


def measure_point(axis: str, value: int) -> dict[str, float]:
    """Measure one point in this process; a first step makes what later steps reuse."""
    seconds: list[float] = []

    def prepare() -> Run:
        run = AXES[axis].prepare(value)

        def steps() -> None:
            run()
            for _ in range(TIMED_STEPS):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)

        return steps

    peak = measure_peak(prepare)
    return {"seconds": statistics.median(seconds), "mebibytes": peak / MEBIBYTE}


def measure() -> list[dict[str, Any]]:
    """Measure all points, each in a fresh process; return one record an axis with its points and
    fits.
    """
    records = []
    for name, axis in AXES.items():
        points = []
        for value in axis.values:
            command = [sys.executable, "-m", "benchmarks.growth", name, str(value)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            points.append({"value": value, **json.loads(done.stdout.splitlines()[-1])})
        fits = {quantity: fit_line(axis, points, quantity) for quantity in ("seconds", "mebibytes")}
        records.append(
            {
                "axis": name,
                "label": axis.label,
                "term": axis.term_label,
                "points": points,
                "fits": fits,
            }
        )
    return records


def fit_line(axis: Axis, points: Sequence[Mapping[str, float]], quantity: str) -> dict[str, float]:
    """Fit quantity = constant + slope * term."""
    terms = [axis.term(point["value"]) for point in points]
    slope, constant = np.polyfit(terms, [point[quantity] for point in points], 1)
    return {"constant": float(constant), "slope": float(slope)}


if __name__ == "__main__":
    print(json.dumps(measure_point(sys.argv[1], int(sys.argv[2]))))
