"""What the numbers of a run are, and when they raise an alarm."""

import math
import warnings

import pytest
import torch

from esvit_hf.pretraining.monitor import PATIENCE, RunMonitor
from esvit_hf.pretraining.objectives.registry import build_objectives, default_objectives

SOUND = {
    "loss": 2.0,
    "loss_peak": 2.1,
    "gradient_norm": 1.0,
    "gradient_norm_peak": 2.0,
    "view_teacher_entropy": 1.0,
    "view_mean_target_entropy": 1.5,
    "view_teacher_spread": 0.5,
    "region_match_diversity": 0.4,
    "region_image_share": 0.5,
    "region_place_share": 0.1,
}


def make_monitor():
    objectives = build_objectives(default_objectives())
    return RunMonitor(math.log(8), {name: each.rules(8) for name, each in objectives.items()})


def read(monitor, readings, start=1):
    for step, values in enumerate(readings, start):
        monitor.update(SOUND | values, step)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"view_teacher_entropy": math.log(8)}, "uniform.*lower schedule.teacher_temperature"),
        ({"view_mean_target_entropy": 0.1}, "same target.*lower heads.center_momentum"),
        ({"view_teacher_spread": 0.001}, "same for every image.*lower optimizer.learning_rate"),
        ({"region_match_diversity": 0.001}, "same region.*lower optimizer.learning_rate"),
        ({"region_image_share": 0.95}, r"alike.*set objectives\.region\.matching\.image_center"),
        ({"region_place_share": 0.6}, r"where they are.*objectives\.region\.matching\.rule to pos"),
    ],
)
def test_a_collapse_is_named_once_after_some_readings(values, message):
    monitor = make_monitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(monitor, [{}, *[values] * (PATIENCE - 1), {}, *[values] * (PATIENCE - 1)])
    with pytest.warns(UserWarning, match=message) as caught:
        read(monitor, [values] * 3)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_peak": 3.2}, "the loss jumped.*lower optimizer.learning_rate"),
        ({"gradient_norm_peak": 11.0}, "norm jumped"),
    ],
)
def test_a_spike_is_named_at_once(values, message):
    monitor = make_monitor()
    read(monitor, [{}] * 10)
    with pytest.warns(UserWarning, match=message):
        read(monitor, [values])
    assert not monitor.alarmed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": 1.2 * math.log(8)}, "untrained student.*lower optimizer.learning_rate"),
        ({"gradient_norm": 101.0}, "exploded.*lower optimizer.learning_rate"),
        ({"loss_scale": 0.5}, "overflow.*bf16"),
    ],
)
def test_a_diverged_run_stops_and_its_last_sound_step_is_known(values, message):
    monitor = make_monitor()
    read(monitor, [{}] * 12)
    read(monitor, [values] * (PATIENCE - 1), start=13)
    assert monitor.alarmed
    restored = make_monitor()
    restored.load_state_dict(monitor.state_dict())
    with pytest.raises(FloatingPointError, match=message):
        read(restored, [values], start=12 + PATIENCE)
    assert restored.proven_step == 11


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss_peak", "gradient_norm_peak"])
def test_a_number_that_is_not_finite_stops_the_run(name, value):
    with pytest.raises(FloatingPointError, match="lower optimizer.learning_rate"):
        make_monitor().update(SOUND | {name: value}, 3)


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_step_that_is_skipped_is_no_sign_of_a_bad_run(norm):
    monitor = make_monitor()
    read(monitor, [{}] * 20)
    without_norm = {name: value for name, value in SOUND.items() if name != "gradient_norm"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.observe(torch.tensor(2.0), torch.tensor(norm), scaled=True)
        monitor.update(without_norm | {"gradient_norm_peak": monitor.peaks[1].item()}, 21)
    assert not monitor.alarmed and monitor.proven_step == 20
    monitor.observe(torch.tensor(2.0), torch.tensor(norm), scaled=False)
    with pytest.raises(FloatingPointError, match="gradient norm is"):
        monitor.update(SOUND | {"gradient_norm_peak": monitor.peaks[1].item()}, 22)


def test_peaks_of_single_steps_reach_the_reading():
    monitor = make_monitor()
    for loss, norm in ((1.0, 5.0), (7.0, 2.0), (3.0, 4.0)):
        monitor.observe(torch.tensor(loss), torch.tensor(norm), scaled=False)
    assert monitor.peaks.tolist() == [7.0, 5.0]
    monitor.update(SOUND, 1)
    assert monitor.peaks.tolist() == [0.0, 0.0]
