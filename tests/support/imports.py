"""What the files of this repository import, read without running them."""

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["imported_modules"]


def imported_modules(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports anywhere, relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
