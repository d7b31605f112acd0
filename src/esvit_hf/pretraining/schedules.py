"""Schedules of a pretraining run: step or epoch to float."""

import math
from collections.abc import Callable, Mapping

from esvit_hf.pretraining.objectives.settings import ObjectiveSettings

Schedule = Callable[[int], float]


def cosine_schedule(
    start: float, end: float, total_steps: int, *, warmup_steps: int = 0
) -> Schedule:
    """Linear warm-up from 0 to `start` with both ends included, then half a cosine towards `end`.

    The cosine takes its first value at `start` and would reach `end` one step after the last.

    Args:
        start: value at the end of the warm-up.
        end: value that the cosine approaches.
        total_steps: steps in the run.
        warmup_steps: steps of the warm-up.

    Returns:
        A function from the step, counted from 0, to the value.
    """

    def value(step: int) -> float:
        if step < warmup_steps:
            return start * step / (warmup_steps - 1) if warmup_steps > 1 else 0.0
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))

    return value


def linear_schedule(start: float, end: float, num_epochs: int) -> Schedule:
    """Linear from `start` at epoch 0 to `end` at epoch `num_epochs` - 1, then constant.

    Returns:
        A function from the epoch, counted from 0, to the value.
    """

    def value(epoch: int) -> float:
        if epoch >= num_epochs:
            return end
        return start + (end - start) * epoch / (num_epochs - 1) if num_epochs > 1 else start

    return value


WEIGHT_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 - 0.5 * math.cos(math.pi * progress),
    "switch": lambda progress: 1.0,
}
"""Share of a weight's change that is done, by the share of its steps that are over."""


def weight_schedule(
    start: float, end: float, shape: str, total_steps: int, *, hold_steps: int = 0
) -> Schedule:
    """Hold `start` for some steps, then go to `end`.

    Args:
        start: value of the first steps.
        end: value that a line or cosine would reach one step after the last, and that a switch has
            at once.
        shape: `linear`, `cosine` (half a period) or `switch`.
        total_steps: steps in the run.
        hold_steps: steps at `start` before the change begins.

    Returns:
        A function from the step, counted from 0, to the value.

    Raises:
        ValueError: if there is no such shape.
    """
    if shape not in WEIGHT_SHAPES:
        raise ValueError(f"shape is {shape!r}: set it to one of {', '.join(WEIGHT_SHAPES)}")
    done = WEIGHT_SHAPES[shape]

    def value(step: int) -> float:
        if step < hold_steps:
            return start
        progress = (step - hold_steps) / max(1, total_steps - hold_steps)
        return start + (end - start) * done(progress)

    return value


def loss_weights(
    objectives: Mapping[str, ObjectiveSettings], num_epochs: int, steps_per_epoch: int
) -> Callable[[int], dict[str, float]]:
    """Weigh objectives so that their sum stays the same: what one of them gives up, or has not
    taken yet, the others carry in proportion to their own weights.

    Args:
        objectives: settings by name.
        num_epochs: epochs of the run.
        steps_per_epoch: steps of an epoch.

    Returns:
        A function from the step, counted from 0, to the weights of the objectives that take part,
        by name.
    """
    own = {
        name: weight_schedule(
            each.weight,
            each.weight if each.weight_end is None else each.weight_end,
            each.weight_shape,
            num_epochs * steps_per_epoch,
            hold_steps=each.weight_hold_epochs * steps_per_epoch,
        )
        for name, each in objectives.items()
    }
    total = sum(largest_weight(each) for each in objectives.values())

    def values(step: int) -> dict[str, float]:
        found = {
            name: own[name](step)
            for name, each in objectives.items()
            if step >= each.start_epoch * steps_per_epoch
        }
        taken = sum(found.values())
        # A sum that is complete must keep its bits.
        return {
            name: weight + (total - taken) * (weight / taken)
            for name, weight in found.items()
            if weight > 0
        }

    return values


def largest_weight(objective: ObjectiveSettings) -> float:
    """Return the largest weight that an objective has of its own during a run."""
    return max(objective.weight, objective.weight_end or 0.0)
