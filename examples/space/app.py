"""A Space that shows a model: set its variable ESVIT_MODEL, ESVIT_COMPARE for a second model, and
ESVIT_DATASET for nearest images.
"""

import os

from esvit_hf.commands.command_line import run
from esvit_hf.commands.page import show_page


def main() -> None:
    """Open the page of the model that the Space's variables name."""
    model = os.environ.get("ESVIT_MODEL")
    if not model:
        raise ValueError(
            "the variable ESVIT_MODEL is not set: give it the Hub name of a model in the Space's "
            "settings"
        )
    show_page(
        model,
        compare=os.environ.get("ESVIT_COMPARE") or None,
        dataset=os.environ.get("ESVIT_DATASET") or None,
        split=os.environ.get("ESVIT_SPLIT", "train"),
        host="0.0.0.0",
    )


if __name__ == "__main__":
    run(main)
