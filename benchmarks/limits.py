"""What limits a row: the share of matrix products in our time, and what would be left if all else
were free.

`python -m benchmarks.run` measures it after the rows that are bound by products and writes it
beside them.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from torch.profiler import profile

from benchmarks import losses, networks, step
from benchmarks.measure import Prepare, Row
from esvit_hf.acceleration.linear import multiply_transposed

PRODUCT_SIDE = 2048
"""Side of the square matrices that give the machine's speed."""
PRODUCTS = {"mkldnn::_linear_pointwise": 0, "aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0}
"""Operators, and the place of the left matrix among their inputs."""
LARGEST_SHARE = 0.7
"""Share of the time that an aim may ask products at their best speed to take."""
CASES: Mapping[str, tuple[torch.dtype, Prepare]] = {
    losses.TIME_ROW: (torch.float32, losses.prepare_ours),
    step.TIME_ROWS["float32"]: (torch.float32, step.prepare_ours),
    step.TIME_ROWS["bf16 autocast"]: (torch.bfloat16, lambda: step.prepare_ours("bf16")),
    networks.forward_row(torch.float32): (
        torch.float32,
        lambda: networks.prepare_forward(torch.float32),
    ),
    networks.forward_row(torch.bfloat16): (
        torch.bfloat16,
        lambda: networks.prepare_forward(torch.bfloat16),
    ),
    networks.TRAINING_ROW: (torch.float32, networks.prepare_training),
}


@dataclass(frozen=True)
class Limit:
    """Where our time of a row goes.

    Attributes:
        name: the row.
        share: of our time that matrix products take.
        speed: of these products, in GFLOP/s.
        best_speed: of large square products of the same type, in GFLOP/s.
        floor: ratio to the peer if the products ran at the best speed and all else took no time.
    """

    name: str
    share: float
    speed: float
    best_speed: float
    floor: float


def count_operations(name: str, shapes: Sequence[Sequence[int]]) -> int:
    """Return the floating-point operations of a product; a multiplication and an addition are
    two.
    """
    left, right = shapes[PRODUCTS[name]], shapes[PRODUCTS[name] + 1]
    columns = right[0] if name == "mkldnn::_linear_pointwise" else right[-1]
    return 2 * prod(left) * columns


def best_speed(dtype: torch.dtype, rounds: int = 9) -> float:
    """Measure a large product, in GFLOP/s."""
    left, right = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        multiply_transposed(left, right)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * PRODUCT_SIDE**3 / statistics.median(seconds)


def measure(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Profile ours once more for the rows that are bound by products.

    Args:
        rows: measured rows; those that are not in `CASES` are passed over.
    """
    limits = []
    for row in rows:
        if row.name not in CASES:
            continue
        dtype, prepare = CASES[row.name]
        run = prepare()
        run()
        with profile(record_shapes=True) as profiler:
            run()
        events = [event for event in profiler.events() or () if event.name in PRODUCTS]
        seconds = sum(event.self_cpu_time_total for event in events) / 1e6
        total = profiler.key_averages().self_cpu_time_total / 1e6
        operations = 1e-9 * sum(
            count_operations(event.name, event.input_shapes) for event in events
        )
        best = best_speed(dtype)
        floor = operations / best / total * row.ratio
        limits.append(asdict(Limit(row.name, seconds / total, operations / seconds, best, floor)))
    return limits


def own_aims(rows: Sequence[Row], limits: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Raise the aims that this processor's products leave no room for.

    Args:
        rows: measured rows, with the aims of all processors.
        limits: what `measure` gave for them.
    """
    least = {limit["name"]: limit["floor"] / LARGEST_SHARE for limit in limits}
    return [replace(row, reach=max(row.reach, least.get(row.name, 0.0))) for row in rows]


def format_limits(limits: Sequence[Mapping[str, Any]]) -> str:
    """Return the limits as a Markdown table."""
    lines = [
        "| row | products' share | GFLOP/s | large products | ratio at least |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {limit['name']} | {limit['share']:.0%} | {limit['speed']:.0f} | "
        f"{limit['best_speed']:.0f} | {limit['floor']:.2f} |"
        for limit in limits
    ]
    return "\n".join(lines)
