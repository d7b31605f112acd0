"""Clipping, AdamW and the teacher's average over the parameters of Swin-T, against loops over its
tensors.
"""

import copy

import torch

from benchmarks import reference
from benchmarks.measure import Row, Run, compare, interleave
from benchmarks.peers import build_ours
from esvit_hf.pretraining.ema import update_teacher
from esvit_hf.pretraining.optimizer import build_optimizer, clip_each_gradient

MAX_NORM = 3.0
MOMENTUM = 0.996
LEARNING_RATE = 1e-4


def prepare(fast: bool) -> Run:
    torch.manual_seed(0)
    student = build_ours().module
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer: torch.optim.AdamW
    if fast:
        optimizer = build_optimizer(student)
        for group, weight_decay in zip(optimizer.param_groups, (0.04, 0.0), strict=True):
            group.update(lr=LEARNING_RATE, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.AdamW(
            reference.parameter_groups(student), lr=LEARNING_RATE, foreach=False, fused=False
        )
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)

    def run() -> None:
        if fast:
            clip_each_gradient(student.parameters(), MAX_NORM)
            optimizer.step()
            update_teacher(teacher.parameters(), student.parameters(), MOMENTUM)
        else:
            reference.clip_gradients(student.parameters(), MAX_NORM)
            optimizer.step()
            reference.update_average(teacher.parameters(), student.parameters(), MOMENTUM)

    return run


def measure(rounds: int = 15) -> list[Row]:
    """Return the row of this topic."""
    loops = "loops over tensors"
    seconds = interleave({"ours": prepare(True), loops: prepare(False)}, rounds=rounds, warmup=2)
    return [
        compare(
            "clipping, AdamW and teacher average, Swin-T",
            seconds["ours"],
            {loops: seconds[loops]},
            reach=0.5,
            unit="ms",
            scale=1e3,
        )
    ]
