"""One optimizer step of self-distillation, in the reference's order."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from esvit_hf.pretraining.batch_norm import synchronize_batch_norms
from esvit_hf.pretraining.centering import TeacherCenter, mean_bottleneck
from esvit_hf.pretraining.compilation import compile_blocks
from esvit_hf.pretraining.distillation import (
    DistillationNetwork,
    DistillationOutput,
    DistillationParts,
    group_by_size,
)
from esvit_hf.pretraining.ema import update_teacher
from esvit_hf.pretraining.objectives.base import Comparison, Projection
from esvit_hf.pretraining.objectives.position import CropBoxes
from esvit_hf.pretraining.optimizer import (
    build_optimizer,
    clip_all_gradients,
    clip_each_gradient,
    gradient_norm,
    start_averages,
)
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.schedules import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    loss_weights,
)

MONITORED_IMAGES = 8
"""Images of a micro-batch whose student outputs are kept for the signals."""


@dataclass(frozen=True)
class StepSchedules:
    """Everything that changes with the step or the epoch.

    Attributes:
        own_teacher_temperatures: schedules of the objectives that do not take the common one.
        loss_weights: from the step to the weights of the objectives that take part.
    """

    learning_rate: Schedule
    weight_decay: Schedule
    teacher_momentum: Schedule
    teacher_temperature: Schedule
    own_teacher_temperatures: Mapping[str, Schedule]
    loss_weights: Callable[[int], dict[str, float]]
    steps_per_epoch: int

    @classmethod
    def from_recipe(cls, recipe: Recipe, steps_per_epoch: int, total_batch: int) -> "StepSchedules":
        """Turn the recipe's epochs into steps, in this one place.

        Args:
            recipe: the recipe.
            steps_per_epoch: optimizer steps of an epoch.
            total_batch: images of an optimizer step over all processes and micro-batches.
        """
        total_steps = recipe.schedule.num_epochs * steps_per_epoch

        def temperature(end: float) -> Schedule:
            return linear_schedule(
                recipe.schedule.warmup_teacher_temperature,
                end,
                recipe.schedule.warmup_teacher_temperature_epochs,
            )

        return cls(
            learning_rate=cosine_schedule(
                recipe.optimizer.learning_rate * total_batch / 256,
                recipe.optimizer.min_learning_rate,
                total_steps,
                warmup_steps=int(recipe.optimizer.warmup_epochs * steps_per_epoch),
            ),
            weight_decay=cosine_schedule(
                recipe.optimizer.weight_decay, recipe.optimizer.weight_decay_end, total_steps
            ),
            teacher_momentum=cosine_schedule(
                recipe.schedule.teacher_momentum, recipe.schedule.teacher_momentum_end, total_steps
            ),
            teacher_temperature=temperature(recipe.schedule.teacher_temperature),
            own_teacher_temperatures={
                name: temperature(each.teacher_temperature)
                for name, each in recipe.objectives.items()
                if each.teacher_temperature is not None
            },
            loss_weights=loss_weights(
                recipe.objectives, recipe.schedule.num_epochs, steps_per_epoch
            ),
            steps_per_epoch=steps_per_epoch,
        )

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def teacher_temperature_of(self, objective: str, step: int) -> float:
        """Return the teacher's temperature of an objective."""
        own = self.own_teacher_temperatures.get(objective, self.teacher_temperature)
        return own(self.epoch(step))

    def values(self, step: int) -> dict[str, float]:
        """Return the scheduled numbers of a step by name."""
        return {
            "learning_rate": self.learning_rate(step),
            "weight_decay": self.weight_decay(step),
            "teacher_momentum": self.teacher_momentum(step),
            "teacher_temperature": self.teacher_temperature(self.epoch(step)),
            **{
                f"{name}_teacher_temperature": self.teacher_temperature_of(name, step)
                for name in self.own_teacher_temperatures
            },
            **{f"{name}_weight": weight for name, weight in self.loss_weights(step).items()},
        }


@dataclass(frozen=True)
class MicroBatch:
    """What one micro-batch gave; scalars on the device.

    Attributes:
        total: weighted sum of the losses, with its graph.
        losses: loss of every objective that took part, detached.
        comparisons: the outputs that centers and signals are made of, by objective; the student's
            are copies of a few images.
    """

    total: Tensor
    losses: dict[str, Tensor]
    comparisons: dict[str, Comparison]


class DistillationStep:
    """Runs micro-batches and updates weights, centers and teacher once per optimizer step.

    No call waits for the device: losses and norms stay tensors.

    Args:
        recipe: the recipe.
        parts: objectives, student, teacher and centers.
        schedules: schedules in steps.
        accelerator: the process's accelerator; it moves and wraps the networks.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: DistillationParts,
        schedules: StepSchedules,
        accelerator: Accelerator,
    ) -> None:
        self.recipe = recipe
        self.schedules = schedules
        self.accelerator = accelerator
        self.objectives = parts.objectives
        self.teacher = parts.teacher.to(accelerator.device)
        self.centers = parts.centers.to(accelerator.device)
        if accelerator.num_processes > 1:
            synchronize_batch_norms(parts.student)
            synchronize_batch_norms(self.teacher)
        if recipe.run.compile:
            # All forms of blocks take minutes to compile on a CPU, and make no step faster there.
            on_cpu = accelerator.device.type == "cpu"
            student = parts.student.to(accelerator.device)
            compile_blocks(student.backbone.model, commonest_only=on_cpu)
            compile_blocks(self.teacher.backbone.model, commonest_only=on_cpu)
        self.wrapped_student, self.optimizer = accelerator.prepare(
            parts.student, build_optimizer(parts.student)
        )
        if isinstance(self.wrapped_student, FSDPModule):
            # The losses take the prototypes after the forward pass; in the root's shards they would
            # be gone by then.
            self.wrapped_student.set_reshard_after_forward(False, recurse=False)
            start_averages(self.optimizer)
        self.student: DistillationNetwork = accelerator.unwrap_model(self.wrapped_student)
        self.wrapped_student.train()
        self.teacher_means: defaultdict[str, list[Tensor]] = defaultdict(list)

    def losses(
        self,
        crops: Sequence[Tensor],
        teacher_views: int,
        step: int,
        *,
        boxes: CropBoxes | None = None,
    ) -> MicroBatch:
        """Compare student and teacher on one micro-batch; weights, gradients and centers stay.

        Args:
            crops: one float tensor (B, 3, H, W) a view, the teacher's views first.
            teacher_views: number of views the teacher sees.
            step: optimizer step, counted from 0.
            boxes: where the crops lie in their images, for objectives that ask for it.
        """
        weights = self.weights(step)
        active = [self.objectives[name] for name in weights]
        student_crops, prepared = crops, {}
        for objective in active:
            student_crops, prepared[objective.name] = objective.prepare_student_crops(
                student_crops, teacher_views
            )
        with torch.inference_mode(), self.accelerator.autocast():
            teacher: DistillationOutput = self.teacher(crops[:teacher_views], active)
        student: DistillationOutput = self.wrapped_student(student_crops, active)
        views = [len(group) for group in group_by_size(crops)]
        places = None if boxes is None else boxes.by_size(views, student.grids)
        losses: dict[str, Tensor] = {}
        comparisons: dict[str, Comparison] = {}
        with self.accelerator.autocast():
            for objective in active:
                name = objective.name
                comparison = Comparison(
                    student.projections[name],
                    teacher.projections[name],
                    self.student.head(name),
                    self.teacher.head(name),
                    self.center(name).center,
                    self.recipe.heads_of(name).student_temperature,
                    self.schedules.teacher_temperature_of(name, step),
                    prepared[name],
                    places,
                )
                losses[name] = objective.loss(comparison)
                comparisons[name] = replace(comparison, student=few_images(comparison.student))
        total = torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
        idle = [name for name in self.objectives if name not in weights]
        if idle:
            total = total + self.zero_of_heads(idle)
        return MicroBatch(
            total, {name: loss.detach() for name, loss in losses.items()}, comparisons
        )

    def weights(self, step: int) -> dict[str, float]:
        """Return the weights of the objectives that take part in a step, in the order in which
        they are added up.
        """
        weights = self.schedules.loss_weights(step)
        return {name: weights[name] for name in self.objectives if name in weights}

    def zero_of_heads(self, objectives: Iterable[str]) -> Tensor:
        """Return a zero that depends on all of some heads: replicas wait for a gradient of every
        parameter, used or not.
        """
        heads = [self.student.head(name) for name in objectives]
        firsts = [parameter.flatten()[0] for head in heads for parameter in head.parameters()]
        return 0.0 * torch.stack(firsts).sum()

    def accumulate(
        self,
        crops: Sequence[Tensor],
        teacher_views: int,
        step: int,
        *,
        last: bool,
        boxes: CropBoxes | None = None,
    ) -> MicroBatch:
        """Add the gradients of one micro-batch, and note the teacher's outputs for its centers.

        Args:
            crops: one float tensor (B, 3, H, W) a view, the teacher's views first.
            teacher_views: number of views the teacher sees.
            step: optimizer step, counted from 0.
            last: whether this is the last micro-batch of the step, at which processes exchange
                gradients.
            boxes: where the crops lie in their images, for objectives that ask for it.

        Returns:
            What the micro-batch gave.
        """
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped_student):
            micro_batch = self.losses(crops, teacher_views, step, boxes=boxes)
            self.accelerator.backward(micro_batch.total / self.recipe.run.accumulation_steps)
        for name, comparison in micro_batch.comparisons.items():
            self.teacher_means[name].append(mean_bottleneck(comparison.teacher.bottlenecks))
        return micro_batch

    def update(self, step: int) -> Tensor:
        """Clip, drop frozen gradients, step the optimizer, then move the centers and the teacher.

        Args:
            step: optimizer step, counted from 0.

        Returns:
            The norm of all gradients before clipping, a scalar tensor.
        """
        for group, decayed in zip(self.optimizer.param_groups, (True, False), strict=True):
            group["lr"] = self.schedules.learning_rate(step)
            if decayed:
                group["weight_decay"] = self.schedules.weight_decay(step)
        self.accelerator.unscale_gradients(self.optimizer)
        if self.recipe.optimizer.clip_gradient > 0:
            clip = (
                clip_each_gradient
                if self.recipe.optimizer.clip_mode == "parameter"
                else clip_all_gradients
            )
            norm = clip(self.student.parameters(), self.recipe.optimizer.clip_gradient)
        else:
            norm = gradient_norm(self.student.parameters())
        for parameter in self.frozen_parameters(step):
            parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for name, means in self.teacher_means.items():
            head = self.teacher.head(name)
            self.center(name).update_center(means, head.prototype_direction, head.prototype_gain)
        self.teacher_means.clear()
        update_teacher(
            self.teacher.parameters(),
            self.student.parameters(),
            self.schedules.teacher_momentum(step),
        )
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def signals(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """Describe the outputs of a micro-batch by numbers that tell a collapse.

        Args:
            micro_batch: the last one of the step.

        Returns:
            Scalars on the device, by their names in `metrics.jsonl`.
        """
        return {
            f"{name}_{signal}": value
            for name, comparison in micro_batch.comparisons.items()
            for signal, value in self.objectives[name].signals(comparison).items()
        }

    def center(self, objective: str) -> TeacherCenter:
        """Return the center of an objective."""
        center = self.centers[objective]
        assert isinstance(center, TeacherCenter)
        return center

    def frozen_parameters(self, step: int) -> list[nn.Parameter]:
        """Return the parameters that this step leaves alone."""
        active = self.weights(step)
        freeze_last_layer = (
            self.schedules.epoch(step) < self.recipe.schedule.freeze_last_layer_epochs
        )
        frozen: list[nn.Parameter] = []
        for name in self.objectives:
            head = self.student.head(name)
            if name not in active:
                frozen.extend(head.parameters())
            elif freeze_last_layer:
                frozen.extend(head.last_layer_parameters())
        return frozen


def few_images(projection: Projection) -> Projection:
    """Copy the outputs of a few images, as a part of a tensor would hold all of it."""
    return Projection(
        *(
            [group[:, :MONITORED_IMAGES].detach().clone() for group in groups]
            for groups in (projection.features, projection.bottlenecks)
        )
    )
