"""The pages of the documentation, as tests read them."""

import re

from tests.support.paths import ROOT

__all__ = ["python_block"]


def python_block(page: str, heading: str) -> str:
    """The first Python block of a section.

    Args:
        page: name of the file below docs.
        heading: of the section, of the second level.

    Returns:
        The code.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"{page} has no section {heading!r}"
    block = re.search(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert block, f"section {heading!r} of {page} has no Python"
    return block[1]
