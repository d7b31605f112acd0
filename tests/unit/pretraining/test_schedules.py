"""Weights of objectives that change during a run."""

import pytest

from esvit_hf.pretraining.objectives.settings import ObjectiveSettings
from esvit_hf.pretraining.schedules import loss_weights, weight_schedule


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.5, 0.5, 0.5, 0.4, 0.3, 0.2]),
        ("cosine", [0.5, 0.5, 0.5, 0.3 + 0.2 * 0.5**0.5, 0.3, 0.3 - 0.2 * 0.5**0.5]),
        ("switch", [0.5, 0.5, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_a_weight_is_held_and_then_goes_to_its_end(shape, expected):
    value = weight_schedule(0.5, 0.1, shape, 6, hold_steps=2)
    assert [value(step) for step in range(6)] == pytest.approx(expected)
    assert value(6) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", ["linear", "cosine", "switch"])
def test_a_weight_that_is_held_to_the_end_does_not_change(shape):
    value = weight_schedule(0.5, 0.0, shape, 4, hold_steps=4)
    assert [value(step) for step in range(4)] == [0.5] * 4


def test_a_rising_weight_without_hold():
    value = weight_schedule(0.0, 1.0, "linear", 4)
    assert [value(step) for step in range(4)] == [0, 0.25, 0.5, 0.75]


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'quadratic': set it to one of linear, cosine, switch"):
        weight_schedule(0.5, 0.0, "quadratic", 10)


def weights(*settings, num_epochs=4, steps_per_epoch=1):
    objectives = {str(number): ObjectiveSettings(**each) for number, each in enumerate(settings)}
    return loss_weights(objectives, num_epochs, steps_per_epoch)


def test_objectives_carry_the_weight_of_those_that_have_not_started():
    late = {"weight": 0.6, "start_epoch": 2}
    three = weights({"weight": 0.3}, {"weight": 0.1}, late, steps_per_epoch=5)
    for step in (0, 9):
        assert three(step) == pytest.approx({"0": 0.75, "1": 0.25})
    assert three(10) == {"0": 0.3, "1": 0.1, "2": 0.6}


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.1, 0.2), (1.0, 0.7)])
def test_one_objective_carries_the_weight_of_two_exactly(first, second):
    assert weights({"weight": first}, {"weight": second, "start_epoch": 1})(0) == {
        "0": first + second
    }


def test_what_an_objective_gives_up_the_others_carry():
    falling = {"weight_end": 0.0, "weight_shape": "linear", "weight_hold_epochs": 1}
    two = weights({}, falling, steps_per_epoch=2)
    found = [two(step) for step in range(8)]
    own = [0.5] * 3 + [part / 12 for part in (5, 4, 3, 2, 1)]
    assert [each["1"] for each in found] == pytest.approx([each / (0.5 + each) for each in own])
    assert [sum(each.values()) for each in found] == pytest.approx([1.0] * 8)
    switched = weights({}, {"weight_end": 0.0, "weight_shape": "switch", "weight_hold_epochs": 2})
    assert [switched(step) for step in range(4)] == [{"0": 0.5, "1": 0.5}] * 2 + [{"0": 1.0}] * 2


def test_a_switch_from_nothing_is_a_start_epoch():
    joined = {"weight": 0.0, "weight_end": 0.5, "weight_shape": "switch", "weight_hold_epochs": 2}
    for step in range(4):
        assert weights({}, joined)(step) == weights({}, {"start_epoch": 2})(step)
