"""An evaluation as files: numbers for programs, a page for people, figures, and the block for a
model card.
"""

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esvit_hf.common.files import check_writable
from esvit_hf.common.markdown import format_table
from esvit_hf.evaluation.answer import answer_rows, answer_table
from esvit_hf.evaluation.task import TaskResult
from esvit_hf.figures.look import Picture
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements

__all__ = ["MODEL_CARD_BLOCK", "Report", "check_folder"]

MODEL_CARD_BLOCK = "model_card_block.md"
"""Name of the file with the section for a model card."""


# What to see in each figure, by the name of its file.
_CAPTIONS = {
    "confusion_matrix": "Which classes are taken for which, by the most accurate classifier.",
    "neighbors": "Test images, and beside each the training images that are most similar to it.",
    "worst_errors": (
        "The surest errors: test images, and beside each the most similar training image, which "
        "is of another class. Often it is the label that is wrong."
    ),
    "feature_map": (
        "Test images as points: the first two principal components of the view features. Classes "
        "that lie apart are easy to tell apart; the reverse does not hold."
    ),
}
_READING = (
    "Shares are in percent. An interval holds the share of all images of this kind in 95 of 100 "
    "cases. Chance is what guessing gives."
)


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and on what.

    Attributes:
        facts: model, revision, data, precision and software, as JSON knows them.
        dataset: name of the data set, without folders of a machine.
        test_split: images that the numbers are for.
        command: command line that gives the numbers.
        notes: what a reader must know to judge the numbers.
        results: of each task, by its name.
        random_results: the same of a network with random weights; empty if it was not measured.
        figures: what plots figures that belong to no single task, by the name of their file.
    """

    facts: dict[str, Any]
    dataset: str
    test_split: str
    command: str
    notes: list[str]
    results: Mapping[str, TaskResult]
    random_results: Mapping[str, TaskResult]
    figures: Mapping[str, Callable[[], Picture]]

    def as_json(self) -> dict[str, Any]:
        """Everything but the figures."""
        return {
            **self.facts,
            "command": self.command,
            "notes": self.notes,
            "answer": answer_rows(self.results, self.random_results),
            "tasks": {name: result.numbers for name, result in self.results.items()},
        }

    def measurements(self) -> list[Measurement]:
        """The numbers that stand for the model."""
        random = {
            (name, score.metric): score.value
            for name, result in self.random_results.items()
            for score in result.scores
        }
        return [
            Measurement(
                result.title,
                self.dataset,
                self.test_split,
                score.metric,
                score.value,
                score.protocol,
                self.command,
                random.get((name, score.metric)),
            )
            for name, result in self.results.items()
            for score in result.scores
        ]

    def write(self, folder: Path) -> None:
        """Write all files: `report.json`, `report.md`, `measurements.json`, `model_card_block.md`
        and figures as PNG.

        Args:
            folder: made if it is missing; files of these names are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.as_json(), indent=2) + "\n")
        (folder / "report.md").write_text(self._page(), encoding="utf-8")
        (folder / MODEL_CARD_BLOCK).write_text(self._card_block(), encoding="utf-8")
        write_measurements(self.measurements(), folder / MEASUREMENTS_FILE)
        with _one_font_warning():
            for figures in (self.figures, *(result.figures for result in self.results.values())):
                for name, plot in figures.items():
                    plot().save(folder / f"{name}.png")

    def _page(self) -> str:
        lines = [f"# {self.facts['model']} on {self.dataset}"]
        if answer := answer_rows(self.results, self.random_results):
            lines += ["", _READING, "", answer_table(answer)]
        lines += ["", *(f"> {note}" for note in self.notes)] if self.notes else []
        for name in self.figures:
            lines += ["", _CAPTIONS[name], "", f"![{name.replace('_', ' ')}]({name}.png)"]
        for result in self.results.values():
            lines += _section(result)
        facts = [{"": key, " ": value} for key, value in self._facts()]
        lines += ["", "## How it was measured", "", format_table(facts), "", *_code(self.command)]
        return "\n".join(lines) + "\n"

    def _facts(self) -> list[tuple[str, Any]]:
        return [
            (
                key.replace("_", " "),
                ", ".join(f"{name} {version}" for name, version in value.items()),
            )
            if isinstance(value, dict)
            else (key.replace("_", " "), value)
            for key, value in self.facts.items()
        ]

    def _card_block(self) -> str:
        rows = [
            {
                "task": record.task,
                "metric": record.metric,
                "value": record.value,
                "protocol": record.protocol,
            }
            for record in self.measurements()
        ]
        facts = self.facts
        classes = f", {facts['classes']} classes" if "classes" in facts else ""
        data = (
            f"Measured on `{self.dataset}`: {facts['train_images']} training images (split "
            f"`{facts['train_split']}`), {facts['test_images']} test images (split "
            f"`{facts['test_split']}`){classes}. Shares are in percent."
        )
        lines = ["## Evaluation", "", data]
        for note in self.notes:
            lines += ["", note]
        if rows:
            lines += ["", format_table(rows)]
        return "\n".join([*lines, "", *_code(self.command)]) + "\n"


@contextmanager
def _one_font_warning() -> Iterator[None]:
    """Say once for all figures what matplotlib says of each letter of each figure."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "Glyph .* missing from font")
        yield
    lacking = [each for each in caught if "missing from font" in str(each.message)]
    for each in caught:
        if each not in lacking:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lacking:
        warnings.warn(
            "the font of the figures lacks letters of some names, and shows empty boxes for them: "
            "name the classes in Latin, Greek or Cyrillic letters to read them in the figures",
            stacklevel=2,
        )


def _section(result: TaskResult) -> list[str]:
    """Lines of the page about one task."""
    title = result.title.capitalize() if result.title.islower() else result.title
    lines = ["", f"## {title}", "", result.protocol]
    tables = {key: value for key, value in result.numbers.items() if _is_table(value)}
    plain = [{"": key, " ": value} for key, value in result.numbers.items() if key not in tables]
    if plain:
        lines += ["", format_table(plain)]
    for key, rows in tables.items():
        title = key.replace("_", " ").capitalize()
        if key == "validation":
            lines += ["", "<details markdown>", f"<summary>{title}</summary>"]
        elif len(result.numbers) > 1:
            lines += ["", f"{title}:"]
        lines += ["", format_table(rows)]
        lines += ["", "</details>"] if key == "validation" else []
    for name in result.figures:
        lines += ["", f"![{result.title}]({name}.png)"]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def check_folder(folder: Path) -> None:
    """Check that a report can be written, before anything is computed.

    Args:
        folder: need not exist.

    Raises:
        ValueError: it cannot be made or written to, or matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the report's figures need matplotlib: pip install 'esvit-hf[plots]'")
    try:
        check_writable(folder)
    except OSError as error:
        raise ValueError(
            f"the report cannot be written to {folder} ({error}): name another folder"
        ) from error


def _code(command: str) -> list[str]:
    return ["```bash", command, "```"]
