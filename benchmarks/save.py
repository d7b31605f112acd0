"""A checkpoint of Swin-T: how long training waits for it, how long it takes and how large it is,
against `torch.save` of the same tensors.

Both write beside the last one, flush what they write to the disk, and rename it. Ours also writes
a manifest with digests.
"""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.measure import Row, Run, compare, interleave
from benchmarks.step import build_step
from esvit_hf.pretraining.checkpoint import CheckpointWriter
from esvit_hf.pretraining.checkpoint_files import TENSOR_FILES, RunState, copy_state

NAME = "checkpoint of Swin-T and its heads"
OURS, COPY, PLAIN = "ours", "ours, the copy alone", "torch.save"


def prepare_plain(state: RunState, path: Path) -> Run:
    aside = path.with_suffix(".partial")

    def run() -> None:
        with aside.open("wb") as file:
            torch.save({name: state.tensors(name) for name in TENSOR_FILES}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    return run


def measure(rounds: int = 5) -> list[Row]:
    """Return the rows of this topic."""
    step = build_step()
    state = RunState(step.student, step.teacher, step.centers, step.optimizer, {})
    accelerator: Accelerator = step.accelerator
    folder = Path(tempfile.mkdtemp())
    writer = CheckpointWriter(accelerator, state, folder / "ours", kept=1)

    def run() -> None:
        writer.save(1)
        writer.wait()

    try:
        with writer:
            seconds = interleave(
                {
                    OURS: run,
                    COPY: lambda: copy_state(accelerator, state),
                    PLAIN: prepare_plain(state, folder / "plain.pt"),
                },
                rounds=rounds,
            )
            files = (path for path in writer.complete()[0].iterdir())
            size = sum(path.stat().st_size for path in files)
        plain_size = (folder / "plain.pt").stat().st_size
    finally:
        shutil.rmtree(folder)
    against = {PLAIN: seconds[PLAIN]}
    return [
        compare(f"{NAME}: time that training waits", seconds[COPY], against, reach=0.3),
        compare(f"{NAME}: time until it is complete", seconds[OURS], against, reach=1.5),
        compare(
            f"{NAME}: size",
            size,
            {PLAIN: plain_size},
            reach=1.01,
            unit="MiB",
            scale=2**-20,
        ),
    ]
