"""How everything here is measured: medians of interleaved runs, and peak memory in processes of
their own.

`python -m benchmarks.measure MODULE CASE` prints the peak memory of one case; `peak_memory` calls
it.
"""

import gc
import importlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20

Run = Callable[[], object]
Prepare = Callable[[], Run]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is measured.
        ours: our number.
        against: the peer's number.
        peer: which peer that is.
        reach: the largest ratio of ours to theirs that counts as reached.
        unit: of both numbers.
        peers: the numbers of all peers.
    """

    name: str
    ours: float
    against: float
    peer: str
    reach: float
    unit: str
    peers: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Ours over theirs; below 1 we need less."""
        return self.ours / self.against

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the ratio."""
        return {**asdict(self), "ratio": self.ratio}


def compare(
    name: str,
    ours: float,
    peers: Mapping[str, float],
    *,
    reach: float,
    against: str | None = None,
    unit: str = "s",
    scale: float = 1.0,
) -> Row:
    """Build a row.

    Args:
        name: what is measured.
        ours: our number.
        peers: the others' numbers.
        reach: the largest ratio that counts as reached.
        against: the peer that the ratio is for; the best one by default.
        unit: of the numbers in the row.
        scale: turns the numbers given into that unit.
    """
    against = against or min(peers, key=lambda peer: peers[peer])
    scaled = {peer: value * scale for peer, value in peers.items()}
    return Row(name, ours * scale, scaled[against], against, reach, unit, scaled)


def interleave(cases: Mapping[str, Run], *, rounds: int, warmup: int = 1) -> dict[str, float]:
    """Time cases in turns, so that whatever else the machine does meets all of them.

    Args:
        cases: what to run, by name.
        rounds: runs of each case that count.
        warmup: runs of each case before them.

    Returns:
        Median seconds of each case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warmup + rounds):
        for name, run in cases.items():
            gc.collect()
            start = time.perf_counter()
            run()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(module: str, case: str) -> float:
    """Return the peak memory in bytes that a case needs beyond its inputs, in a fresh process.

    Args:
        module: module of `benchmarks` with a dictionary `MEMORY_CASES` of preparing functions.
        case: key of that dictionary.

    Raises:
        RuntimeError: with the process's error.
    """
    command = [sys.executable, "-m", "benchmarks.measure", module, case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    return float(done.stdout.split()[-1])


def measure_peak(prepare: Prepare) -> int:
    """Run a prepared case once; return its peak memory in bytes beyond what was resident before
    it.
    """
    run = prepare()
    gc.collect()
    resident = psutil.Process().memory_info().rss
    run()
    return _peak_resident() - resident


def _peak_resident() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # On Linux ru_maxrss starts with what the process had that started this one.
    return next(
        int(line.split()[1]) * 1024
        for line in status.read_text().splitlines()
        if line.startswith("VmHWM")
    )


def main(module: str, case: str) -> None:
    cases: dict[str, Prepare] = importlib.import_module(f"benchmarks.{module}").MEMORY_CASES
    print(measure_peak(cases[case]))


if __name__ == "__main__":
    main(*sys.argv[1:])
