"""What a step changes, and when; its numbers are followed in tests/parity."""

import pytest
import torch
from accelerate import Accelerator

from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.step import DistillationStep, StepSchedules

SHAPE = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


@pytest.fixture
def step():
    """Two epochs of one step; the regions join in the second."""
    recipe = load_recipe(
        {},
        {
            "data.dataset": "none",
            "data.views": [
                ViewSpec(count=2, size=32, scale=(0.4, 1.0), teacher=True),
                ViewSpec(count=1, size=16, scale=(0.1, 0.4)),
            ],
            "model.config": SHAPE | {"drop_path_rate": 0.0},
            "heads": {"num_prototypes": 16, "hidden_dim": 8, "bottleneck_dim": 4},
            "objectives.region.start_epoch": 1,
            "schedule.freeze_last_layer_epochs": 0,
            "optimizer.warmup_epochs": 0,
        },
    )
    torch.manual_seed(0)
    schedules = StepSchedules.from_recipe(recipe, steps_per_epoch=1, total_batch=4)
    return DistillationStep(recipe, build_parts(recipe), schedules, Accelerator(cpu=True))


def draw_crops():
    return [torch.randn(4, 3, side, side) for side in (32, 32, 16)]


def state(step):
    parts = {"student": step.student, "teacher": step.teacher, "centers": step.centers}
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def changed(step, before):
    return {name for name, value in state(step).items() if not torch.equal(value, before[name])}


def test_losses_change_nothing(step):
    before, crops = state(step), draw_crops()
    first, second = step.losses(crops, 2, 1), step.losses(crops, 2, 1)
    assert torch.equal(first.total, second.total)
    assert changed(step, before) == set() and not step.teacher_means
    assert all(parameter.grad is None for parameter in step.student.parameters())


def test_an_objective_that_has_not_started_stays_as_it_is(step):
    before = state(step)
    micro_batch = step.accumulate(draw_crops(), 2, 0, last=True)
    assert micro_batch.losses.keys() == {"view"}
    assert torch.equal(micro_batch.total.detach(), micro_batch.losses["view"])
    # Replicas wait for a gradient of every parameter.
    assert all(parameter.grad is not None for parameter in step.student.parameters())
    step.update(0)
    after_first = changed(step, before)
    assert {"student.heads.view.prototype_gain", "centers.view.center"} <= after_first
    assert not any("region" in name for name in after_first)
    before = state(step)
    assert step.accumulate(draw_crops(), 2, 1, last=True).losses.keys() == {"view", "region"}
    step.update(1)
    expected = {"student.heads.region.prototype_gain", "teacher.heads.region.layers.0.weight"}
    assert expected | {"centers.region.center"} <= changed(step, before)


def test_signals_are_named_after_their_objective(step):
    micro_batch = step.accumulate(draw_crops(), 2, 1, last=True)
    step.update(1)
    signals = step.signals(micro_batch)
    of_all = ["teacher_entropy", "mean_target_entropy", "teacher_spread", "center_norm"]
    assert list(signals) == [
        *(f"view_{name}" for name in of_all),
        *(f"region_{name}" for name in of_all),
        "region_match_diversity",
    ]
    torch.testing.assert_close(signals["view_center_norm"], step.center("view").center.norm())
