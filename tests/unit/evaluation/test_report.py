"""The files of an evaluation."""

import os
import subprocess
import sys
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
    assert "\u732b" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_files_are_utf8_whatever_the_locale_has(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from esvit_hf.evaluation.report import Report

names = ("model", "train_images", "train_split", "test_images", "test_split")
facts = dict.fromkeys(names, "\\u732b")
report = Report(facts, "\\u732b", "test", "esvit evaluate", [], {{}}, {{}}, {{}})
report.write(Path({str(tmp_path)!r}))
"""
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", program], env=os.environ | ascii_alone, check=True)
    assert "\u732b" in (tmp_path / "report.md").read_text(encoding="utf-8")
