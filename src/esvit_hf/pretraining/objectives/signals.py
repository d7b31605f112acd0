"""Numbers about a teacher's outputs that tell a collapse, and what they mean."""

import math

import torch
from torch import Tensor

from esvit_hf.pretraining.monitor import Rule


@torch.no_grad()
def teacher_entropy(
    bottleneck: Tensor, prototypes: Tensor, center: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Entropy of the teacher's targets, in nats.

    Args:
        bottleneck: teacher bottlenecks (..., D).
        prototypes: teacher prototypes (K, D).
        center: center of the teacher's logits, K elements.
        temperature: temperature of the teacher.

    Returns:
        The mean entropy of a single target, and the entropy of the mean target; scalars on the
        device.
    """
    with torch.autocast(bottleneck.device.type, enabled=False):
        logits = bottleneck.float().flatten(0, -2) @ prototypes.float().T
        probabilities = torch.softmax((logits - center) / temperature, dim=-1)
    return torch.special.entr(probabilities).sum(-1).mean(), torch.special.entr(
        probabilities.mean(0)
    ).sum()


@torch.no_grad()
def output_spread(bottleneck: Tensor) -> Tensor:
    """Standard deviation of unit-length outputs over all samples, averaged over their dimensions.

    Args:
        bottleneck: unit-length bottlenecks (..., D).

    Returns:
        A scalar on the device: 1 if the outputs fill the sphere evenly, 0 if all are the same.
    """
    rows = bottleneck.float().flatten(0, -2)
    return rows.std(dim=0, correction=0).mean() * math.sqrt(rows.shape[1])


def collapse_rules(num_prototypes: int) -> list[Rule]:
    """Return the rules about the numbers of this file.

    Args:
        num_prototypes: number of prototypes K.
    """
    largest = math.log(num_prototypes)
    return [
        Rule(
            "teacher_entropy",
            lambda value: value > 0.999 * largest,
            "the teacher's targets are uniform, so there is nothing to learn from: lower "
            "schedule.teacher_temperature",
        ),
        Rule(
            "mean_target_entropy",
            lambda value: value < 0.1 * largest,
            "the teacher gives every image nearly the same target: lower heads.center_momentum "
            "(1 turns centering off), raise schedule.teacher_temperature or lower "
            "optimizer.learning_rate",
        ),
        Rule(
            "teacher_spread",
            lambda value: value < 0.02,
            "the teacher's outputs are nearly the same for every image: lower "
            "optimizer.learning_rate or raise schedule.teacher_momentum",
        ),
    ]
