"""Signals of a run that goes wrong, what they mean and which setting to change."""

import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esvit_hf.pretraining.losses import match_regions

PATIENCE = 5
"""Readings in a row that have to agree before a rule speaks; a spike is one reading."""
HISTORY = 50
"""Sound readings that a new one is compared with."""
ENOUGH_HISTORY = 10
LOSS_SPIKE = 1.5
NORM_SPIKE = 10
NORM_EXPLOSION = 100
"""Loss and gradient norm against the median of the history."""
LOSS_AT_START = 1.1
"""A loss so many times that of the untrained student says that training has undone itself."""


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


@torch.no_grad()
def match_diversity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Share of the teacher's regions that some region of another view of the image is matched to.

    Args:
        student_features: backbone regions of the student (V, B, N, C).
        teacher_features: backbone regions of the teacher (Q, B, M, C); its views are the student's
            first ones.

    Returns:
        A scalar on the device, 1 / M if all regions are matched to the same one.
    """
    nearest = match_regions(student_features[:, None], teacher_features[None])
    regions = teacher_features.shape[-2]
    chosen = nearest.new_zeros(*nearest.shape[:-1], regions).scatter_(-1, nearest, 1)
    share = chosen.float().mean(dim=(2, 3))
    views, teacher_views = share.shape
    other = ~torch.eye(views, teacher_views, dtype=torch.bool, device=share.device)
    return (share * other).sum() / other.sum()


@dataclass(frozen=True)
class Rule:
    """What a number says when it leaves the range of a sound run.

    Attributes:
        metric: key of `metrics.jsonl`, after `view_` or `region_` if it belongs to a task.
        unsound: whether a value is outside.
        message: what it means and which setting to change.
        of_task: whether there is one for each task.
        patience: readings in a row that have to be outside.
        fatal: whether the run stops.
    """

    metric: str
    unsound: Callable[[float], bool]
    message: str
    of_task: bool = False
    patience: int = PATIENCE
    fatal: bool = False


class RunMonitor:
    """Judges the numbers of a run: warns once when they leave their range, and stops a run that has
    diverged.

    What it remembers is saved and restored with a checkpoint.

    Args:
        num_prototypes: number of prototypes K.
        total_weight: sum of the weights of the losses.
        device: where the losses are.

    Attributes:
        peaks: largest loss and gradient norm of the steps since the last reading, a tensor of two.
        proven_step: newest step whose weights a later reading found sound.
    """

    def __init__(
        self, num_prototypes: int, total_weight: float, device: torch.device | str = "cpu"
    ) -> None:
        largest = math.log(num_prototypes)
        self.uniform_loss = total_weight * largest
        self.start_loss: float | None = None
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.streaks: dict[str, int] = {}
        self.proven_step = 0
        self.peaks = torch.zeros(2, device=device)
        self.rules = (
            Rule(
                "teacher_entropy",
                lambda value: value > 0.999 * largest,
                "the teacher's targets are uniform, so there is nothing to learn from: lower "
                "teacher_temperature",
                of_task=True,
            ),
            Rule(
                "mean_target_entropy",
                lambda value: value < 0.1 * largest,
                "the teacher gives every image nearly the same target: lower center_momentum (1 "
                "turns centering off), raise teacher_temperature or lower learning_rate",
                of_task=True,
            ),
            Rule(
                "teacher_spread",
                lambda value: value < 0.02,
                "the teacher's outputs are nearly the same for every image: lower learning_rate or "
                "raise teacher_momentum",
                of_task=True,
            ),
            Rule(
                "region_match_diversity",
                lambda value: value < 0.02,
                "nearly all regions of an image are matched to the same region of its other view, "
                "so the regions have become alike: lower learning_rate, or give the view loss a "
                "weight",
            ),
            Rule(
                "loss_scale",
                lambda value: value < 1,
                "float16 gradients overflow at every step and no step is taken: set "
                "mixed_precision to bf16 or no",
                fatal=True,
            ),
            Rule(
                "loss_peak",
                lambda value: self._exceeds(value, self.losses, LOSS_SPIKE),
                "the loss jumped: if this repeats, lower learning_rate, raise warmup_epochs or "
                "lower clip_gradient",
                patience=1,
            ),
            Rule(
                "gradient_norm_peak",
                lambda value: self._exceeds(value, self.norms, NORM_SPIKE),
                "the gradient norm jumped: if this repeats, lower learning_rate, raise "
                "warmup_epochs or keep clip_gradient above 0",
                patience=1,
            ),
            Rule(
                "loss",
                lambda value: (
                    value > LOSS_AT_START * max(self.uniform_loss, self.start_loss or value)
                ),
                "the loss stays above that of the untrained student: lower learning_rate or raise "
                "warmup_epochs",
                fatal=True,
            ),
            Rule(
                "gradient_norm",
                lambda value: self._exceeds(value, self.norms, NORM_EXPLOSION),
                "the gradients have exploded: lower learning_rate, raise warmup_epochs or keep "
                "clip_gradient above 0",
                fatal=True,
            ),
        )

    @staticmethod
    def _exceeds(value: float, history: list[float], factor: float) -> bool:
        return len(history) >= ENOUGH_HISTORY and value > factor * statistics.median(history)

    @torch.no_grad()
    def observe(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note the loss and the gradient norm of one step, scalars on the device, without waiting
        for them.
        """
        self.peaks = torch.maximum(self.peaks, torch.stack([loss.float(), gradient_norm.float()]))

    @property
    def alarmed(self) -> bool:
        """Whether the last reading may be the start of a divergence."""
        return any(self.streaks.get(rule.metric, 0) for rule in self.rules if rule.fatal)

    def update(self, values: Mapping[str, float], step: int) -> None:
        """Take one reading, the values of a line of `metrics.jsonl`, which must be the same in all
        processes.

        Raises:
            FloatingPointError: if the run has diverged.
        """
        check_finite(values["loss_peak"], "loss", step)
        if "loss_scale" not in values:
            # A float16 run skips steps with such gradients; its scale tells whether there are too
            # many.
            check_finite(values["gradient_norm_peak"], "gradient norm", step)
        for rule in self.rules:
            names = (
                [f"view_{rule.metric}", f"region_{rule.metric}"] if rule.of_task else [rule.metric]
            )
            for name in names:
                if name in values:
                    self._judge(name, values[name], rule, step)
        if not self.alarmed:
            self.proven_step = step - 1
            self.start_loss = values["loss"] if self.start_loss is None else self.start_loss
            self.losses = [*self.losses, values["loss"]][-HISTORY:]
            self.norms = [*self.norms, values["gradient_norm"]][-HISTORY:]
        self.peaks.zero_()

    def _judge(self, name: str, value: float, rule: Rule, step: int) -> None:
        self.streaks[name] = self.streaks.get(name, 0) + 1 if rule.unsound(value) else 0
        if self.streaks[name] != rule.patience:
            return
        message = f"step {step}: {rule.message} ({name} is {value:.4g})"
        if rule.fatal:
            raise FloatingPointError(message)
        warnings.warn(message, stacklevel=3)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""
        state = {name: getattr(self, name) for name in REMEMBERED}
        return {**state, "peaks": self.peaks.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        for name in REMEMBERED:
            setattr(self, name, state[name])
        self.peaks = torch.tensor(state["peaks"], device=self.peaks.device)


REMEMBERED = ("start_loss", "losses", "norms", "streaks", "proven_step")


def check_finite(value: float, name: str, step: int) -> None:
    """Stop a run whose loss or gradient norm is not finite.

    Raises:
        FloatingPointError: with the likely causes and the settings to change.
    """
    if not math.isfinite(value):
        raise FloatingPointError(
            f"step {step}: the {name} is {value}: lower learning_rate or raise warmup_epochs, keep "
            f"clip_gradient above 0, and prefer mixed_precision bf16 or no to fp16"
        )
