"""One optimizer step of self-distillation, in the reference's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from esvit_hf.pretraining.batch_norm import synchronize_batch_norms
from esvit_hf.pretraining.build import DistillationParts
from esvit_hf.pretraining.centering import TeacherCenter
from esvit_hf.pretraining.ema import update_teacher
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.losses import region_loss, view_loss
from esvit_hf.pretraining.model import DistillationNetwork, DistillationOutput
from esvit_hf.pretraining.monitor import match_diversity, output_spread, teacher_entropy
from esvit_hf.pretraining.optimizer import (
    build_optimizer,
    clip_all_gradients,
    clip_each_gradient,
    forget_replaced_parameters,
    gradient_norm,
)
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.schedules import Schedule, cosine_schedule, linear_schedule

MONITORED_IMAGES = 8
"""Images of a micro-batch whose regions are kept for the run's monitor."""


@dataclass(frozen=True)
class StepSchedules:
    """Everything that changes with the step or the epoch."""

    learning_rate: Schedule
    weight_decay: Schedule
    teacher_momentum: Schedule
    teacher_temperature: Schedule
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
            teacher_temperature=linear_schedule(
                recipe.schedule.warmup_teacher_temperature,
                recipe.schedule.teacher_temperature,
                recipe.schedule.warmup_teacher_temperature_epochs,
            ),
            steps_per_epoch=steps_per_epoch,
        )


@dataclass
class LossValues:
    """Losses of one micro-batch; scalars on the device.

    Attributes:
        total: weighted sum, with its graph.
        view: view loss, detached; None if the task is off.
        region: region loss, detached; None if the task is off.
    """

    total: Tensor
    view: Tensor | None
    region: Tensor | None


class DistillationStep:
    """Runs micro-batches and updates weights, centers and teacher once per optimizer step.

    No call waits for the device: losses and norms stay tensors.

    Args:
        recipe: the recipe.
        parts: student, teacher and centers.
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
        self.teacher = parts.teacher.to(accelerator.device)
        self.centers = parts.centers.to(accelerator.device)
        if accelerator.num_processes > 1:
            synchronize_batch_norms(parts.student)
            synchronize_batch_norms(self.teacher)
        if recipe.run.compile:
            parts.student.backbone.compile()
            self.teacher.backbone.compile()
        self.wrapped_student, self.optimizer = accelerator.prepare(
            parts.student, build_optimizer(parts.student)
        )
        if isinstance(self.wrapped_student, FSDPModule):
            # The losses take the prototypes after the forward pass; in the root's shards they would
            # be gone by then.
            self.wrapped_student.set_reshard_after_forward(False, recurse=False)
            forget_replaced_parameters(self.optimizer)
        self.student: DistillationNetwork = accelerator.unwrap_model(self.wrapped_student)
        self.wrapped_student.train()
        self.teacher_output: DistillationOutput | None = None
        self.student_regions: Tensor | None = None

    def regions_active(self, step: int) -> bool:
        """Tell whether the region loss takes part in this step."""
        region = self.recipe.objectives.get("region")
        return region is not None and self.epoch(step) >= region.start_epoch

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to."""
        return step // self.schedules.steps_per_epoch

    def losses(self, crops: Sequence[Tensor], teacher_views: int, step: int) -> LossValues:
        """Run student and teacher on one micro-batch.

        Args:
            crops: one float tensor (B, 3, H, W) a view, the teacher's views first.
            teacher_views: number of views the teacher sees.
            step: optimizer step, counted from 0.
        """
        with_regions = self.regions_active(step)
        with torch.inference_mode(), self.accelerator.autocast():
            teacher = self.teacher(crops[:teacher_views], with_regions)
        student: DistillationOutput = self.wrapped_student(crops, with_regions)
        self.teacher_output = teacher
        # A copy of a few, as a part of the tensor would hold all of it.
        self.student_regions = (
            student.region_features[0][:, :MONITORED_IMAGES].detach().clone()
            if student.region_features
            else None
        )
        view = region = None
        with self.accelerator.autocast():
            if student.views is not None:
                view = view_loss(
                    student.views,
                    self.student_head("view").prototype_direction,
                    teacher.views,
                    self.teacher_head("view").prototype_direction,
                    self.center("view").center,
                    **self.loss_settings("view", step),
                )
                self.center("view").observe(teacher.views)
            if with_regions:
                region = region_loss(
                    student.regions,
                    student.region_features,
                    self.student_head("region").prototype_direction,
                    teacher.regions,
                    teacher.region_features,
                    self.teacher_head("region").prototype_direction,
                    self.center("region").center,
                    **self.loss_settings("region", step),
                )
                self.center("region").observe(
                    torch.cat([group.flatten(0, 2) for group in teacher.regions])
                )
        return self.weigh(view, region)

    def loss_settings(self, task: str, step: int) -> dict[str, Any]:
        """Return the temperatures of a step, and the lengths of both networks' prototypes of a
        task.
        """
        return {
            "student_temperature": self.recipe.heads.student_temperature,
            "teacher_temperature": self.schedules.teacher_temperature(self.epoch(step)),
            "gain": self.student_head(task).prototype_gain,
            "teacher_gain": self.teacher_head(task).prototype_gain,
        }

    def weigh(self, view: Tensor | None, region: Tensor | None) -> LossValues:
        """Add up the losses; before the region loss joins, the view loss carries both weights."""
        view_weight, region_weight = (
            self.recipe.objectives[task].weight if task in self.recipe.objectives else 0.0
            for task in ("view", "region")
        )
        if view is None:
            assert region is not None
            return LossValues(region_weight * region, None, region.detach())
        if region is None:
            return LossValues((view_weight + region_weight) * view, view.detach(), None)
        return LossValues(
            view_weight * view + region_weight * region, view.detach(), region.detach()
        )

    def center(self, task: str) -> TeacherCenter:
        """Return the center of a task, `view` or `region`."""
        center = self.centers[task]
        assert isinstance(center, TeacherCenter)
        return center

    def accumulate(
        self, crops: Sequence[Tensor], teacher_views: int, step: int, *, last: bool
    ) -> LossValues:
        """Add the gradients of one micro-batch.

        Args:
            crops: one float tensor (B, 3, H, W) a view, the teacher's views first.
            teacher_views: number of views the teacher sees.
            step: optimizer step, counted from 0.
            last: whether this is the last micro-batch of the step, at which processes exchange
                gradients.

        Returns:
            The losses of the micro-batch.
        """
        if last:
            values = self.losses(crops, teacher_views, step)
            self.accelerator.backward(values.total / self.recipe.run.accumulation_steps)
            return values
        with self.accelerator.no_sync(self.wrapped_student):
            values = self.losses(crops, teacher_views, step)
            self.accelerator.backward(values.total / self.recipe.run.accumulation_steps)
        return values

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
        for task in self.centers:
            if task == "view" or self.regions_active(step):
                head = self.teacher_head(task)
                self.center(task).update_center(head.prototype_direction, head.prototype_gain)
        update_teacher(
            self.teacher.parameters(),
            self.student.parameters(),
            self.schedules.teacher_momentum(step),
        )
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def teacher_signals(self, step: int) -> dict[str, Tensor]:
        """Describe the teacher's outputs of the last micro-batch by numbers that tell a collapse.

        Args:
            step: optimizer step, counted from 0.

        Returns:
            Scalars on the device, by their names in `metrics.jsonl`.
        """
        output = self.teacher_output
        assert output is not None
        temperature = self.schedules.teacher_temperature(self.epoch(step))
        outputs: dict[str, tuple[Tensor, Tensor]] = {}
        if output.views is not None:
            outputs["view"] = output.views, output.views
        if output.regions:
            # Entropies take a row of K logits for every region: one image is enough.
            outputs["region"] = output.regions[0], output.regions[0][:, :1]
        signals: dict[str, Tensor] = {}
        for task, (rows, few) in outputs.items():
            center = self.center(task).center
            single, mean = teacher_entropy(
                few, self.teacher_head(task).prototypes(), center, temperature
            )
            signals |= {f"{task}_teacher_entropy": single, f"{task}_mean_target_entropy": mean}
            signals |= {
                f"{task}_teacher_spread": output_spread(rows),
                f"{task}_center_norm": center.norm(),
            }
        if self.student_regions is not None and len(self.student_regions) > 1:
            teacher_regions = output.region_features[0][:, :MONITORED_IMAGES]
            signals["region_match_diversity"] = match_diversity(
                self.student_regions, teacher_regions
            )
        return signals

    def student_head(self, task: str) -> ProjectionHead:
        """Return the student's head of a task, `view` or `region`."""
        return self.student.heads()[f"{task}_head"]

    def teacher_head(self, task: str) -> ProjectionHead:
        """Return the teacher's head of a task, `view` or `region`."""
        return self.teacher.heads()[f"{task}_head"]

    def frozen_parameters(self, step: int) -> list[nn.Parameter]:
        """Return the parameters that this step leaves alone."""
        frozen: list[nn.Parameter] = []
        if self.epoch(step) < self.recipe.schedule.freeze_last_layer_epochs:
            frozen = [
                parameter
                for head in self.student.heads().values()
                for parameter in head.last_layer_parameters()
            ]
        if self.student.region_head is not None and not self.regions_active(step):
            frozen.extend(self.student.region_head.parameters())
        return frozen
