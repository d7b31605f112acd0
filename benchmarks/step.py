"""Whole pretraining steps of Swin-T: forward of teacher and student, losses, backward, clipping,
AdamW, average.

Against the plain formula on transformers' Swin with eager attention, for-loop clipping and
averaging.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import SwinModel

from benchmarks import reference
from benchmarks.measure import Prepare, Row, Run, compare, interleave, peak_memory
from benchmarks.peers import build_transformers
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.step import DistillationStep, StepSchedules

BATCH = 4
NUM_PROTOTYPES = 65536
DROP_PATH_RATE = 0.1
MAX_NORM = 3.0
TEACHER_MOMENTUM = 0.996
VIEWS = ((2, 224), (8, 96))
CHECKPOINTED_BLOCKS = 4
"""The blocks of the first two stages."""
NAME = f"pretraining step, Swin-T, batch {BATCH}, K {NUM_PROTOTYPES}"
CHECKPOINTED_LABEL = f"float32, {CHECKPOINTED_BLOCKS} checkpointed blocks"
TIME_ROWS = {
    label: f"{NAME}, {label}: time" for label in ("float32", CHECKPOINTED_LABEL, "bf16 autocast")
}


def draw_crops(batch: int, views: Sequence[tuple[int, int]] = VIEWS) -> list[Tensor]:
    """One tensor (B, 3, S, S) a view."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 3, size, size, generator=generator)
        for count, size in views
        for _ in range(count)
    ]


def build_step(
    precision: str = "no",
    *,
    batch: int = BATCH,
    num_prototypes: int = NUM_PROTOTYPES,
    checkpointed_blocks: int = 0,
    device: str = "cpu",
    model_type: str = "esvit_swin",
    fields: Mapping[str, Any] | None = None,
) -> DistillationStep:
    """Build our networks, losses and optimizer."""
    AcceleratorState._reset_state(True)
    recipe = load_recipe(
        {},
        {
            "data.dataset": "none",
            "model.name": model_type,
            "model.config": {"drop_path_rate": DROP_PATH_RATE, **(fields or {})},
            "heads.num_prototypes": num_prototypes,
            "run.batch_size": batch,
            "schedule.freeze_last_layer_epochs": 0,
            "optimizer.warmup_epochs": 0,
            "run.checkpointed_blocks": checkpointed_blocks,
            "run.mixed_precision": precision,
            "run.trackers": [],
        },
    )
    torch.manual_seed(0)
    schedules = StepSchedules.from_recipe(recipe, steps_per_epoch=1000, total_batch=batch)
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    return DistillationStep(recipe, build_parts(recipe), schedules, accelerator)


def prepare_ours(
    precision: str = "no",
    *,
    batch: int = BATCH,
    num_prototypes: int = NUM_PROTOTYPES,
    views: Sequence[tuple[int, int]] = VIEWS,
    checkpointed_blocks: int = 0,
) -> Run:
    step = build_step(
        precision,
        batch=batch,
        num_prototypes=num_prototypes,
        checkpointed_blocks=checkpointed_blocks,
    )
    crops = draw_crops(batch, views)

    def run() -> None:
        step.accumulate(crops, 2, 0, last=True)
        step.update(0)

    return run


Features = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""From a backbone and images to view features (B, C) and regions (B, N, C)."""


def transformers_features(backbone: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    # See benchmarks.peers.
    assert isinstance(backbone, SwinModel) and isinstance(backbone.config.image_size, int)
    output = backbone(pixels, always_partition=pixels.shape[-1] < backbone.config.image_size)
    return output.pooler_output, output.last_hidden_state


class PlainNetwork(nn.Module):
    """A backbone of another library and two plain heads."""

    def __init__(
        self,
        backbone: nn.Module,
        features: Features,
        channels: int = 768,
        num_prototypes: int = NUM_PROTOTYPES,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.view_head = reference.PlainHead(channels, num_prototypes)
        self.region_head = reference.PlainHead(channels, num_prototypes)

    def forward(self, crops: Sequence[Tensor]) -> reference.PlainOutput:
        pooled, regions = [], []
        for size in sorted({crop.shape[-1] for crop in crops}, reverse=True):
            group = [crop for crop in crops if crop.shape[-1] == size]
            views, tokens = self.features(self.backbone, torch.cat(group))
            pooled.append(views.unflatten(0, (len(group), -1)))
            regions.append(tokens.unflatten(0, (len(group), -1)))
        return reference.run_heads(self.view_head, self.region_head, torch.cat(pooled), regions)


def build_plain(
    build: Callable[[float], PlainNetwork], device: str = "cpu"
) -> tuple[PlainNetwork, PlainNetwork]:
    """Build the plain student and teacher with the same weights, from the rate of stochastic
    depth.
    """
    torch.manual_seed(0)
    student, teacher = (build(rate).to(device) for rate in (DROP_PATH_RATE, 0.0))
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    return student.train(), teacher


def prepare_plain() -> Run:
    student, teacher = build_plain(
        lambda rate: PlainNetwork(build_transformers(rate, "eager").module, transformers_features)
    )
    optimizer = torch.optim.AdamW(
        reference.parameter_groups(student), lr=1e-4, foreach=False, fused=False
    )
    centers = {name: torch.zeros(NUM_PROTOTYPES) for name in ("view", "region")}
    crops = draw_crops(BATCH)

    def run() -> None:
        with torch.no_grad():
            targets = teacher(crops[:2])
        loss = reference.plain_losses(student(crops), targets, centers)
        reference.update_center(centers["view"], targets.view_logits)
        reference.update_center(centers["region"], targets.region_logits)
        optimizer.zero_grad()
        loss.backward()
        reference.clip_gradients(student.parameters(), MAX_NORM)
        optimizer.step()
        reference.update_average(teacher.parameters(), student.parameters(), TEACHER_MOMENTUM)

    return run


def _after_a_step(run: Run) -> Run:
    """Count a step that has optimizer states already; the first one makes them."""

    def twice() -> None:
        run()
        run()

    return twice


OURS, CHECKPOINTED = "ours", "ours with checkpointed blocks"
PLAIN = "plain formula, transformers' Swin, loops, float32"
MEMORY_CASES: dict[str, Prepare] = {
    OURS: lambda: _after_a_step(prepare_ours()),
    CHECKPOINTED: lambda: _after_a_step(prepare_ours(checkpointed_blocks=CHECKPOINTED_BLOCKS)),
    PLAIN: lambda: _after_a_step(prepare_plain()),
}


def measure(rounds: int = 5) -> list[Row]:
    """Return the rows of this topic: time in three settings, memory in two."""
    memory = {case: peak_memory("step", case) for case in MEMORY_CASES}
    settings: dict[str, dict[str, tuple[float, int]]] = {
        # Accelerate knows one precision at a time, so that each has its own turns.
        "no": {"float32": (0.7, 0), CHECKPOINTED_LABEL: (0.7, CHECKPOINTED_BLOCKS)},
        "bf16": {"bf16 autocast": (0.35, 0)},
    }
    rows = []
    for precision, labels in settings.items():
        cases = {
            label: prepare_ours(precision, checkpointed_blocks=blocks)
            for label, (_, blocks) in labels.items()
        }
        seconds = interleave({**cases, PLAIN: prepare_plain()}, rounds=rounds)
        against = {PLAIN: seconds[PLAIN]}
        rows += [
            compare(TIME_ROWS[label], seconds[label], against, reach=labels[label][0])
            for label in labels
        ]
    for label, case in (("float32", OURS), (CHECKPOINTED_LABEL, CHECKPOINTED)):
        row_name = f"{NAME}, {label}: peak memory"
        against = {PLAIN: memory[PLAIN]}
        rows.append(compare(row_name, memory[case], against, reach=0.45, unit="MiB", scale=2**-20))
    return rows
