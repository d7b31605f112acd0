"""The objectives that recipes can name."""

from collections.abc import Mapping
from typing import TypeVar

from esvit_hf.pretraining.objectives.base import Objective
from esvit_hf.pretraining.objectives.region import RegionObjective
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings
from esvit_hf.pretraining.objectives.view import ViewObjective

_Objective = TypeVar("_Objective", bound=Objective)

PAPER = (ViewObjective, RegionObjective)
"""The objectives of EsViT, which a recipe has that names none."""

OBJECTIVES: dict[str, type[Objective]] = {}
"""Objectives by name; those of a run are built and added up in this order."""


def register_objective(objective: type[_Objective]) -> type[_Objective]:
    """Let recipes name an objective; a decorator of its class.

    Args:
        objective: the class, with a `name`.

    Returns:
        The class.

    Raises:
        ValueError: the name is taken, or is no Python name.
    """
    name = objective.name
    if not name.isidentifier() or name in OBJECTIVES:
        raise ValueError(
            f"{objective.__name__} has the name {name!r}, which is taken or no Python name: give "
            f"it another one (taken are {', '.join(OBJECTIVES)})"
        )
    OBJECTIVES[name] = objective
    return objective


for _objective in PAPER:
    register_objective(_objective)


def objective_settings() -> dict[str, type[ObjectiveSettings]]:
    """Return the settings class of every objective by name."""
    return {name: objective.settings_class for name, objective in OBJECTIVES.items()}


def default_objectives() -> dict[str, ObjectiveSettings]:
    """Return the objectives of a recipe that names none."""
    return {objective.name: objective.settings_class() for objective in PAPER}


def build_objectives(settings: Mapping[str, ObjectiveSettings]) -> dict[str, Objective]:
    """Make the objectives of a run.

    Args:
        settings: the recipe's settings of each objective by its name, in any order.
    """
    return {
        name: objective(settings[name])
        for name, objective in OBJECTIVES.items()
        if name in settings
    }
