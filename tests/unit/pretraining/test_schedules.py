"""Weights of objectives that change during a run."""

import pytest

from esvit_hf.pretraining.schedules import weight_schedule


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
