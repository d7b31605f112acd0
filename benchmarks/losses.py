"""Heads and both losses, forward and backward, against the formula written straightforwardly."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.measure import Row, Run, compare, interleave, peak_memory
from esvit_hf.pretraining.centering import TeacherCentre
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.losses import region_loss, view_loss

BATCH = 4
CHANNELS = 768
NUM_PROTOTYPES = 65536
GLOBAL_VIEWS, GLOBAL_REGIONS = 2, 49
LOCAL_VIEWS, LOCAL_REGIONS = 8, 9


def draw_features(batch: int = BATCH) -> tuple[list[Tensor], list[Tensor]]:
    """Backbone regions (V_g, B, N_g, C) of student and teacher, one tensor for each group of views of one size."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((GLOBAL_VIEWS, GLOBAL_REGIONS), (LOCAL_VIEWS, LOCAL_REGIONS))
    student = [torch.randn(views, batch, regions, CHANNELS, generator=generator) for views, regions in sizes]
    teacher = [torch.randn(GLOBAL_VIEWS, batch, GLOBAL_REGIONS, CHANNELS, generator=generator)]
    return [group.requires_grad_() for group in student], teacher


def pooled(regions: list[Tensor]) -> Tensor:
    """View features (V, B, C)."""
    return torch.cat([group.mean(dim=2) for group in regions])


def prepare_ours(num_prototypes: int = NUM_PROTOTYPES, batch: int = BATCH) -> Run:
    heads = {
        name: ProjectionHead(CHANNELS, num_prototypes) for name in ("view", "region", "teacher view", "teacher region")
    }
    centres = {name: TeacherCentre(num_prototypes, 256) for name in ("view", "region")}
    student, teacher = draw_features(batch)
    temperatures = {
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
        regions = [part.view(*group.shape[:3], -1) for part, group in zip(parts, student, strict=True)]
        first = view_loss(
            views,
            heads["view"].prototype_direction,
            teacher_views,
            heads["teacher view"].prototype_direction,
            centres["view"].centre,
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
            centres["region"].centre,
            gain=heads["region"].prototype_gain,
            teacher_gain=heads["teacher region"].prototype_gain,
            **temperatures,
        )
        (0.5 * first + 0.5 * second).backward()
        centres["view"].observe(teacher_views)
        centres["region"].observe(teacher_regions[0])
        for task, centre in centres.items():
            teacher_head = heads[f"teacher {task}"]
            centre.update_centre(teacher_head.prototype_direction, teacher_head.prototype_gain)

    return run


def prepare_plain(num_prototypes: int = NUM_PROTOTYPES, batch: int = BATCH) -> Run:
    heads = {
        name: reference.PlainHead(CHANNELS, num_prototypes)
        for name in ("view", "region", "teacher view", "teacher region")
    }
    centres = {name: torch.zeros(num_prototypes) for name in ("view", "region")}
    student, teacher = draw_features(batch)

    def run() -> None:
        for head in heads.values():
            head.zero_grad(set_to_none=True)
        with torch.no_grad():
            targets = reference.run_heads(heads["teacher view"], heads["teacher region"], pooled(teacher), teacher)
        outputs = reference.run_heads(heads["view"], heads["region"], pooled(student), student)
        reference.plain_losses(outputs, targets, centres).backward()
        reference.update_centre(centres["view"], targets.view_logits)
        reference.update_centre(centres["region"], targets.region_logits)

    return run


MEMORY_CASES: dict[str, Callable[[], Run]] = {"ours": prepare_ours, "plain formula": prepare_plain}


def measure(rounds: int = 5) -> list[Row]:
    """Return the rows of this topic."""
    seconds = interleave({name: prepare() for name, prepare in MEMORY_CASES.items()}, rounds=rounds)
    memory = {name: peak_memory("losses", name) for name in MEMORY_CASES}
    name = "heads and both losses, forward and backward, batch 4, K 65536, float32"
    return [
        compare(f"{name}: {what}", {"": values.pop("ours")}, values, reach=reach, unit=unit, scale=scale)
        for what, values, reach, unit, scale in (
            ("time", seconds, 0.5, "s", 1.0),
            ("peak extra memory", memory, 0.10, "MiB", 2**-20),
        )
    ]
