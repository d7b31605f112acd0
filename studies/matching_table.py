"""Tables of `studies.matching`, from the results of its runs."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.optimize import brentq
from scipy.stats import nct, t, ttest_rel

from studies.table import RESULTS, Result, by_variant, read_results, summarize

COLUMNS = {
    "knn": "k-NN (%)",
    "linear": "linear (%)",
    "miou_retrieval": "mIoU by retrieval (%)",
    "miou_linear": "mIoU, linear (%)",
    "mirror": "mirror (%)",
    "crops": "crops (%)",
    "region_image_share": "image share",
    "region_place_share": "place share",
    "processor_seconds": "processor s",
}
DECISIVE = ("linear", "knn", "miou_retrieval")
"""Measures that decide, named before the first run; p is corrected for their number (Holm)."""
LEVEL, POWER = 0.05, 0.8
# Standard deviations of V+R minus V over three seeds of "Swin 32" and "CvT" in reproduction.json.
EARLIER_DEVIATIONS = {"knn": (0.54, 2.55), "linear": (1.21, 2.80)}


def detectable_difference(seeds: int, tests: int) -> float:
    """Return the true difference that a paired t-test shows in 80 % of all studies, in standard
    deviations of the difference, at a level of 5 % for all tests together (Bonferroni).

    Args:
        seeds: number of pairs.
        tests: number of tests.
    """
    freedom = seeds - 1
    critical = t.ppf(1 - LEVEL / tests / 2, freedom)
    # Beyond some nine of its standard errors a difference is never missed, and SciPy gives NaN.
    return float(
        brentq(
            lambda shift: nct.sf(critical, freedom, shift) - POWER, 0.1, max(9.0, 1.5 * critical)
        )
        / seeds**0.5
    )


def holm(values: Sequence[float]) -> list[float]:
    """Correct p for their number (Holm's step-down method)."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def compare(results: Sequence[Result], first: str, second: str) -> list[dict[str, Any]]:
    """Test the second minus the first variant seed by seed in the measures that decide; nothing if
    they have fewer than two seeds in common.
    """
    before, after = (
        {result["seed"]: result for result in by_variant(results).get(name, [])}
        for name in (first, second)
    )
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) < 2:
        return []
    tests = []
    for name in DECISIVE:
        differences = [after[seed][name] - before[seed][name] for seed in seeds]
        test = ttest_rel([after[seed][name] for seed in seeds], [before[seed][name] for seed in seeds])
        interval = test.confidence_interval()
        tests.append(
            {
                "first": first,
                "second": second,
                "measure": name,
                "seeds": seeds,
                "differences": [round(difference, 3) for difference in differences],
                "mean": statistics.mean(differences),
                "deviation": statistics.stdev(differences),
                "low": float(interval.low),
                "high": float(interval.high),
                "p": float(test.pvalue),
            }
        )
    corrected = holm([test["p"] for test in tests])
    return [{**test, "p_holm": p} for test, p in zip(tests, corrected, strict=True)]


def format_results(results: Sequence[Result]) -> str:
    """Return mean and standard deviation over the seeds as a Markdown table, one line a variant."""
    lines = [
        "| variant | seeds | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---:" + "|---:" * len(COLUMNS) + "|",
    ]
    for variant, members in by_variant(results).items():
        cells = [
            summarize(members, name) if name in members[0] else "" for name in COLUMNS
        ]
        lines.append(f"| {variant} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
