"""Swin-T on a GPU, alone and in whole pretraining steps, against the other libraries and the plain
formula; in bf16.

`python -m benchmarks.gpu` prints the table of docs/performance.md and writes
`benchmarks/results/gpu.json`. The plain formula gets what makes it fast here: fused attention, a
fused AdamW, clipping and averaging of many tensors at once. Memory is the allocator's peak in a
step, with weights and the optimizer's state.
"""

import gc
import json
from collections.abc import Callable
from functools import partial

import torch
from jsonargparse import auto_cli

from benchmarks import reference
from benchmarks.measure import MEBIBYTE, Row, Run, compare, interleave
from benchmarks.networks import prepare_forward, prepare_training
from benchmarks.peers import BUILDERS, OURS
from benchmarks.run import RESULTS, describe_machine, format_table
from benchmarks.step import (
    MAX_NORM,
    NUM_PROTOTYPES,
    TEACHER_MOMENTUM,
    build_plain,
    draw_crops,
    prepare_ours,
)
from esvit_hf.pretraining.optimizer import clip_each_gradient

DEVICE = "cuda"
EVALUATION_BATCH = 256
PLAIN = "plain formula, transformers' Swin"
OUT_OF_MEMORY = float("inf")


def prepare_plain(batch: int) -> Run:
    student, teacher = build_plain("sdpa", DEVICE)
    optimizer = torch.optim.AdamW(reference.parameter_groups(student), lr=1e-4, fused=True)
    centers = {name: torch.zeros(NUM_PROTOTYPES, device=DEVICE) for name in ("view", "region")}
    crops = [crop.to(DEVICE) for crop in draw_crops(batch)]

    def run() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            with torch.no_grad():
                targets = teacher(crops[:2])
            loss = reference.plain_losses(student(crops), targets, centers)
            reference.update_center(centers["view"], targets.view_logits)
            reference.update_center(centers["region"], targets.region_logits)
        optimizer.zero_grad()
        loss.backward()
        clip_each_gradient(student.parameters(), MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(teacher.parameters()), list(student.parameters()), 1 - TEACHER_MOMENTUM
            )

    return run


def to_the_end(run: Run) -> Run:
    """Let a case wait until the device has done its work."""

    def waiting() -> None:
        run()
        torch.cuda.synchronize()

    return waiting


def peak(prepare: Callable[[], Run]) -> float:
    """Return the largest memory in bytes that a second run of a case takes, what it was prepared
    with included.
    """
    gc.collect()
    torch.cuda.empty_cache()
    run = prepare()
    try:
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    return float(torch.cuda.max_memory_allocated())


def network_rows(rounds: int, batch: int) -> list[Row]:
    forward = {
        name: prepare_forward(torch.bfloat16, build, batch=EVALUATION_BATCH, device=DEVICE)
        for name, build in BUILDERS.items()
    }
    # The peers of the same row in benchmarks.networks.
    training = {
        name: prepare_training(build, precision=torch.bfloat16, batch=batch, device=DEVICE)
        for name, build in BUILDERS.items()
        if name != "torchvision"
    }
    rows = []
    for name, cases, images in (
        (f"Swin-T forward at 224, batch {EVALUATION_BATCH}, evaluation", forward, EVALUATION_BATCH),
        (f"Swin-T forward and backward, 2 x 224 and 8 x 96 crops, batch {batch}", training, batch),
    ):
        seconds = interleave(
            {peer: to_the_end(run) for peer, run in cases.items()}, rounds=rounds, warmup=3
        )
        ours = seconds.pop(OURS)
        rows.append(compare(name, ours, seconds, reach=1.0, unit="ms an image", scale=1e3 / images))
    return rows


def step_rows(rounds: int, batch: int) -> list[Row]:
    name = f"pretraining step, Swin-T, batch {batch}, K {NUM_PROTOTYPES}"
    cases = {
        OURS: partial(prepare_ours, "bf16", batch=batch, device=DEVICE),
        PLAIN: partial(prepare_plain, batch),
    }
    memory = {case: peak(prepare) for case, prepare in cases.items()}
    runs = {
        case: to_the_end(prepare())
        for case, prepare in cases.items()
        if memory[case] < OUT_OF_MEMORY
    }
    seconds = interleave(runs, rounds=rounds, warmup=3)
    rows = [
        compare(
            f"{name}: peak memory",
            memory.pop(OURS),
            memory,
            reach=1.0,
            unit="MiB",
            scale=1 / MEBIBYTE,
        )
    ]
    peers = {PLAIN: seconds.get(PLAIN, OUT_OF_MEMORY)}
    return [
        compare(
            f"{name}: time", seconds[OURS], peers, reach=1.0, unit="ms an image", scale=1e3 / batch
        ),
        *rows,
    ]


def main(rounds: int = 9, batches: tuple[int, ...] = (32, 64)) -> None:
    """Measure everything, print the table and write it.

    Args:
        rounds: runs of each case that count.
        batches: images in a pretraining step; the last one is that of the network's own row too.
    """
    rows = network_rows(rounds, batches[-1])
    for batch in batches:
        rows += step_rows(rounds, batch)
    report = {"machine": describe_machine(), "rows": [row.to_dict() for row in rows]}
    (RESULTS / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    print(format_table(rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
