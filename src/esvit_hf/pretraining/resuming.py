"""What of a recipe may change when a run is resumed."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esvit_hf.hub.recipe_file import public_place
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import load_recipe

__all__ = ["check_resumed_recipe", "decides_steps", "recipe_changes"]

# A checkpoint holds networks, centers and a place in the order of the images: these decide their
# form or their meaning.
_FIXED = ("model", "heads", "objectives", "data", "run.seed")
_FREE_AFTER_ALL = (
    "data.num_workers",
    "data.max_broken_fraction",
    "data.label_column",
    "model.trust_remote_code",
)
# What the steps that are still to come depend on.
_FOR_STEPS = ("optimizer", "schedule", "run.mixed_precision")
# Where a run lies and how it is started is no part of what it computes.
_NOT_COMPARED = ("run.resume", "run.output_dir", "hub")
# A folder may have moved with all that is in it.
_PLACES = ("data.dataset", "model.name", "run.knn_dataset")
# Stands for all the fields of an objective.
_GIVEN = object()


def check_resumed_recipe(
    recipe: Recipe, saved: Path, *, step: int, total_steps: int
) -> dict[str, str]:
    """Compare the recipe of a resumed run with the one that it was started with.

    Args:
        recipe: the recipe to go on with.
        saved: file of the recipe so far; nothing is compared if it does not exist.
        step: optimizer steps done.
        total_steps: optimizer steps that the whole run would have.

    Returns:
        One sentence for every change that is applied, by the name of its field.

    Raises:
        ValueError: a change cannot be applied, or nothing is left to do.
    """
    if step > total_steps:
        raise ValueError(
            f"resume: the run has done {step} steps and would end after {total_steps}: raise "
            f"schedule.max_steps or schedule.num_epochs, or start a new run in another "
            f"run.output_dir"
        )
    if not saved.is_file():
        return {}
    try:
        changes = recipe_changes(load_recipe(saved), recipe)
    except ValueError as error:
        raise ValueError(
            f"resume: what has changed since the run was started cannot be found out ({error}): "
            f"correct {saved}, or remove it to go on without a comparison"
        ) from error
    fixed = [
        sentence
        for name, sentence in changes.items()
        if _lies_in(name, _FIXED) and name not in _FREE_AFTER_ALL
    ]
    if fixed:
        raise ValueError(
            f"resume: {'; '.join(fixed)}, which cannot change in a run: set it back, or start a "
            f"new run in another run.output_dir"
        )
    late = [sentence for name, sentence in changes.items() if decides_steps(name)]
    if late and step == total_steps:
        raise ValueError(
            f"resume: the run is finished at step {step}, and {'; '.join(late)}: no step is left "
            f"to apply that to; set it back, or start a new run in another run.output_dir"
        )
    return changes


def decides_steps(name: str) -> bool:
    """Tell whether the steps that are still to come depend on a field; how many there are does not
    change them.

    Args:
        name: of the field, with dots.
    """
    return _lies_in(name, _FOR_STEPS) and name != "schedule.max_steps"


def recipe_changes(before: Recipe, after: Recipe) -> dict[str, str]:
    """List the fields in which two recipes differ, leaving out where a run lies.

    Args:
        before: one recipe.
        after: the other.

    Returns:
        A sentence with both values, by the name of the field.
    """
    old, new = dict(_flat(asdict(before))), dict(_flat(asdict(after)))
    for values in (old, new):
        values |= {name: public_place(values[name]) for name in _PLACES if values[name]}
    # An objective that only one of them has is one difference, not one of each of its fields.
    alone = before.objectives.keys() ^ after.objectives.keys()
    for values, recipe in ((old, before), (new, after)):
        for objective in alone:
            place = f"objectives.{objective}"
            for name in [name for name in values if _lies_in(name, (place,))]:
                del values[name]
            if objective in recipe.objectives:
                values[place] = _GIVEN
    return {
        name: f"{name} was {_shown(old, name)} and is {_shown(new, name)}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name) and not _lies_in(name, _NOT_COMPARED)
    }


def _flat(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{place}{name}.")
        elif not isinstance(value, Mapping):
            yield f"{place}{name}", value


def _lies_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _shown(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is _GIVEN:
        return "given"
    return repr(values[name]) if name in values else "not given"
