"""An evaluation as files: numbers for programs, a page for people, figures, and the block for a
model card.
"""

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esvit_hf.evaluation.tasks import TaskResult
from esvit_hf.figures.look import Picture
from esvit_hf.hub.measurements import MEASUREMENTS_FILE, Measurement, write_measurements

__all__ = ["MODEL_CARD_BLOCK", "Report", "command_of", "public_name"]

MODEL_CARD_BLOCK = "model_card_block.md"
"""Name of the file with the section for a model card."""


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
        pictures: figures that belong to no single task, by name.
    """

    facts: dict[str, Any]
    dataset: str
    test_split: str
    command: str
    notes: list[str]
    results: Mapping[str, TaskResult]
    pictures: Mapping[str, Picture]

    def as_json(self) -> dict[str, Any]:
        """Everything but the figures."""
        return {
            **self.facts,
            "command": self.command,
            "notes": self.notes,
            "tasks": {name: result.numbers for name, result in self.results.items()},
        }

    def measurements(self) -> list[Measurement]:
        """The numbers that stand for the model."""
        return [
            Measurement(
                result.title,
                self.dataset,
                self.test_split,
                score.metric,
                score.value,
                score.protocol,
                self.command,
            )
            for result in self.results.values()
            for score in result.scores
        ]

    def write(self, folder: Path) -> None:
        """Write all files: `report.json`, `report.md`, `measurements.json`, `model_card_block.md`
        and figures as PNG.

        Args:
            folder: an existing folder; files of these names are replaced.
        """
        (folder / "report.json").write_text(json.dumps(self.as_json(), indent=2) + "\n")
        (folder / "report.md").write_text(self._page())
        (folder / MODEL_CARD_BLOCK).write_text(self._card_block())
        write_measurements(self.measurements(), folder / MEASUREMENTS_FILE)
        for pictures in (self.pictures, *(result.pictures for result in self.results.values())):
            for name, picture in pictures.items():
                picture.save(folder / f"{name}.png")

    def _page(self) -> str:
        facts = [{"": key, " ": value} for key, value in self._facts()]
        lines = [f"# {self.facts['model']} on {self.dataset}", "", *_table(facts)]
        if self.notes:
            lines += ["", *(f"> {note}" for note in self.notes)]
        for result in self.results.values():
            title = result.title.capitalize() if result.title.islower() else result.title
            lines += ["", f"## {title}", "", result.protocol]
            plain = {
                key: value for key, value in result.numbers.items() if not isinstance(value, list)
            }
            if plain:
                lines += ["", *_table([{"": key, " ": value} for key, value in plain.items()])]
            for key, rows in result.numbers.items():
                if isinstance(rows, list):
                    lines += [
                        "",
                        *(
                            []
                            if len(result.numbers) == 1
                            else [f"{key.replace('_', ' ').capitalize()}:", ""]
                        ),
                    ]
                    lines += _table(rows)
            lines += [
                line for name in result.pictures for line in ("", f"![{result.title}]({name}.png)")
            ]
        lines += [
            line
            for name in self.pictures
            for line in ("", f"![{name.replace('_', ' ')}]({name}.png)")
        ]
        return "\n".join([*lines, "", *_code(self.command)]) + "\n"

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
        data = (
            f"Measured on `{self.dataset}`: {facts['train_images']} training images (split "
            f"`{facts['train_split']}`), {facts['test_images']} test images (split "
            f"`{facts['test_split']}`), {facts['classes']} classes. Shares are in percent."
        )
        notes = [line for note in self.notes for line in ("", note)]
        return (
            "\n".join(
                ["## Evaluation", "", data, *notes, "", *_table(rows), "", *_code(self.command)]
            )
            + "\n"
        )


def public_name(name_or_path: str | Path) -> str:
    """Return a name, or the last part of a path that is absolute or points upwards: folders of a
    machine stay private.

    Args:
        name_or_path: Hub name or path.

    Returns:
        What may be published.
    """
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.is_absolute() or ".." in path.parts else str(name_or_path)


def command_of(
    job: str, function: Callable[..., Any], arguments: Mapping[str, Any], *, private: frozenset[str]
) -> str:
    """Write the command line that repeats a call, without what is at its default.

    Args:
        job: word after `esvit`.
        function: what the job calls.
        arguments: of the call, by name.
        private: names of arguments that do not change the numbers.

    Returns:
        One line for a shell.
    """
    words = ["esvit", job]
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments[name]
        if name in private or value == parameter.default:
            continue
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, list):
            text = json.dumps(value, separators=(",", ":"))
        else:
            text = public_name(value) if isinstance(value, str | Path) else str(value)
        words += (
            [text] if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else [f"--{name}", text]
        )
    return shlex.join(words)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table; every row has the keys of the first."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return lines + [f"| {' | '.join(_cell(row[name]) for name in names)} |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _code(command: str) -> list[str]:
    return ["```bash", command, "```"]
