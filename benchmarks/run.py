"""All benchmarks: prints the tables, writes `benchmarks/results/PROCESSOR.json` and the figures
beside it.
"""

import json
import os
import platform
import re
import subprocess
import time
import warnings
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import (
    data,
    features,
    growth,
    knn,
    limits,
    losses,
    networks,
    optimizer,
    save,
    step,
)
from benchmarks.measure import ROOT, Row

RESULTS = ROOT / "benchmarks" / "results"
PROCESSORS = RESULTS / "processors"
"""The last run of all topics on each kind of processor."""
TOPICS = ("losses", "step", "networks", "data", "features", "knn", "optimizer", "save")


def describe_machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "processor": (
            f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"
            if "cpu family" in facts
            else platform.processor()
        ),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "revision": revision.stdout.strip(),
        "date": date.today().isoformat(),
    }


def format_table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| row | ours | against | ratio | reach | |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        mark = "reached" if row.ratio <= row.reach else "missed"
        lines.append(
            f"| {row.name} ({row.unit}) | {row.ours:.4g} | {row.against:.4g} ({row.peer}) | "
            f"{row.ratio:.2f} | {row.reach:.2f} | {mark} |"
        )
    return "\n".join(lines)


def format_processors(reports: list[dict[str, Any]]) -> str:
    """Return the ratios on several processors as a Markdown table, each with its own aims."""
    lines = [
        "| row |" + "".join(f" {each['machine']['processor']} | aim |" for each in reports),
        "|---|" + "---:|---:|" * len(reports),
    ]
    found = [{row["name"]: row for row in each["rows"]} for each in reports]
    for name in dict.fromkeys(name for rows in found for name in rows):
        cells = [
            f"{rows[name]['ratio']:.2f} | {rows[name]['reach']:.2f}" if name in rows else " | "
            for rows in found
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_ratios(rows: list[Row], output: Path) -> None:
    """Draw the ratio of every row and what it should reach."""
    figure = Figure(figsize=(9, 0.45 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, [row.ratio for row in rows], color="#0072B2", height=0.6, label="ours / peer")
    axes.plot(
        [row.reach for row in rows],
        places,
        "|",
        color="#D55E00",
        markersize=14,
        markeredgewidth=2,
        label="reach",
    )
    axes.axvline(1.0, color="0.5", linestyle=":")
    axes.set_yticks(places, [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="ratio, less is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(output, dpi=150)


def plot_growth(records: list[dict[str, Any]], output: Path) -> None:
    """Draw time and memory over each quantity, with the fitted lines."""
    figure = Figure(figsize=(3.2 * len(records), 5), layout="constrained")
    grid = figure.subplots(2, len(records), squeeze=False)
    for column, record in enumerate(records):
        values = [point["value"] for point in record["points"]]
        term = growth.AXES[record["axis"]].term
        for axes, quantity, label in zip(
            grid[:, column], ("seconds", "mebibytes"), ("s a step", "MiB"), strict=True
        ):
            fit = record["fits"][quantity]
            axes.plot(values, [point[quantity] for point in record["points"]], "o", color="#0072B2")
            fitted = [fit["constant"] + fit["slope"] * term(value) for value in values]
            axes.plot(values, fitted, color="#D55E00", linewidth=1)
            axes.set(ylim=(0, None), xlabel=record["label"])
            axes.set_title(
                f"{fit['constant']:.3g} + {fit['slope']:.3g} for {record['term']}", fontsize=8
            )
            if column == 0:
                axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=150)


def write_report(report: dict[str, Any], rows: list[Row]) -> None:
    """Keep the results of this kind of processor, with their figures."""
    PROCESSORS.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"\W+", "_", report["machine"]["processor"]).lower()
    (PROCESSORS / f"{slug}.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_ratios(rows, RESULTS / "ratios.png")
    if "growth" in report:
        plot_growth(report["growth"], RESULTS / "growth.png")


def bench(
    topics: list[str] | None = None, photographs: Path | None = None, with_growth: bool = True
) -> None:
    """Measure and report; results and figures are written if all topics are measured.

    Args:
        topics: some of losses, step, networks, data, features, knn, optimizer, save; all by
            default.
        photographs: folder of JPEG files for the data path; by default two photographs that come
            with scikit-learn.
        with_growth: also measure how a step grows with batch, prototypes, crops and image side.
    """
    unknown = set(topics or ()) - set(TOPICS)
    if unknown:
        raise ValueError(
            f"there is no topic {', '.join(sorted(unknown))}: choose from {', '.join(TOPICS)}"
        )
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    measures: dict[str, Callable[[], list[Row]]] = {
        "losses": losses.measure,
        "step": step.measure,
        "networks": networks.measure,
        "data": partial(data.measure, photographs or data.SAMPLE_PHOTOGRAPHS),
        "features": lambda: features.measure(images=512, network="small", long_side=2560, rounds=2)[
            0
        ],
        "knn": knn.measure,
        "optimizer": optimizer.measure,
        "save": save.measure,
    }
    start = time.perf_counter()
    rows: list[Row] = []
    for topic in tqdm(topics or TOPICS, unit="topic"):
        rows += measures[topic]()
    report: dict[str, Any] = {"machine": describe_machine(), "limits": limits.measure(rows)}
    rows = limits.own_aims(rows, report["limits"])
    report["rows"] = [row.to_dict() for row in rows]
    if with_growth:
        report["growth"] = growth.measure()
    if not topics:
        write_report(report, rows)
    reports = [json.loads(path.read_text()) for path in sorted(PROCESSORS.iterdir())]
    print(
        format_table(rows),
        limits.format_limits(report["limits"]),
        format_processors(reports),
        sep="\n\n",
    )
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes; {json.dumps(report['machine'])}")


if __name__ == "__main__":
    auto_cli(bench)
