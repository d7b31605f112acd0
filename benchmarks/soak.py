"""A long pretraining run: are memory and open files flat, and is its speed steady?

`python -m benchmarks.soak --minutes 30` prints a verdict and writes `benchmarks/results/soak.json`
and `soak.png`.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from jsonargparse import auto_cli
from matplotlib.figure import Figure

from benchmarks.measure import MEBIBYTE, ROOT
from benchmarks.run import RESULTS, describe_machine

SETTLED = 1 / 3
"""Share of the run that is not judged: caches fill, and the allocator finds its size."""
MEMORY_GROWTH, SPEED_LOSS = 0.02, 0.1
"""Shares that count as flat and as steady, from the first third of the judged time to its last."""
SPEED = "images_per_second"


@dataclass
class Series:
    """One quantity over the run.

    Attributes:
        seconds: since the start of the run.
        values: at these times.
    """

    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, seconds: float, value: float) -> None:
        self.seconds.append(seconds)
        self.values.append(value)

    def judged(self, duration: float) -> tuple[float, float]:
        """Return the medians of the first and the last third of the judged time."""
        start = SETTLED * duration
        third = (duration - start) / 3
        early = [
            value
            for at, value in zip(self.seconds, self.values, strict=True)
            if start <= at < start + third
        ]
        late = [
            value
            for at, value in zip(self.seconds, self.values, strict=True)
            if at >= duration - third
        ]
        if not early or not late:
            raise ValueError(
                f"there are too few numbers in {duration:.0f} seconds: set minutes higher"
            )
        return statistics.median(early), statistics.median(late)


def read_memory(process: psutil.Process) -> tuple[int, int]:
    """Read how many bytes of its own a process holds, and how many after each page is divided by
    the processes that share it; batches that pass from worker to main process are not counted.
    Linux alone says so.
    """
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return 1024 * kibibytes["Anonymous"], 1024 * kibibytes["Pss_Anon"]


def watch(process: subprocess.Popen[str], seconds: float, interval: float) -> dict[str, Series]:
    """Sample the memory and the open files of a run and its workers until the time is over."""
    names = ("main_memory", "worker_memory", "run_memory", "main_files", "worker_files")
    series = {name: Series() for name in names}
    started = time.perf_counter()
    main = psutil.Process(process.pid)
    # Where it cannot be read, this fails at once.
    read_memory(main)
    while (now := time.perf_counter() - started) < seconds:
        if process.poll() is not None:
            raise RuntimeError(
                f"the run ended after {now:.0f} seconds with code {process.returncode}"
            )
        # The oldest children are the loader's workers; the online k-NN has others, which come and
        # go.
        workers = sorted(main.children(), key=lambda child: child.create_time())
        total = 0
        for number, member in enumerate([main, *workers]):
            try:
                memory, share = read_memory(member)
                files = member.num_fds()
            except (psutil.NoSuchProcess, OSError):
                continue
            total += share
            if number <= 1:
                kind = ("main", "worker")[number]
                series[f"{kind}_memory"].add(now, memory / MEBIBYTE)
                series[f"{kind}_files"].add(now, files)
        series["run_memory"].add(now, total / MEBIBYTE)
        time.sleep(interval)
    return series


def read_speed(metrics: Path, duration: float) -> Series:
    """Spread the logged speeds over the run."""
    values = [
        line[SPEED] for line in map(json.loads, metrics.read_text().splitlines()) if SPEED in line
    ]
    return Series(
        [duration * (number + 0.5) / len(values) for number in range(len(values))], values
    )


def judge(series: dict[str, Series], duration: float) -> list[dict[str, Any]]:
    """Compare the start and the end of the judged time; one record a quantity."""
    records = []
    for name, one in series.items():
        early, late = one.judged(duration)
        if name == SPEED:
            sound, rule = late >= (1 - SPEED_LOSS) * early, f"loses at most {SPEED_LOSS:.0%}"
        elif name.endswith("memory"):
            allowed = MEMORY_GROWTH * early
            sound, rule = late <= early + allowed, f"grows by at most {allowed:.1f} MiB"
        else:
            sound, rule = late <= early, "does not grow"
        records.append({"name": name, "early": early, "late": late, "rule": rule, "sound": sound})
    return records


def plot(series: dict[str, Series], output: Path) -> None:
    """Draw memory, open files and speed over the run."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = {"memory": "memory (MiB)", "files": "open files", SPEED: "images a second"}
    for axes, (ending, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for color, (name, one) in zip(
            ("#0072B2", "#D55E00", "#009E73"),
            ((name, one) for name, one in series.items() if name.endswith(ending)),
            strict=False,
        ):
            minutes = [seconds / 60 for seconds in one.seconds]
            axes.plot(minutes, one.values, color=color, linewidth=1, label=name.split("_")[0])
        axes.set(xlabel="minutes", ylabel=label, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        if ending != SPEED:
            axes.legend(frameon=False)
    figure.savefig(output, dpi=150)


def run(
    seconds: float, interval: float, folder: Path, fields: Sequence[str]
) -> tuple[dict[str, Series], int]:
    """Pretrain with the demo's recipe, interrupt it in the end, and return what was seen and the
    number of steps.
    """
    command = [
        sys.executable,
        str(ROOT / "examples" / "pretrain.py"),
        "demo",
    ]
    command += [
        "--run.output_dir",
        str(folder),
        "--schedule.num_epochs",
        "100000",
        "--run.checkpoint_steps",
        "200",
        *fields,
    ]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True)
        try:
            while not (folder / "metrics.jsonl").exists() and process.poll() is None:
                time.sleep(0.5)
            series = watch(process, seconds, interval)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=300)
        finally:
            process.kill()
    if not list((folder / "checkpoints").glob("step-*")):
        raise RuntimeError(
            f"the run left no checkpoint: {(folder / 'log.txt').read_text()[-2000:]}"
        )
    series[SPEED] = read_speed(folder / "metrics.jsonl", seconds)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return series, int(last["step"])


def soak(minutes: float = 30.0, interval: float = 2.0, fields: list[str] | None = None) -> None:
    """Run, judge and report; ends with code 1 if something grows or slows down.

    Args:
        minutes: length of the run.
        interval: seconds between two samples.
        fields: fields of the recipe to change, as on the command line, such as
            --data.streaming true.
    """
    with tempfile.TemporaryDirectory() as folder:
        series, steps = run(60 * minutes, interval, Path(folder), fields or [])
    records = judge(series, 60 * minutes)
    RESULTS.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": describe_machine(),
        "minutes": minutes,
        "fields": fields,
        "steps": steps,
        "records": records,
    }
    (RESULTS / "soak.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(series, RESULTS / "soak.png")
    for record in records:
        mark = "ok" if record["sound"] else "NOT OK"
        print(
            f"{record['name']:>18}: {record['early']:9.1f} -> {record['late']:9.1f}  "
            f"{record['rule']}: {mark}"
        )
    print(
        f"{steps} steps in {minutes} minutes: "
        f"{'flat and steady' if all(r['sound'] for r in records) else 'NOT flat'}"
    )
    sys.exit(not all(record["sound"] for record in records))


if __name__ == "__main__":
    auto_cli(soak)
