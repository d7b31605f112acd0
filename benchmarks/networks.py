"""Swin-T alone against transformers, timm and torchvision: evaluation, and multi-crop forward and
backward.
"""

from collections.abc import Callable

import torch

from benchmarks.measure import Row, Run, compare, interleave
from benchmarks.peers import BUILDERS, OURS, Network, build_ours, multi_crop_features

EVALUATION_BATCH = 8
TRAINING_BATCH = 4
TRAINING_ROW = (
    f"Swin-T forward and backward, 2 x 224 and 8 x 96 crops, batch {TRAINING_BATCH}, float32"
)


def forward_row(dtype: torch.dtype) -> str:
    """Name the row of the forward pass."""
    return (
        f"Swin-T forward at 224, batch {EVALUATION_BATCH}, evaluation, "
        f"{str(dtype).removeprefix('torch.')}"
    )


def prepare_forward(
    dtype: torch.dtype,
    build: Callable[[], Network] = build_ours,
    *,
    batch: int = EVALUATION_BATCH,
    device: str = "cpu",
) -> Run:
    torch.manual_seed(0)
    network = build()
    network.module.to(device, dtype).eval()
    pixels = torch.randn(batch, 3, 224, 224, dtype=dtype, device=device)

    def run() -> None:
        with torch.inference_mode():
            network.features(pixels)

    return run


def prepare_training(
    build: Callable[[], Network] = build_ours,
    *,
    precision: torch.dtype = torch.float32,
    batch: int = TRAINING_BATCH,
    device: str = "cpu",
) -> Run:
    torch.manual_seed(0)
    network = build()
    network.module.to(device).train()
    groups = [
        torch.randn(count * batch, 3, size, size, device=device)
        for count, size in ((2, 224), (8, 96))
    ]

    def run() -> None:
        network.module.zero_grad(set_to_none=True)
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            features = multi_crop_features(network, groups)
        features.square().mean().backward()

    return run


def evaluation_rows(rounds: int) -> list[Row]:
    rows = []
    for dtype, reach in ((torch.float32, 0.95), (torch.bfloat16, 0.9)):
        cases = {name: prepare_forward(dtype, build) for name, build in BUILDERS.items()}
        seconds = interleave(cases, rounds=rounds, warmup=2)
        ours = seconds.pop(OURS)
        rows.append(
            compare(
                forward_row(dtype),
                ours,
                seconds,
                reach=reach,
                unit="ms an image",
                scale=1e3 / EVALUATION_BATCH,
            )
        )
    return rows


def training_rows(rounds: int) -> list[Row]:
    builds = {name: build for name, build in BUILDERS.items() if name != "torchvision"}
    seconds = interleave(
        {name: prepare_training(build) for name, build in builds.items()}, rounds=rounds
    )
    return [compare(TRAINING_ROW, seconds.pop(OURS), seconds, reach=0.9)]


def measure(rounds: int = 9) -> list[Row]:
    """Return the rows of this topic."""
    return [*evaluation_rows(rounds), *training_rows(max(3, rounds // 3))]
