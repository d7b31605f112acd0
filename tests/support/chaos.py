"""Kills a real run again and again, in training and while it saves, and compares what it becomes:
`make chaos`.

The run is started again with `--run.resume true` after every kill. In the end its weights, centers,
optimizer, random states and metrics have to equal those of a run that nobody disturbed, bit for
bit.
"""

import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from safetensors.torch import load_file
from tests.support.paths import FASHION_MNIST, ROOT
from tests.support.process_group import start_program
from tests.support.small_runs import TIMES, VIEWS
from tqdm import tqdm

RESULTS = ROOT / "benchmarks" / "results"
NETWORK = {
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
RECIPE = {
    "data.dataset": FASHION_MNIST,
    # 1000 images are 62 steps of 16, so that an epoch ends inside the run.
    "data.train_split": "train[:1000]",
    "data.views": VIEWS,
    "model.config": json.dumps(NETWORK | {"drop_path_rate": 0.3}),
    "heads.num_prototypes": 512,
    "heads.hidden_dim": 64,
    "heads.bottleneck_dim": 32,
    "run.batch_size": 16,
    "schedule.num_epochs": 4,
    "data.num_workers": 1,
    "run.mixed_precision": "no",
    "run.knn_every_epochs": 0,
    "run.trackers": "[]",
    "run.checkpoint_steps": 3,
    "run.logging_steps": 2,
}


def command(output_dir: Path, steps: int, *, resume: bool) -> list[str]:
    """Return the command line of the run."""
    fields = RECIPE | {
        "run.output_dir": output_dir,
        "schedule.max_steps": steps,
        "run.resume": str(resume).lower(),
    }
    words = [str(ROOT / "examples" / "pretrain.py"), "demo"]
    return words + [word for name, value in fields.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Kill:
    """When to kill a run.

    Attributes:
        step: not before this step has been logged since the start.
        delay: seconds after that.
        while_saving: wait on until a checkpoint is being written.
    """

    step: float
    delay: float
    while_saving: bool


def run_until(output_dir: Path, steps: int, log: Path, kill: Kill | None = None) -> dict[str, Any]:
    """Start or continue the run; kill it, or let it end.

    Args:
        output_dir: folder of the run.
        steps: optimizer steps of the whole run.
        log: file for what it prints.
        kill: when to kill it; None lets it end.

    Returns:
        Where the kill met the run, or that it ended.

    Raises:
        RuntimeError: if the run ends by itself with an error.
    """
    resume = (output_dir / "recipe.yaml").exists()
    started = time.time_ns()
    process = start_program(command(output_dir, steps, resume=resume), log)
    if kill is not None:
        while process.is_alive() and not has_logged(output_dir, kill.step, started):
            time.sleep(0.01)
        time.sleep(kill.delay)
        while process.is_alive() and kill.while_saving and not is_saving(output_dir, started):
            time.sleep(0.0005)
        process.kill()
    process.join()
    code = process.exitcode
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run ended with {code}:\n{log.read_text()[-2000:]}")
    lines = read_metrics(output_dir)
    return {
        "ended": code == 0,
        "step": lines[-1]["step"] if lines else 0,
        "while_saving": is_saving(output_dir, started),
    }


def has_logged(output_dir: Path, step: float, since: int) -> bool:
    """Tell whether a run has written a line of this step or a later one since a time in
    nanoseconds.
    """
    metrics = output_dir / "metrics.jsonl"
    if not metrics.exists() or metrics.stat().st_mtime_ns < since:
        return False
    lines = read_metrics(output_dir)
    return bool(lines) and lines[-1]["step"] >= step


def is_saving(output_dir: Path, since: int) -> bool:
    """Tell whether half a checkpoint lies there that is newer than a time in nanoseconds."""
    try:
        return any(
            path.stat().st_mtime_ns > since
            for path in (output_dir / "checkpoints").glob("*.partial/*")
        )
    except FileNotFoundError:
        return False


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """Return the complete lines of `metrics.jsonl`, without the times."""
    path = output_dir / "metrics.jsonl"
    lines = (
        [line for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES}
        for line in lines
    ]


def final_state(output_dir: Path) -> dict[str, Any]:
    """Return everything that a run ends with, by name: exported files, the last checkpoint, the
    metrics.
    """
    last = sorted((output_dir / "checkpoints").glob("step-*"))[-1]
    state: dict[str, Any] = {
        "metrics.jsonl": read_metrics(output_dir),
        "last checkpoint": last.name,
    }
    for path in (*output_dir.glob("*.safetensors"), *last.glob("*.safetensors")):
        state |= {
            f"{path.parent.name}/{path.name}:{name}": value
            for name, value in load_file(path).items()
        }
    state["state.json"] = json.loads((last / "state.json").read_text())
    return {key.replace(output_dir.name, "run"): value for key, value in state.items()}


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Name the places where two nested states are not equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [place]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [place]
        return [
            found
            for key in first
            for found in differences(first[key], second[key], f"{place}/{key}")
        ]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [place]
        pairs = zip(first, second, strict=True)
        return [
            found
            for number, pair in enumerate(pairs)
            for found in differences(*pair, f"{place}/{number}")
        ]
    return (
        []
        if bool((first == second) if not hasattr(first, "all") else (first == second).all())
        else [place]
    )


def plot_kills(kills: list[dict[str, Any]], steps: int, output: Path) -> None:
    """Draw how far the run had come at each kill."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for label, mark, half in (("in training", "o", False), ("while saving", "s", True)):
        chosen = [
            (number, kill["step"])
            for number, kill in enumerate(kills, 1)
            if kill["while_saving"] is half
        ]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), mark, label=f"killed {label}")
    axes.set(xlabel="kill", ylabel="step of the last line logged", ylim=(0, steps + 2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(output, dpi=150)


def survive(kills: int, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill one run, leave another alone, and compare them.

    Args:
        kills: how often; every second one waits until a checkpoint is being written.
        steps: optimizer steps of the run.
        seed: of the instants.
        folder: for both runs and what they print.

    Returns:
        The kills, and the places where the two runs differ.
    """
    generator = random.Random(seed)
    met = []
    for number in tqdm(range(kills), unit="kill"):
        kill = Kill(
            step=(number + generator.random()) * steps / (kills + 1),
            delay=generator.uniform(0.0, 0.3),
            while_saving=number % 2 == 1,
        )
        met.append(run_until(folder / "killed", steps, folder / "killed.log", kill))
        if met[-1]["ended"]:
            raise RuntimeError(f"the run ended before kill {number + 1} of {kills}: raise steps")
    run_until(folder / "killed", steps, folder / "killed.log")
    run_until(folder / "whole", steps, folder / "whole.log")
    whole, killed = final_state(folder / "whole"), final_state(folder / "killed")
    return {"kills": met, "compared": len(whole), "differences": differences(whole, killed)}


def chaos(kills: int = 20, steps: int = 240, seed: int = 0) -> None:
    """Kill a run at random instants and report whether it came out the same.

    Args:
        kills: how often.
        steps: optimizer steps of the run.
        seed: of the instants.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = survive(kills, steps, seed, Path(folder))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "chaos.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_kills(report["kills"], steps, RESULTS / "chaos.png")
    half = sum(kill["while_saving"] for kill in report["kills"])
    print(
        f"{kills} kills, {half} of them while a checkpoint was being written; {report['compared']} "
        f"files and tensors compared with the undisturbed run, {len(report['differences'])} differ "
        f"{report['differences'][:5]}"
    )
    if report["differences"]:
        sys.exit(1)


if __name__ == "__main__":
    auto_cli(chaos)
