"""Heads and both losses, forward and backward, against the formula written straightforwardly."""

from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.measure import Prepare, Row, Run, compare, interleave, peak_memory
from esvit_hf.pretraining.centering import TeacherCenter, mean_bottleneck
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.objectives.region import region_loss
from esvit_hf.pretraining.objectives.view import view_loss

BATCH = 4
CHANNELS = 768
NUM_PROTOTYPES = 65536
GLOBAL_VIEWS, GLOBAL_REGIONS = 2, 49
LOCAL_VIEWS, LOCAL_REGIONS = 8, 9
NAME = f"heads and both losses, forward and backward, batch {BATCH}, K {NUM_PROTOTYPES}, float32"
TIME_ROW = f"{NAME}: time"


def draw_features(batch: int = BATCH) -> tuple[list[Tensor], list[Tensor]]:
    """Backbone regions (V_g, B, N_g, C) of student and teacher, one tensor for each group of views
    of one size.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = ((GLOBAL_VIEWS, GLOBAL_REGIONS), (LOCAL_VIEWS, LOCAL_REGIONS))
    student = [
        torch.randn(views, batch, regions, CHANNELS, generator=generator)
        for views, regions in sizes
    ]
    teacher = [torch.randn(GLOBAL_VIEWS, batch, GLOBAL_REGIONS, CHANNELS, generator=generator)]
    return [group.requires_grad_() for group in student], teacher


def pooled(regions: list[Tensor]) -> Tensor:
    """View features (V, B, C)."""
    return torch.cat([group.mean(dim=2) for group in regions])


def prepare_ours(num_prototypes: int = NUM_PROTOTYPES, batch: int = BATCH) -> Run:
    heads = {
        name: ProjectionHead(CHANNELS, num_prototypes)
        for name in ("view", "region", "teacher view", "teacher region")
    }
    centers = {name: TeacherCenter(num_prototypes) for name in ("view", "region")}
    student, teacher = draw_features(batch)
    temperatures: dict[str, Any] = {
        "student_temperature": reference.STUDENT_TEMPERATURE,
        "teacher_temperature": reference.TEACHER_TEMPERATURE,
    }

    def run() -> None:
        for head in heads.values():
            head.zero_grad(set_to_none=True)
        with torch.inference_mode():
            teacher_views = heads["teacher view"](pooled(teacher))
            teacher_regions = [heads["teacher region"](group) for group in teacher]
        views = heads["view"](pooled(student))
        rows = heads["region"](torch.cat([group.flatten(0, 2) for group in student]))
        parts = rows.split([group.shape[:3].numel() for group in student])
        regions = [
            part.view(*group.shape[:3], -1) for part, group in zip(parts, student, strict=True)
        ]
        first = view_loss(
            views,
            heads["view"].prototype_direction,
            teacher_views,
            heads["teacher view"].prototype_direction,
            centers["view"].center,
            gain=heads["view"].prototype_gain,
            teacher_gain=heads["teacher view"].prototype_gain,
            **temperatures,
        )
        second = region_loss(
            regions,
            student,
            heads["region"].prototype_direction,
            teacher_regions,
            teacher,
            heads["teacher region"].prototype_direction,
            centers["region"].center,
            gain=heads["region"].prototype_gain,
            teacher_gain=heads["teacher region"].prototype_gain,
            **temperatures,
        )
        (0.5 * first + 0.5 * second).backward()
        for task, bottlenecks in (("view", [teacher_views]), ("region", teacher_regions)):
            teacher_head = heads[f"teacher {task}"]
            centers[task].update_center(
                [mean_bottleneck(bottlenecks)],
                teacher_head.prototype_direction,
                teacher_head.prototype_gain,
            )

    return run


def prepare_plain(num_prototypes: int = NUM_PROTOTYPES, batch: int = BATCH) -> Run:
    heads = {
        name: reference.PlainHead(CHANNELS, num_prototypes)
        for name in ("view", "region", "teacher view", "teacher region")
    }
    centers = {name: torch.zeros(num_prototypes) for name in ("view", "region")}
    student, teacher = draw_features(batch)

    def run() -> None:
        for head in heads.values():
            head.zero_grad(set_to_none=True)
        with torch.no_grad():
            targets = reference.run_heads(
                heads["teacher view"], heads["teacher region"], pooled(teacher), teacher
            )
        outputs = reference.run_heads(heads["view"], heads["region"], pooled(student), student)
        reference.plain_losses(outputs, targets, centers).backward()
        reference.update_center(centers["view"], targets.view_logits)
        reference.update_center(centers["region"], targets.region_logits)

    return run


OURS, PLAIN = "ours", "plain formula"
MEMORY_CASES: dict[str, Prepare] = {OURS: prepare_ours, PLAIN: prepare_plain}


def measure(rounds: int = 7) -> list[Row]:
    """Return the rows of this topic.

    Memory is counted beyond the parameters and their gradients, which training holds in any case.
    """
    seconds = interleave({name: prepare() for name, prepare in MEMORY_CASES.items()}, rounds=rounds)
    memory = {name: peak_memory("losses", name) - gradient_bytes() for name in MEMORY_CASES}
    return [
        compare(TIME_ROW, seconds[OURS], {PLAIN: seconds[PLAIN]}, reach=0.5),
        compare(
            f"{NAME}: peak extra memory",
            memory[OURS],
            {PLAIN: memory[PLAIN]},
            reach=0.10,
            unit="MiB",
            scale=2**-20,
        ),
    ]


def gradient_bytes() -> int:
    """Size of the gradients of both heads."""
    with torch.device("meta"):
        return (
            2
            * 4
            * sum(
                parameter.numel()
                for parameter in ProjectionHead(CHANNELS, NUM_PROTOTYPES).parameters()
            )
        )
