"""The objectives that a recipe may name."""

from esvit_hf.pretraining.objectives.settings import ObjectiveSettings


def objective_settings() -> dict[str, type[ObjectiveSettings]]:
    """Return the settings class of every objective by name."""
    return {"view": ObjectiveSettings, "region": ObjectiveSettings}


def default_objectives() -> dict[str, ObjectiveSettings]:
    """Return the objectives of a recipe that names none."""
    return {name: kind() for name, kind in objective_settings().items()}
