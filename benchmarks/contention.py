"""The training of the demo beside other busy processes: its speed with a thread for each core, as
PyTorch has them, and as `esvit` sets them.

`python -m benchmarks.contention` prints a table and writes `benchmarks/results/contention.json`, in
five minutes on two cores that do nothing else.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import auto_cli
from tqdm import tqdm

from benchmarks.measure import ROOT
from benchmarks.run import RESULTS, describe_machine
from esvit_hf.common.waiting_threads import SPINS
from esvit_hf.pretraining.machine import look_at_machine

CORES = look_at_machine().cores


def every_core(spins: int) -> dict[str, str]:
    """Variables that give a thread to each core, and let it wait for so many turns."""
    return {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": str(spins)}


ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    # What libgomp does without a setting.
    "PyTorch as it comes (300000 turns)": every_core(300_000),
    f"{SPINS} turns": every_core(SPINS),
    "no turns": every_core(0),
    f"esvit ({SPINS} turns, cores for the worker)": {},
}
THREAD_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
BUSY = "while True: pass"
LOGGING_STEPS = 4


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep so many cores busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_speed(environment: Mapping[str, str], seconds: float) -> float:
    """Train the demo for some time, its start included.

    Args:
        environment: variables that say how threads wait.
        seconds: time until the run is ended.

    Returns:
        Images in a second, the median of all lines of the log but the first; 0 if there are none.
    """
    others = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "esvit_hf.commands.main", "pretrain", "demo"),
            *("--run.output_dir", folder, "--run.knn_every_epochs", "0", "--run.trackers", "[]"),
            *("--run.logging_steps", str(LOGGING_STEPS)),
        ]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**others, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            time.sleep(seconds)
            assert process.poll() is None, f"the run ended with {process.returncode}"
        finally:
            # With its data-loading processes.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        metrics = Path(folder) / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
    speeds = [json.loads(line)["images_per_second"] for line in lines if line.endswith("}")]
    return statistics.median(speeds[1:]) if len(speeds) > 1 else 0.0


def main(
    busy: tuple[int, ...] = (0, 1, 2), seconds: float = 24, spins: tuple[int, ...] = ()
) -> None:
    """Measure every setting beside each number of busy processes, print the table and write it.

    Args:
        busy: numbers of busy processes.
        seconds: time of each run, its start included.
        spins: further numbers of turns to try, with a thread for each core.
    """
    environments = ENVIRONMENTS | {f"{number} turns": every_core(number) for number in spins}
    speeds: dict[str, dict[int, float]] = {name: {} for name in environments}
    for number, name in tqdm([(number, name) for number in busy for name in environments]):
        with busy_processes(number):
            speeds[name][number] = measure_speed(environments[name], seconds)
    lines = [
        "| threads | " + " | ".join(f"{number} busy" for number in busy) + " |",
        "|---|" + "---:|" * len(busy),
        *(
            f"| {name} | " + " | ".join(f"{row[number]:.0f}" for number in busy) + " |"
            for name, row in speeds.items()
        ),
    ]
    report = {"machine": describe_machine(), "images_per_second": speeds}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "contention.json").write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
