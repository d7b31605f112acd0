"""What a run's log says of steps that a gradient scaler skips."""

import json
import math

import pytest
import torch
from tests.support.small_runs import small_run

from esvit_hf.common.accelerator_state import own_accelerator_state
from esvit_hf.figures.training_curves import plot_training
from esvit_hf.pretraining import loop


def refuse_constant(text):
    raise AssertionError(f"{text} is no JSON")


@pytest.fixture
def scaled_accelerators(monkeypatch):
    """Accelerators with a gradient scaler on the CPU, which Accelerate has for GPUs alone."""

    def start(recipe):
        accelerator = loop_start(recipe)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-10)
        accelerator.scaler = scaler
        accelerator.unscale_gradients = lambda optimizer: scaler.unscale_(optimizer.optimizer)
        return accelerator

    loop_start = loop.make_accelerator
    monkeypatch.setattr(loop, "make_accelerator", start)


@own_accelerator_state()
def test_steps_that_overflow_are_counted_and_hold_nothing_back(scaled_accelerators, tmp_path):
    every = ("--run.logging_steps", "1", "--run.checkpoint_steps", "1")
    loop.pretrain(small_run(tmp_path, *every, "--run.checkpoints_kept", "9"))
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line, parse_constant=refuse_constant) for line in text]
    skipped = [line["skipped_steps"] for line in lines]
    assert len(lines) == 6 and 0 < skipped[-1] < 6
    for line, before, now in zip(lines, [0, *skipped], skipped, strict=False):
        assert ("gradient_norm" in line) == (now == before)
        assert math.isfinite(line["gradient_norm_peak"])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 6
    # Lines without a gradient norm do for the figure.
    assert plot_training(tmp_path / "metrics.jsonl", 32).figure.axes[0].lines
