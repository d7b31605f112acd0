"""The objectives that a recipe may name, and their settings."""

from dataclasses import dataclass

from esvit_hf.common.settings import setting


@dataclass(frozen=True)
class ObjectiveSettings:
    """What every objective takes from the recipe."""

    weight: float = setting("weight of the objective's loss in the sum", 0.5, above=0)
    start_epoch: int = setting(
        "epoch at which the objective joins; before it the others carry its weight too",
        0,
        at_least=0,
    )


def objective_settings() -> dict[str, type[ObjectiveSettings]]:
    """Return the settings class of every objective by name."""
    return {"view": ObjectiveSettings, "region": ObjectiveSettings}


def default_objectives() -> dict[str, ObjectiveSettings]:
    """Return the objectives of a recipe that names none."""
    return {name: kind() for name, kind in objective_settings().items()}
