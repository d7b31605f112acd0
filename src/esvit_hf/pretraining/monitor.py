"""Signals of a run that goes wrong, what they mean and which setting to change."""

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Rule:
    """What a number says when it leaves the range of a sound run.

    Attributes:
        metric: key of `metrics.jsonl`.
        unsound: whether a value is outside.
        message: what it means and which setting to change.
        patience: readings in a row that have to be outside.
        fatal: whether the run stops.
    """

    metric: str
    unsound: Callable[[float], bool]
    message: str
    patience: int = PATIENCE
    fatal: bool = False


class RunMonitor:
    """Judges the numbers of a run: warns once when they leave their range, and stops a run that has
    diverged.

    What it remembers is saved and restored with a checkpoint.

    Args:
        uniform_loss: loss of a student whose distributions are uniform.
        objective_rules: rules about the signals of each objective, by its name; those about every
            run come on top.
        device: where the losses are.

    Attributes:
        peaks: largest loss and gradient norm of the steps since the last reading, a tensor of two.
        proven_step: newest step whose weights a later reading found sound.
    """

    def __init__(
        self,
        uniform_loss: float,
        objective_rules: Mapping[str, Iterable[Rule]],
        device: torch.device | str = "cpu",
    ) -> None:
        self.uniform_loss = uniform_loss
        self.start_loss: float | None = None
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.streaks: dict[str, int] = {}
        self.proven_step = 0
        self.peaks = torch.zeros(2, device=device)
        self.rules = (
            *(
                replace(rule, metric=f"{name}_{rule.metric}")
                for name, rules in objective_rules.items()
                for rule in rules
            ),
            Rule(
                "loss_scale",
                lambda value: value < 1,
                "float16 gradients overflow at every step and no step is taken: set "
                "run.mixed_precision to bf16 or no",
                fatal=True,
            ),
            Rule(
                "loss_peak",
                lambda value: self._exceeds(value, self.losses, LOSS_SPIKE),
                "the loss jumped: if this repeats, lower optimizer.learning_rate, raise "
                "optimizer.warmup_epochs or lower optimizer.clip_gradient",
                patience=1,
            ),
            Rule(
                "gradient_norm_peak",
                lambda value: self._exceeds(value, self.norms, NORM_SPIKE),
                "the gradient norm jumped: if this repeats, lower optimizer.learning_rate, raise "
                "optimizer.warmup_epochs or keep optimizer.clip_gradient above 0",
                patience=1,
            ),
            Rule(
                "loss",
                lambda value: (
                    value > LOSS_AT_START * max(self.uniform_loss, self.start_loss or value)
                ),
                "the loss stays above that of the untrained student: lower "
                "optimizer.learning_rate or raise optimizer.warmup_epochs",
                fatal=True,
            ),
            Rule(
                "gradient_norm",
                lambda value: self._exceeds(value, self.norms, NORM_EXPLOSION),
                "the gradients have exploded: lower optimizer.learning_rate, raise "
                "optimizer.warmup_epochs or keep optimizer.clip_gradient above 0",
                fatal=True,
            ),
        )

    @staticmethod
    def _exceeds(value: float, history: list[float], factor: float) -> bool:
        return len(history) >= ENOUGH_HISTORY and value > factor * statistics.median(history)

    @torch.no_grad()
    def observe(self, loss: Tensor, gradient_norm: Tensor, *, scaled: bool) -> None:
        """Note the loss and the gradient norm of one step without waiting for them.

        Args:
            loss: scalar on the device.
            gradient_norm: scalar on the device.
            scaled: whether the loss was scaled, so that steps whose gradients overflow are skipped,
                as a search for the largest scale has to have: no sign of a bad run.
        """
        if scaled:
            gradient_norm = torch.where(gradient_norm.isfinite(), gradient_norm, 0.0)
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
        check_finite(values["gradient_norm_peak"], "gradient norm", step)
        for rule in self.rules:
            if rule.metric in values:
                self._judge(values[rule.metric], rule, step)
        if not self.alarmed:
            self.proven_step = step - 1
            self.start_loss = values["loss"] if self.start_loss is None else self.start_loss
            self.losses = [*self.losses, values["loss"]][-HISTORY:]
            # A step that was skipped has no norm.
            if "gradient_norm" in values:
                self.norms = [*self.norms, values["gradient_norm"]][-HISTORY:]
        self.peaks.zero_()

    def _judge(self, value: float, rule: Rule, step: int) -> None:
        name = rule.metric
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
        """Restore a saved state.

        Raises:
            TypeError: it is something else.
        """
        start = [] if state["start_loss"] is None else [state["start_loss"]]
        numbers = [*start, *state["losses"], *state["norms"], *state["streaks"].values()]
        if not all(type(number) in (int, float) for number in (*numbers, state["proven_step"])):
            raise TypeError(f"what the monitor remembers is {state}")
        for name in REMEMBERED:
            setattr(self, name, state[name])
        self.peaks.copy_(torch.tensor(state["peaks"]))


REMEMBERED = ("start_loss", "losses", "norms", "streaks", "proven_step")


def check_finite(value: float, name: str, step: int) -> None:
    """Stop a run whose loss or gradient norm is not finite.

    Raises:
        FloatingPointError: with the likely causes and the settings to change.
    """
    if not math.isfinite(value):
        raise FloatingPointError(
            f"step {step}: the {name} is {value}: lower optimizer.learning_rate or raise "
            f"optimizer.warmup_epochs, keep optimizer.clip_gradient above 0, and prefer "
            f"run.mixed_precision bf16 or no to fp16"
        )
