"""Tables of `studies.matching`, from the results of its runs."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.optimize import brentq
from scipy.stats import nct, t, ttest_rel

from studies.table import RESULTS, Result, by_variant, summarize

SCREENING, DECISION = "screening.json", "decision.json"
"""Names of the files with what was measured on a run, in its folder: to choose by, and to decide
by, on images that nothing was chosen by.
"""

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
OTHER_SETTINGS = ("small batches ViL", "small batches", "long", "CvT", "ViL")
"""First words of variants with another network, batch or length; each has a V of its own."""
DECISIVE = ("linear", "knn", "miou_retrieval")
"""Measures that decide, named before the first run; p is corrected for their number (Holm)."""
LEVEL, POWER = 0.05, 0.8
FEWEST_SEEDS = 3
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


def baseline(variant: str) -> str:
    """Return the name of the variant with the view loss alone that a variant is compared with."""
    settings = (each for each in OTHER_SETTINGS if variant.startswith(each))
    return f"{next(settings, '')} V".lstrip()


def compare(results: Sequence[Result], first: str, second: str) -> list[dict[str, Any]]:
    """Test the second minus the first variant seed by seed in the measures that decide; nothing if
    they have fewer than three seeds in common: two differences may be equal by chance.
    """
    before, after = (
        {result["seed"]: result for result in by_variant(results).get(name, [])}
        for name in (first, second)
    )
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) < FEWEST_SEEDS:
        return []
    tests = []
    for name in DECISIVE:
        differences = [after[seed][name] - before[seed][name] for seed in seeds]
        test = ttest_rel(
            [after[seed][name] for seed in seeds], [before[seed][name] for seed in seeds]
        )
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
        cells = [summarize(members, name) if name in members[0] else "" for name in COLUMNS]
        lines.append(f"| {variant} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_tests(tests: Sequence[dict[str, Any]]) -> str:
    """Return paired tests as a Markdown table."""
    lines = [
        "| difference of | measure | seeds | difference | 95 % interval | p | p (Holm) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for test in tests:
        lines.append(
            f"| {test['second']} minus {test['first']} | {COLUMNS[test['measure']]} | "
            f"{len(test['seeds'])} | {test['mean']:+.2f} | {test['low']:+.2f} to "
            f"{test['high']:+.2f} | {test['p']:.3f} | {test['p_holm']:.3f} |"
        )
    return "\n".join(lines)


def read_measurements(output: Path, name: str, kept: Sequence[Result]) -> list[Result]:
    """Read one kind of measurement of all runs that have it, sorted by variant and seed.

    Args:
        output: folder of the runs.
        name: of the file.
        kept: measurements of runs whose folders may be elsewhere; those in `output` replace them.
    """
    found = [json.loads(path.read_text()) for path in output.glob(f"*/{name}")]
    results = {(result["variant"], result["seed"]): result for result in [*kept, *found]}
    return [results[key] for key in sorted(results)]


def table(output: Path = Path("outputs/matching"), results_folder: Path = RESULTS) -> None:
    """Print the tables of all finished runs and of those that matching.json holds already, and
    write them as JSON; so a study may go on from the JSON alone.

    Args:
        output: folder of the runs.
        results_folder: where matching.json is and goes.

    Raises:
        ValueError: if there is no finished run.
    """
    path = results_folder / "matching.json"
    before = json.loads(path.read_text()) if path.exists() else {"screening": [], "decision": []}
    screening, decision = (
        read_measurements(output, name, before[name.removesuffix(".json")])
        for name in (SCREENING, DECISION)
    )
    if not screening and not decision:
        raise ValueError(
            f"{output} holds no finished run: start `python -m studies.matching run` with this "
            f"output"
        )
    tests = [
        test
        for variant in by_variant(decision)
        if variant != baseline(variant)
        for test in compare(decision, baseline(variant), variant)
    ]
    report = {
        "detectable_in_deviations": {
            seeds: detectable_difference(seeds, len(DECISIVE)) for seeds in (3, 4, 5, 8)
        },
        "earlier_deviations": EARLIER_DEVIATIONS,
        "screening": screening,
        "decision": decision,
        "paired_tests": tests,
    }
    results_folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    for results in (screening, decision):
        if results:
            print(format_results(results), end="\n\n")
    if tests:
        print(format_tests(tests))
