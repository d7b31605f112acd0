"""Experiment trackers of Accelerate, each with the run's name and its recipe."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType, is_tensorboard_available

from esvit_hf.common.command_line import nearest
from esvit_hf.common.errors import one_line
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.pretraining.recipe import Recipe, recipe_yaml

__all__ = ["make_trackers", "start_trackers"]

PROJECT = "esvit-hf"
"""What the project is called unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""


def make_trackers(recipe: Recipe) -> list[GeneralTracker]:
    """Make the trackers of a recipe, named after its output folder; nothing is started.

    Args:
        recipe: the recipe.

    Returns:
        The trackers.

    Raises:
        ValueError: there is no tracker of a name, or it is not installed.
    """
    names = [name for name in recipe.run.trackers if name != "auto"]
    if "auto" in recipe.run.trackers and is_tensorboard_available():
        names.append("tensorboard")
    return [_make_tracker(name, recipe) for name in dict.fromkeys(names)]


def _make_tracker(name: str, recipe: Recipe) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS.get(name)
    if kind is None:
        hint = nearest(name, LOGGER_TYPE_TO_CLASS)
        hint = hint or f": use auto, {', '.join(LOGGER_TYPE_TO_CLASS)}"
        raise ValueError(f"run.trackers names {name!r}, which does not exist{hint}")
    # Those that others register bring their package.
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        raise ValueError(
            f"run.trackers names {name}, which is not installed: pip install "
            f"{name.replace('_', '-')}, or leave it out"
        )
    folder = recipe.run.output_dir.resolve()
    if name == "tensorboard":
        return kind("", folder / "logs")
    if name == "wandb":
        places = {} if "WANDB_DIR" in os.environ else {"dir": str(folder)}
        title = os.environ.get("WANDB_NAME", folder.name)
        return kind(os.environ.get("WANDB_PROJECT", PROJECT), name=title, **places)
    if name == "mlflow":
        return kind(PROJECT, run_name=folder.name)
    return kind(folder.name, *([folder / "logs"] if kind.requires_logging_directory else []))


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the accelerator's trackers and give them the recipe.

    Args:
        accelerator: made with `make_trackers`; every process calls this.
        recipe: the recipe.

    Raises:
        ValueError: one cannot be started.
    """
    fields = dict(_flat(read_yaml(recipe_yaml(recipe))))
    accelerator.trackers = list(accelerator.log_with)
    for tracker in accelerator.trackers:
        try:
            tracker.start()
            # TensorBoard takes parameters as a run of its own each time.
            if tracker.name != "tensorboard":
                tracker.store_init_configuration(fields)
        # Each package has exceptions of its own.
        except Exception as error:
            raise ValueError(
                f"the tracker {tracker.name} cannot be started ({one_line(error)}): set it up, or "
                f"leave it out of run.trackers"
            ) from error


def _flat(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value
