"""Tables in Markdown, and in columns for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["format_columns", "format_table"]


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: cells by column; every row has the columns of the first. Numbers get six digits.

    Returns:
        The lines of the table.
    """
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(_cell(row[name]) for name in names)} |" for row in rows]
    return "\n".join(lines)


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Write rows in columns, for people at a terminal.

    Args:
        rows: cells of each row, as many in every one; the first row has the titles.

    Returns:
        Lines of text.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")
