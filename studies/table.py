"""Tables and a figure of the comparison in `studies.reproduction`, from the results of its
runs.
"""

import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import ROOT
from scipy.stats import ttest_rel

from esvit_hf.figures.look import COLORS, Picture, new_picture
from esvit_hf.figures.training_curves import read_metrics

RESULT = "result.json"
"""Name of the file with what was measured on a run, in its folder."""
RESULTS = ROOT / "studies" / "results"
QUALITIES = {
    "knn": "k-NN (%)",
    "linear": "linear (%)",
    "transfer": "transfer (%)",
    "mirror": "mirror (%)",
    "crops": "crops (%)",
}
COSTS = {
    "processor_minutes": "processor minutes",
    "images_per_processor_second": "images / processor s",
    "peak_mebibytes": "memory (MiB)",
}
PAIRS = (
    ("V", "V+R"),
    ("V", "V then V+R"),
    ("Swin V", "Swin V+R"),
    ("Swin 32 V", "Swin 32 V+R"),
    ("ViL 32 V", "ViL 32 V+R"),
    ("ViT V", "V"),
    ("ViT V", "V+R"),
    ("ViT V", "Swin V"),
)
"""Variants that are compared seed by seed: the second minus the first."""

Result = dict[str, Any]


def read_results(output: Path) -> list[Result]:
    """Read the results of all finished runs, sorted by variant and seed.

    Raises:
        ValueError: if there are none.
    """
    results = [
        {**json.loads(path.read_text()), "folder": path.parent}
        for path in sorted(output.glob(f"*/{RESULT}"))
    ]
    if not results:
        raise ValueError(
            f"{output} holds no finished run: start `python -m studies.reproduction run` with "
            f"this output"
        )
    return sorted(results, key=lambda result: (result["variant"], result["seed"]))


def by_variant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results by the name of their variant."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["variant"], []).append(result)
    return groups


def summarize(results: Sequence[Result], name: str) -> str:
    """Return mean and standard deviation of a number over the seeds as a cell of a table."""
    values = [result[name] for result in results if result[name]]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def comparable_costs(results: Sequence[Result]) -> list[Result]:
    """Return the runs on the kind of processor that most runs were on; the times of others cannot
    be compared.
    """
    usual = statistics.mode(result["machine"]["processor"] for result in results)
    return [result for result in results if result["machine"]["processor"] == usual]


def format_table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table, one line a variant; costs are those of
    `comparable_costs`.
    """
    columns, costs = QUALITIES | COSTS, by_variant(comparable_costs(results))
    lines = [
        "| variant | seeds | " + " | ".join(columns.values()) + " |",
        "|---|---:" + "|---:" * len(columns) + "|",
    ]
    for variant, members in by_variant(results).items():
        cells = [summarize(members, name) for name in QUALITIES]
        cells += [summarize(costs.get(variant, []), name) for name in COSTS]
        lines.append(f"| {variant} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired_tests(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Compare the variants of `PAIRS` that have two seeds or more in common seed by seed with
    paired t-tests.
    """
    groups = {
        name: {member["seed"]: member for member in members}
        for name, members in by_variant(results).items()
    }
    tests = []
    for first, second in PAIRS:
        before, after = groups.get(first, {}), groups.get(second, {})
        seeds = sorted(before.keys() & after.keys())
        if len(seeds) < 2:
            continue
        for name in QUALITIES:
            test = ttest_rel(
                [after[seed][name] for seed in seeds], [before[seed][name] for seed in seeds]
            )
            interval = test.confidence_interval()
            tests.append(
                {
                    "first": first,
                    "second": second,
                    "measure": name,
                    "seeds": len(seeds),
                    "difference": statistics.mean(
                        after[seed][name] - before[seed][name] for seed in seeds
                    ),
                    "low": float(interval.low),
                    "high": float(interval.high),
                    "t": float(test.statistic),
                    "p": float(test.pvalue),
                }
            )
    return tests


def format_tests(tests: Sequence[dict[str, Any]]) -> str:
    """Return the paired tests as a Markdown table."""
    lines = [
        "| difference of | measure | seeds | difference | 95 % interval | t | p |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for test in tests:
        lines.append(
            f"| {test['second']} minus {test['first']} | {QUALITIES[test['measure']]} | "
            f"{test['seeds']} | {test['difference']:+.2f} | {test['low']:+.2f} to "
            f"{test['high']:+.2f} | {test['t']:.2f} | {test['p']:.3f} |"
        )
    return "\n".join(lines)


def knn_curve(result: Result) -> tuple[list[float], list[float]]:
    """Return processor minutes and top-1 in percent of a run's online k-NN."""
    lines = read_metrics(result["folder"] / "metrics.jsonl")
    name = next((name for line in lines for name in line if name.startswith("knn")), None)
    points = [(line["step"], line[name]) for line in lines if name in line]
    minutes = [step / lines[-1]["step"] * result["processor_minutes"] for step, _ in points]
    return minutes, [100 * share for _, share in points]


def plot_compute(results: Sequence[Result]) -> Picture:
    """Draw accuracy against processor time: mean and standard deviation of each variant, and the
    bounds across.

    Runs that a GPU trained are left out, and those that `comparable_costs` leaves out.
    """
    costs = by_variant(comparable_costs(results))
    with new_picture(7.5, 4.5) as picture:
        axes = picture.figure.subplots()
        styles, bounds = product(("-", "-."), COLORS), iter(("--", ":"))
        for variant, members in by_variant(results).items():
            if not (members[0]["folder"] / "metrics.jsonl").exists():
                height = statistics.mean(result["knn"] for result in members)
                axes.axhline(height, color="gray", linestyle=next(bounds), label=variant)
                continue
            members = costs.get(variant, [])
            if not members or any(result["processor_minutes"] is None for result in members):
                continue
            minutes, shares = np.array([knn_curve(result) for result in members]).swapaxes(0, 1)
            spread = shares.std(axis=0, ddof=1) if len(members) > 1 else None
            middle = (minutes.mean(axis=0), shares.mean(axis=0))
            style, color = next(styles)
            axes.errorbar(
                *middle,
                spread,
                color=color,
                linestyle=style,
                linewidth=1.5,
                capsize=2,
                label=variant,
            )
        axes.set(xlabel="processor minutes", ylabel=f"{QUALITIES['knn']}, teacher", xlim=(0, None))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return picture


def table(output: Path = Path("outputs/reproduction"), results_folder: Path = RESULTS) -> None:
    """Print the tables of all finished runs, and write them as JSON with a figure.

    Args:
        output: folder of the runs.
        results_folder: where reproduction.json and the figure go.
    """
    results = read_results(output)
    tests = paired_tests(results)
    results_folder.mkdir(parents=True, exist_ok=True)
    records = [
        {name: value for name, value in result.items() if name != "folder"} for result in results
    ]
    report = {"results": records, "paired_tests": tests}
    (results_folder / "reproduction.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_compute(results).save(results_folder / "reproduction_compute.png")
    print(format_table(results))
    if tests:
        print(f"\n{format_tests(tests)}")
