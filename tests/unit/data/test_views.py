"""View specifications: the paper's values, what they draw, and what they refuse."""

import random

import numpy as np
import pytest

from esvit_hf.data.color import JITTER_ORDERS, NO_JITTER
from esvit_hf.data.views import ViewSpec, dino_views, expand_views


def test_dino_views_are_those_of_the_paper() -> None:
    first, second, local = dino_views()
    assert (first.count, first.size, first.scale, first.teacher) == (1, 224, (0.4, 1.0), True)
    assert (second.count, second.size, second.scale, second.teacher) == (1, 224, (0.4, 1.0), True)
    assert (local.count, local.size, local.scale, local.teacher) == (8, 96, (0.05, 0.4), False)
    assert [view.blur_probability for view in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [view.solarize_probability for view in (first, second, local)] == [0.0, 0.2, 0.0]
    for view in (first, second, local):
        assert view.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter_probability, view.gray_probability, view.flip_probability) == (
            0.8,
            0.2,
            0.5,
        )
        assert view.blur_sigma == (0.1, 2.0)


def test_no_local_views() -> None:
    assert [view.teacher for view in dino_views(local_count=0)] == [True, True]


def test_expanded_views_have_the_teachers_first() -> None:
    local = ViewSpec(count=2, size=8, scale=(0.1, 0.2))
    first = ViewSpec(count=1, size=16, scale=(0.5, 1.0), teacher=True)
    views = expand_views([local, first, ViewSpec(count=1, size=32, scale=(0.5, 1.0), teacher=True)])
    assert [(view.size, view.count) for view in views] == [(16, 1), (32, 1), (8, 1), (8, 1)]
    with pytest.raises(ValueError, match="set teacher=True"):
        expand_views([local])


def test_lists_of_a_recipe_become_tuples() -> None:
    view = ViewSpec(count=1, size=8, scale=[0.5, 1], jitter=[0, 0, 0, 0])  # type: ignore[arg-type]
    assert view.scale == (0.5, 1.0)
    assert hash(view)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 0),
        ("count", 1.5),
        ("size", -8),
        ("size", True),
        ("scale", (0.0, 1.0)),
        ("scale", (0.6, 0.4)),
        ("scale", (0.5, 1.1)),
        ("scale", (0.5,)),
        ("scale", "big"),
        ("scale", 0.5),
        ("blur_probability", 1.2),
        ("solarize_probability", -0.1),
        ("flip_probability", "often"),
        ("jitter_probability", 2),
        ("gray_probability", float("nan")),
        ("jitter", (0.4, 0.4, 0.2, 0.6)),
        ("jitter", (-0.1, 0.4, 0.2, 0.1)),
        ("jitter", (0.4, 0.4, 0.2)),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (2.0, 1.0)),
        ("blur_sigma", (float("nan"), 1.0)),
    ],
)
def test_bad_values_are_named_with_a_rule(field: str, value: object) -> None:
    settings = {"count": 1, "size": 8, "scale": (0.5, 1.0)} | {field: value}
    with pytest.raises(ValueError, match=rf"^{field}\b.* must .*; it is "):
        ViewSpec(**settings)  # type: ignore[arg-type]


def test_all_bad_values_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"^count must .*; size must .*; scale\[1\] must "):
        ViewSpec(count=0, size=-8, scale=(0.5, 2.0))


def test_drawn_color_operations_have_the_asked_distribution() -> None:
    view = ViewSpec(
        count=1,
        size=8,
        scale=(0.5, 1.0),
        jitter=(0.4, 0.3, 0.2, 0.1),
        blur_probability=0.3,
        solarize_probability=0.2,
    )
    generator = random.Random(0)
    count = 20_000
    samples = [view.sample_color(generator) for _ in range(count)]
    jittered = [sample for sample in samples if sample.order != NO_JITTER]
    blurred = [sample.blur_sigma for sample in samples if sample.blur_sigma]

    def near(share: float, probability: float, trials: int) -> bool:
        return abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / trials)

    assert near(len(jittered) / count, 0.8, count)
    assert near(len(blurred) / count, 0.3, count)
    assert near(sum(sample.grayscale for sample in samples) / count, 0.2, count)
    assert near(sum(sample.solarize for sample in samples) / count, 0.2, count)
    orders = np.bincount([sample.order for sample in jittered], minlength=len(JITTER_ORDERS))
    assert all(near(share, 1 / 24, len(jittered)) for share in orders / len(jittered))
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.7, 1.3),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    uniforms = {name: [getattr(sample, name) for sample in jittered] for name in ranges}
    for values, (low, high) in [
        *((uniforms[name], ranges[name]) for name in ranges),
        (blurred, (0.1, 2.0)),
    ]:
        assert low <= min(values) < max(values) <= high
        quarters = np.histogram(values, bins=4, range=(low, high))[0] / len(values)
        assert all(near(share, 0.25, len(values)) for share in quarters)
    matrix = np.corrcoef([uniforms[name] for name in ranges])
    assert np.abs(matrix - np.eye(4)).max() < 4 / np.sqrt(len(jittered))


def test_brightness_factors_never_fall_below_zero() -> None:
    view = ViewSpec(
        count=1, size=8, scale=(0.5, 1.0), jitter=(3.0, 0, 0, 0), jitter_probability=1.0
    )
    drawn = [view.sample_color(random.Random(seed)).brightness for seed in range(200)]
    assert min(drawn) >= 0
    assert 3 < max(drawn) <= 4
