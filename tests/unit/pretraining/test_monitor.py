"""What the numbers of a run are, and when they raise an alarm."""

import math
import warnings

import pytest
import torch

from esvit_hf.pretraining.monitor import (
    PATIENCE,
    RunMonitor,
    match_diversity,
    output_spread,
    teacher_entropy,
)

SOUND = {
    "loss": 2.0,
    "loss_peak": 2.1,
    "gradient_norm": 1.0,
    "gradient_norm_peak": 2.0,
    "view_teacher_entropy": 1.0,
    "view_mean_target_entropy": 1.5,
    "view_teacher_spread": 0.5,
    "region_match_diversity": 0.4,
}


def read(monitor, readings, start=1):
    for step, values in enumerate(readings, start):
        monitor.update(SOUND | values, step)


def test_entropy_of_uniform_and_of_constant_targets():
    prototypes, center = torch.eye(8), torch.zeros(8)
    single, mean = teacher_entropy(torch.zeros(5, 8), prototypes, center, 0.1)
    torch.testing.assert_close(torch.stack([single, mean]), torch.full((2,), math.log(8)))
    single, mean = teacher_entropy(torch.eye(8)[:1].expand(5, 8) * 100, prototypes, center, 0.1)
    torch.testing.assert_close(torch.stack([single, mean]), torch.zeros(2))


def test_spread_is_one_on_the_sphere_and_zero_for_one_output():
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(20000, 16), dim=1)
    torch.testing.assert_close(
        output_spread(rows.view(2, -1, 16)), torch.tensor(1.0), atol=0.01, rtol=0
    )
    assert output_spread(rows[:1].expand(50, -1)) < 1e-6


def test_diversity_counts_the_regions_chosen():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 2, 5, 4), torch.randn(2, 2, 7, 4)
    shares = [
        len(
            {
                (teacher[q, b] @ row / teacher[q, b].norm(dim=1)).argmax().item()
                for row in student[v, b]
            }
        )
        / 7
        for v in range(3)
        for q in range(2)
        for b in range(2)
        if v != q
    ]
    torch.testing.assert_close(match_diversity(student, teacher), torch.tensor(shares).mean())
    same = torch.randn(2, 2, 5, 4)
    torch.testing.assert_close(match_diversity(same.flip(0), same), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"view_teacher_entropy": math.log(8)}, "uniform.*lower teacher_temperature"),
        ({"view_mean_target_entropy": 0.1}, "same target.*lower center_momentum"),
        ({"view_teacher_spread": 0.001}, "same for every image.*lower learning_rate"),
        ({"region_match_diversity": 0.001}, "same region.*lower learning_rate"),
    ],
)
def test_a_collapse_is_named_once_after_some_readings(values, message):
    monitor = RunMonitor(8, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(monitor, [{}, *[values] * (PATIENCE - 1), {}, *[values] * (PATIENCE - 1)])
    with pytest.warns(UserWarning, match=message) as caught:
        read(monitor, [values] * 3)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_peak": 3.2}, "the loss jumped.*lower learning_rate"),
        ({"gradient_norm_peak": 11.0}, "norm jumped"),
    ],
)
def test_a_spike_is_named_at_once(values, message):
    monitor = RunMonitor(8, 1.0)
    read(monitor, [{}] * 10)
    with pytest.warns(UserWarning, match=message):
        read(monitor, [values])
    assert not monitor.alarmed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": 1.2 * math.log(8)}, "untrained student.*lower learning_rate"),
        ({"gradient_norm": 101.0}, "exploded.*lower learning_rate"),
        ({"loss_scale": 0.5}, "overflow.*bf16"),
    ],
)
def test_a_diverged_run_stops_and_its_last_sound_step_is_known(values, message):
    monitor = RunMonitor(8, 1.0)
    read(monitor, [{}] * 12)
    read(monitor, [values] * (PATIENCE - 1), start=13)
    assert monitor.alarmed
    restored = RunMonitor(8, 1.0)
    restored.load_state_dict(monitor.state_dict())
    with pytest.raises(FloatingPointError, match=message):
        read(restored, [values], start=12 + PATIENCE)
    assert restored.proven_step == 11


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss_peak", "gradient_norm_peak"])
def test_a_number_that_is_not_finite_stops_the_run(name, value):
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        RunMonitor(8, 1.0).update(SOUND | {name: value}, 3)


def test_a_float16_run_skips_steps_that_overflow():
    RunMonitor(8, 1.0).update(SOUND | {"gradient_norm_peak": float("inf"), "loss_scale": 1024.0}, 3)


def test_peaks_of_single_steps_reach_the_reading():
    monitor = RunMonitor(8, 1.0)
    for loss, norm in ((1.0, 5.0), (7.0, 2.0), (3.0, 4.0)):
        monitor.observe(torch.tensor(loss), torch.tensor(norm))
    assert monitor.peaks.tolist() == [7.0, 5.0]
    monitor.update(SOUND, 1)
    assert monitor.peaks.tolist() == [0.0, 0.0]
