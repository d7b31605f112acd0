"""The files of an evaluation."""

import warnings
from functools import partial
from pathlib import Path

import pytest

from esvit_hf.evaluation.report import Report
from esvit_hf.figures.look import Picture
from esvit_hf.figures.report import plot_confusion


def test_letters_that_the_font_lacks_are_said_once(tmp_path: Path) -> None:
    draw = partial(plot_confusion, [0, 1], [0, 1], ["\u732b", "\u72ac"], "k-NN")

    def warn_and_draw() -> Picture:
        warnings.warn("another fault", stacklevel=2)
        return draw()

    facts = dict.fromkeys(
        ("model", "train_images", "train_split", "test_images", "test_split"), "\u732b"
    )
    figures = {"neighbors": draw, "worst_errors": warn_and_draw}
    report = Report(facts, "photos", "test", "esvit evaluate", [], {}, {}, figures)
    with pytest.warns() as caught:
        report.write(tmp_path)
    assert [str(each.message).split(",")[0] for each in caught] == [
        "another fault",
        "the font of the figures lacks letters of some names",
    ]
    assert "\u732b" in (tmp_path / "report.md").read_text()
