"""The command line of `esvit evaluate`: shared options, its own, and those of every task."""

import dataclasses
import inspect
from typing import Any

from jsonargparse import ArgumentParser

from esvit_hf.common.options import Compute, DataSource, ModelSource
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.evaluation.task import TASKS

__all__ = ["add_arguments", "run"]

_SHARED = (ModelSource, DataSource, Compute)


def add_arguments(parser: ArgumentParser) -> None:
    """Add all options, those of a task as `--task.option`.

    Args:
        parser: of the command.
    """
    shared = {field.name for options in _SHARED for field in dataclasses.fields(options)}
    parser.add_class_arguments(ModelSource, as_positional=True)
    parser.add_class_arguments(DataSource, as_positional=True)
    parser.add_argument(
        "--tasks",
        type=str,
        default=inspect.signature(evaluate).parameters["tasks"].default,
        help=f"what to measure, separated by commas: {', '.join(TASKS)}",
    )
    parser.add_function_arguments(evaluate, as_group=False, skip={*shared, "tasks", "options"})
    parser.add_class_arguments(Compute)
    for name, task in TASKS.items():
        parser.add_class_arguments(task, name)


def run(**arguments: Any) -> dict[str, Any] | None:
    """Evaluate as the command line says.

    Args:
        arguments: what a parser with `add_arguments` has read.

    Returns:
        What `evaluate` returns.
    """
    tasks = {name: task(**arguments.pop(name, {})) for name, task in TASKS.items()}
    # Options of a task that is not asked for are refused, unless all are at their defaults.
    arguments |= {name: task for name, task in tasks.items() if task != TASKS[name]()}
    return evaluate(**arguments)
