"""Signals of a run that goes wrong: entropy of the teacher's targets and losses that are not finite."""

import math
import warnings

import torch
from torch import Tensor


@torch.no_grad()
def teacher_entropy(
    bottleneck: Tensor, prototypes: Tensor, centre: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Entropy of the teacher's targets, in nats.

    Args:
        bottleneck: teacher bottlenecks (..., D).
        prototypes: teacher prototypes (K, D).
        centre: centre of the teacher's logits, K elements.
        temperature: temperature of the teacher.

    Returns:
        The mean entropy of a single target, and the entropy of the mean target; scalars on the device.
    """
    with torch.autocast(bottleneck.device.type, enabled=False):
        logits = bottleneck.float().flatten(0, -2) @ prototypes.float().T
        probabilities = torch.softmax((logits - centre) / temperature, dim=-1)
    return torch.special.entr(probabilities).sum(-1).mean(), torch.special.entr(probabilities.mean(0)).sum()


def check_finite(loss: float, step: int) -> None:
    """Stop a run whose loss is not finite.

    Raises:
        FloatingPointError: with the likely causes and the settings to change.
    """
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step}: lower learning_rate or raise warmup_epochs, keep clip_gradient "
            "above 0, and prefer mixed_precision bf16 or no to fp16; --resume continues from the last checkpoint"
        )


class CollapseMonitor:
    """Warns once when the teacher's targets carry no information any more.

    Args:
        num_prototypes: number of prototypes K.
        patience: readings in a row that have to agree.
    """

    def __init__(self, num_prototypes: int, patience: int = 5) -> None:
        self.largest = math.log(num_prototypes)
        self.patience = patience
        self.uniform = self.constant = 0

    def update(self, target_entropy: float, mean_entropy: float, step: int) -> str | None:
        """Take one reading of `teacher_entropy` in nats; return and emit a warning when the teacher has collapsed."""
        self.uniform = self.uniform + 1 if target_entropy > 0.999 * self.largest else 0
        self.constant = self.constant + 1 if mean_entropy < 0.01 * self.largest else 0
        message = None
        if self.uniform == self.patience:
            message = (
                f"step {step}: the teacher's targets are uniform (entropy {target_entropy:.2f} of at most "
                f"{self.largest:.2f} nats), so there is nothing to learn from: lower teacher_temperature or "
                "centre_momentum"
            )
        if self.constant == self.patience:
            message = (
                f"step {step}: the teacher gives every image the same target (entropy of the mean target "
                f"{mean_entropy:.2f} nats): raise teacher_temperature, lower centre_momentum or lower learning_rate"
            )
        if message:
            warnings.warn(message, stacklevel=2)
        return message
