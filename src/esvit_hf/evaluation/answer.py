"""The answer of an evaluation in one small table: numbers beside chance and a random network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from esvit_hf.common.markdown import format_columns, format_table
from esvit_hf.evaluation.task import Score, TaskResult

__all__ = ["answer_rows", "answer_table", "format_answer"]

# Of the normal distribution: 95 % lie within this many standard deviations.
_DEVIATIONS = 1.959964
_DIGITS = 2


def answer_rows(
    results: Mapping[str, TaskResult], random_results: Mapping[str, TaskResult]
) -> list[dict[str, Any]]:
    """Put the first numbers of each task together.

    Args:
        results: of each task, by its name.
        random_results: of the network with random weights; empty if it was not measured.

    Returns:
        One row a number, as JSON knows it; what there is not is None.
    """
    rows = []
    for name, result in results.items():
        others = random_results[name].answers if name in random_results else []
        other = {score.metric: score.value for score in others}
        for score in result.answers:
            rows.append(
                {
                    "task": result.title,
                    "metric": score.metric,
                    "value": score.value,
                    "interval": _interval(score),
                    "chance": score.chance,
                    "random_network": other.get(score.metric),
                }
            )
    return rows


def _interval(score: Score) -> list[float] | None:
    """Compute the 95 % confidence interval of a share of images.

    Args:
        score: in percent.

    Returns:
        Wilson's interval in percent; None if the number is not a share of images.
    """
    if score.images is None:
        return None
    share, count = score.value / 100, score.images
    square = _DEVIATIONS**2 / count
    middle = (share + square / 2) / (1 + square)
    width = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return [round(100 * bound, 3) for bound in (middle - width, middle + width)]


def format_answer(report: Mapping[str, Any]) -> str:
    """Write the answer of an evaluation for people.

    Args:
        report: content of report.json.

    Returns:
        Lines of text, in columns; no text if no task gave a score.
    """
    if not report["answer"]:
        return ""
    cells = _cells(report["answer"])
    return format_columns([list(cells[0]), *(list(row.values()) for row in cells)])


def answer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the answer of an evaluation as a Markdown table.

    Args:
        rows: from `answer_rows`.

    Returns:
        Its lines.
    """
    return format_table(_cells(rows))


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Texts by column; a column without any value is left out."""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    titles = {name: name.replace("_", " ") for name in columns}
    titles |= {"interval": "95 % interval"}
    return [{titles[name]: _text(row[name]) for name in columns} for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:.{_DIGITS}f}" if isinstance(value, float) else str(value)
