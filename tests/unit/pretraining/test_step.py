"""What a step changes, and when; its numbers are followed in tests/parity."""

import random

import pytest
import torch
from accelerate import Accelerator
from tests.support.waits import refuse_waits

from esvit_hf.data.color import augment, pack_color_samples
from esvit_hf.data.views import ViewSpec, expand_views
from esvit_hf.pretraining.build import build_parts
from esvit_hf.pretraining.objectives.matching import center_targets
from esvit_hf.pretraining.objectives.position import CropBoxes
from esvit_hf.pretraining.objectives.region import region_loss
from esvit_hf.pretraining.objectives.settings import RegionMatching
from esvit_hf.pretraining.objectives.signals import teacher_entropy
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.step import DistillationStep, StepSchedules

SHAPE = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
VIEWS = [
    ViewSpec(count=2, size=32, scale=(0.4, 1.0), teacher=True),
    ViewSpec(count=1, size=16, scale=(0.1, 0.4)),
]


def make_step(accelerator=None, **fields):
    """Epochs of one step each."""
    recipe = load_recipe(
        {},
        {
            "data.dataset": "none",
            "data.views": VIEWS,
            "model.config": SHAPE | {"drop_path_rate": 0.0},
            "heads": {"num_prototypes": 16, "hidden_dim": 8, "bottleneck_dim": 4},
            "schedule.freeze_last_layer_epochs": 0,
            "optimizer.warmup_epochs": 0,
            **fields,
        },
    )
    torch.manual_seed(0)
    schedules = StepSchedules.from_recipe(recipe, steps_per_epoch=1, total_batch=4)
    accelerator = accelerator or Accelerator(cpu=True)
    return DistillationStep(recipe, build_parts(recipe), schedules, accelerator)


@pytest.fixture
def step():
    """The regions join in the second step."""
    return make_step(**{"objectives.region.start_epoch": 1})


def draw_crops(images=4):
    return [torch.randn(images, 3, side, side) for side in (32, 32, 16)]


def draw_boxes(images=4):
    return CropBoxes(torch.randint(1, 9, (3, images, 4)).float(), torch.rand(3, images) > 0.5)


def state(step):
    parts = {"student": step.student, "teacher": step.teacher, "centers": step.centers}
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def changed(step, before):
    return {name for name, value in state(step).items() if not torch.equal(value, before[name])}


def test_on_a_cpu_the_commonest_blocks_alone_are_compiled():
    shape = SHAPE | {"depths": [1, 2], "drop_path_rate": 0.0}
    step = make_step(**{"run.compile": True, "model.config": shape})
    for network in (step.student, step.teacher):
        stages = network.backbone.model.stages
        compiled = [["forward" in vars(block) for block in stage.blocks] for stage in stages]
        assert compiled == [[False], [True, True]]


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


def test_an_objective_whose_weight_has_fallen_to_nothing_stays_as_it_is():
    switch = {"weight_end": 0, "weight_shape": "switch", "weight_hold_epochs": 1}
    step = make_step(**{"objectives.region": switch})
    assert step.accumulate(draw_crops(), 2, 0, last=True).losses.keys() == {"view", "region"}
    step.update(0)
    before = state(step)
    micro_batch = step.accumulate(draw_crops(), 2, 1, last=True)
    assert torch.equal(micro_batch.total.detach(), micro_batch.losses["view"])
    step.update(1)
    # The teacher still follows the student.
    moved = {name for name in changed(step, before) if "region" in name}
    assert moved and all(name.startswith("teacher.") for name in moved)


@pytest.mark.parametrize(
    "matching",
    [
        RegionMatching("position"),
        RegionMatching("mixture", position_share=0.7, center_features=True),
        RegionMatching(image_center=0.5, min_regions=2),
    ],
    ids=str,
)
def test_places_and_settings_of_matching_reach_the_loss(matching):
    step = make_step(**{"objectives.region.matching": vars(matching)})
    torch.manual_seed(1)
    crops, boxes = draw_crops(), draw_boxes()
    found = step.losses(crops, 2, 0, boxes=boxes).losses["region"]
    objective = step.objectives["region"]
    student, teacher = step.student(crops, [objective]), step.teacher(crops[:2], [objective])
    assert student.grids == [(4, 4), (2, 2)]
    places = [
        CropBoxes(boxes.boxes[:2], boxes.mirrored[:2]).by_size([2], [(4, 4)])[0],
        CropBoxes(boxes.boxes[2:], boxes.mirrored[2:]).by_size([1], [(2, 2)])[0],
    ]
    networks = (student.projections["region"], teacher.projections["region"])
    student_head, teacher_head = step.student.head("region"), step.teacher.head("region")

    def loss(matching):
        return region_loss(
            *(networks[0].bottlenecks, networks[0].features, student_head.prototypes()),
            *(networks[1].bottlenecks, networks[1].features, teacher_head.prototypes()),
            *(step.center("region").center,),
            student_temperature=0.1,
            teacher_temperature=0.04,
            matching=matching,
            places=places,
        )

    torch.testing.assert_close(found, loss(matching).detach())
    assert not torch.isclose(found, loss(RegionMatching()), rtol=1e-5)


def test_a_rule_about_places_needs_them():
    step = make_step(**{"objectives.region.matching.rule": "position"})
    with pytest.raises(ValueError, match="'position' asks for places"):
        step.losses(draw_crops(), 2, 0)


def test_an_objective_has_prototypes_temperatures_and_center_of_its_own():
    own = {
        "num_prototypes": 24,
        "student_temperature": 0.2,
        "teacher_temperature": 0.09,
        "center_momentum": 0.5,
    }
    step = make_step(
        **{"objectives.region": own, "schedule.warmup_teacher_temperature_epochs": 3},
        **{"schedule.warmup_teacher_temperature": 0.05, "schedule.teacher_temperature": 0.07},
    )
    comparisons = step.losses(draw_crops(), 2, 1).comparisons
    for name, expected in (("view", (16, 0.1, 0.06, 0.9)), ("region", (24, 0.2, 0.07, 0.5))):
        comparison = comparisons[name]
        assert comparison.center.shape == (expected[0],)
        assert len(comparison.student_head.prototypes()) == expected[0]
        temperatures = comparison.student_temperature, comparison.teacher_temperature
        assert temperatures == pytest.approx(expected[1:3])
        assert step.center(name).momentum == expected[3]
    logged = step.schedules.values(1)
    assert logged["teacher_temperature"] == pytest.approx(0.06)
    assert logged["region_teacher_temperature"] == pytest.approx(0.07)
    assert (logged["view_weight"], logged["region_weight"]) == (0.5, 0.5)


def test_what_regions_tell_apart_is_reported_if_there_are_enough():
    step = make_step(**{"objectives.region.matching.image_center": 1.0})
    micro_batch = step.accumulate(draw_crops(8), 2, 0, last=True)
    step.update(0)
    signals = step.signals(micro_batch)
    comparison = micro_batch.comparisons["region"]
    regions = comparison.teacher.features[0][0]
    centered = regions - regions.mean((0, 1))
    share = centered.mean(1).square().sum(1).mean() / centered.square().sum(2).mean()
    torch.testing.assert_close(signals["region_image_share"], share)
    assert 0 < signals["region_place_share"] < 1 < signals["region_effective_dimensions"]
    # Entropies are those of the targets that the loss takes.
    targets, center = center_targets(
        RegionMatching(image_center=1.0), comparison.teacher.bottlenecks, comparison.center
    )
    entropy, _ = teacher_entropy(
        targets[0][:, :1], comparison.teacher_head.prototypes(), center, 0.04
    )
    torch.testing.assert_close(signals["region_teacher_entropy"], entropy)


def make_accelerator(precision):
    """Accelerate itself has float16 on GPUs alone."""
    if precision != "fp16":
        return Accelerator(cpu=True, mixed_precision=precision)
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision, accelerator.native_amp = precision, True
    accelerator.scaler = torch.amp.GradScaler("cpu")
    return accelerator


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_step_never_waits_for_a_device(monkeypatch, precision):
    step = make_step(make_accelerator(precision), **{"optimizer.clip_gradient": 3.0})
    generator = random.Random(0)
    colors = [
        pack_color_samples([view.sample_color(generator) for _ in range(4)])
        for view in expand_views(VIEWS)
    ]

    def take_step(number):
        crops = [
            augment(torch.randint(0, 256, (4, 3, view.size, view.size)), parameters)
            for view, parameters in zip(expand_views(VIEWS), colors, strict=True)
        ]
        micro_batch = step.accumulate(crops, 2, number, last=True)
        step.update(number)
        step.signals(micro_batch)

    take_step(0)
    with refuse_waits(monkeypatch):
        take_step(1)
