"""Training steps on a GPU, in bf16: ours and the plain formula on other libraries' networks, each
run eagerly and compiled; their share of the device's speed, where the time goes, and the data path.

`python -m benchmarks.gpu` ends within eight minutes. Rows come in the order of their worth, and the
file is written after each, so that a run that is cut keeps what it has measured. To try it all on a
CPU with tiny networks: `python -m benchmarks.gpu --device cpu --tiny true --output /tmp/gpu.json`.
"""

import gc
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from jsonargparse import auto_cli

from benchmarks.budget import count_operations
from benchmarks.gpu_cases import FULL, TINY, Machine, prepare_data, prepare_ours, prepare_plain
from benchmarks.gpu_profile import where_time_goes
from benchmarks.measure import Prepare, Run
from benchmarks.networks import prepare_forward
from benchmarks.peers import BUILDERS
from benchmarks.run import RESULTS, describe_machine

Measure = Callable[[], dict[str, Any]]
WARMUP = 2


class OutOfTimeError(BaseException):
    """The minutes are over; nothing on the way may keep it, as it might keep an `Exception`."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the body when the time is over, or at once if it is already."""
    if seconds <= 0:
        raise OutOfTimeError

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Measuring:
    """The device, and how cases are measured on it."""

    def __init__(self, machine: Machine, rounds: int) -> None:
        self.machine = machine
        self.rounds = rounds
        self.on_gpu = machine.device == "cuda"
        self.speed = 0.0

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def clean_up(self) -> None:
        """Forget the row before."""
        gc.collect()
        torch.compiler.reset()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def seconds(self, run: Run) -> float:
        """Return the median of some runs, each until the device is done."""
        self.synchronize()
        seconds = []
        for _ in range(self.rounds):
            start = time.perf_counter()
            run()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def product(self) -> dict[str, Any]:
        """Measure a large product, whose speed counts as that of the device."""
        side = self.machine.size.product_side
        left, right = (
            torch.randn(side, side, device=self.machine.device, dtype=torch.bfloat16)
            for _ in range(2)
        )
        for _ in range(WARMUP):
            left @ right
        self.speed = 2 * side**3 / self.seconds(lambda: left @ right)
        return {"TFLOP/s": self.speed / 1e12}

    def case(self, prepare: Prepare, images: int, operations: float | None) -> dict[str, Any]:
        """Measure a case.

        Args:
            prepare: makes it.
            images: of a run.
            operations: of an image, if its share of the device's speed is wanted.

        Returns:
            Time, time of preparation and first run, peak memory and share of the speed.
        """
        start = time.perf_counter()
        run = prepare()
        run()
        self.synchronize()
        result: dict[str, Any] = {"first run, s": time.perf_counter() - start}
        for _ in range(WARMUP - 1):
            run()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(run)
        result["ms an image"] = 1e3 * seconds / images
        if self.on_gpu:
            result["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        if operations is not None and self.speed:
            result["share of the device's speed"] = operations * images / seconds / self.speed
        return result

    def profile(self, prepare: Prepare) -> dict[str, Any]:
        """Profile a case."""
        run = prepare()
        for _ in range(WARMUP):
            run()
        self.synchronize()
        return where_time_goes(run, self.synchronize, self.on_gpu)

    def data_path(self) -> dict[str, Any]:
        """Measure one epoch of the data path."""
        with tempfile.TemporaryDirectory() as folder:
            run, images = prepare_data(self.machine, Path(folder), self.machine.size.batches[0])
            start = time.perf_counter()
            run()
            self.synchronize()
            seconds = time.perf_counter() - start
        return {"ms an image": 1e3 * seconds / images, "processes": self.machine.size.workers}


def plan(measuring: Measuring) -> Iterator[tuple[str, Measure]]:
    """Name all rows and what measures them, in the order of their worth."""
    machine = measuring.machine
    size = machine.size

    def ours(
        batch: int, way: str | None = None, model_type: str = "esvit_swin", **options: str
    ) -> tuple[str, Measure]:
        prepare = partial(
            prepare_ours, machine, batch, compiled=way, model_type=model_type, **options
        )
        detail = "".join(f", {key} {value}" for key, value in options.items())
        name = f"step of {model_type}, batch {batch}, {label(way)}{detail}"

        def measure() -> dict[str, Any]:
            operations = count_operations(
                model_type, size.fields[model_type], size.views, size.num_prototypes
            )
            return measuring.case(prepare, batch, operations)

        return name, measure

    def plain(batch: int, library: str, way: str | None = None) -> tuple[str, Measure]:
        prepare = partial(prepare_plain, machine, batch, library=library, compiled=way)
        name = f"plain step of {library}, batch {batch}, {label(way)}"
        return name, lambda: measuring.case(prepare, batch, None)

    first, *others = size.batches
    yield "large product", measuring.product
    yield ours(first)
    yield plain(first, "transformers")
    yield ours(first, "blocks")
    for way in (None, "blocks"):
        yield (
            f"where the time goes, batch {first}, {label(way)}",
            partial(measuring.profile, partial(prepare_ours, machine, first, compiled=way)),
        )
    yield plain(first, "transformers", "blocks")
    yield ours(first, "blocks", attention="eager")
    yield ours(first, "graphs")
    for batch in others:
        yield ours(batch)
        yield ours(batch, "blocks")
        yield plain(batch, "transformers")
    yield plain(first, "timm")
    yield plain(first, "timm", "blocks")
    yield "data path, JPEG files to crops on the device", measuring.data_path
    for model_type in ("esvit_cvt", "esvit_vil"):
        yield ours(first, None, model_type)
        yield ours(first, "blocks", model_type)
    if size is FULL:
        batch = size.evaluation_batch
        for name, build in BUILDERS.items():
            prepare = partial(
                prepare_forward, torch.bfloat16, build, batch=batch, device=machine.device
            )
            yield (
                f"Swin-T forward at 224, batch {batch}, evaluation, {name}",
                partial(measuring.case, prepare, batch, None),
            )


def label(way: str | None) -> str:
    """Say how a case runs."""
    return "eager" if way is None else f"compiled by {way}"


def measure_rows(measuring: Measuring, minutes: float, output: Path) -> dict[str, Any]:
    """Measure rows until the time is over, and write the report after each."""
    end = time.perf_counter() + 60 * minutes
    report: dict[str, Any] = {"machine": describe_machine(), "rows": {}, "not measured": {}}
    for name, measure in plan(measuring):
        try:
            with time_limit(end - time.perf_counter()):
                measuring.clean_up()
                report["rows"][name] = measure()
        except OutOfTimeError:
            report["not measured"][name] = "out of time"
        # Whatever a row lacks, the others are worth having: memory, a compiler, a kernel.
        except Exception as error:
            report["not measured"][name] = f"{type(error).__name__}: {error}"[:500]
        output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def format_rows(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = ["| row | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for name, row in rows.items():
        cells = [f"{row[key]:.3g}" if key in row else "" for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    device: str = "cuda",
    tiny: bool = False,
    minutes: float = 7.5,
    rounds: int = 7,
    output: Path = RESULTS / "gpu.json",
) -> None:
    """Measure everything, write it and print the tables.

    Args:
        device: where it runs.
        tiny: small networks and crops, and a compiler that only traces, for a try.
        minutes: what it takes at most; rows that do not fit are left out.
        rounds: runs of each case that count.
        output: file that is written after every row.
    """
    measuring = Measuring(Machine(device, TINY if tiny else FULL), 1 if tiny else rounds)
    report = measure_rows(measuring, minutes, output)
    rows = report["rows"]
    profiles = {name: row for name, row in rows.items() if "ms in all" in row}
    print(format_rows({name: row for name, row in rows.items() if name not in profiles}))
    for name, row in profiles.items():
        print(f"\n{name}: {row['ms in all']:.1f} ms, {row['kernels']} kernels\n")
        print(format_rows({group: {"ms": spent} for group, spent in row["ms"].items()}))
    for name, reason in report["not measured"].items():
        print(f"not measured: {name}: {reason}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
