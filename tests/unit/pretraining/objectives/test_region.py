"""The region loss against full logits, and what the objective reports beside it."""

import pytest
import torch
from torch.nn import functional as F

from esvit_hf.pretraining.objectives.matching import pair_regions
from esvit_hf.pretraining.objectives.position import CropPlaces
from esvit_hf.pretraining.objectives.region import match_diversity, region_loss
from esvit_hf.pretraining.objectives.settings import RegionMatching

IMAGES, PROTOTYPES = 3, 20
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def draw_regions(views, regions):
    """Bottlenecks and features."""
    bottleneck = F.normalize(draw(views, IMAGES, regions, 6), dim=-1)
    return bottleneck.requires_grad_(), draw(views, IMAGES, regions, 4)


@pytest.fixture
def arguments():
    student, student_features = zip(draw_regions(2, 4), draw_regions(2, 1), strict=True)
    teacher, teacher_features = draw_regions(2, 4)
    return {
        "student": student,
        "student_features": student_features,
        "prototypes": draw(PROTOTYPES, 6).requires_grad_(),
        "teacher": [teacher.detach() + 0.3],
        "teacher_features": [teacher_features],
        "teacher_prototypes": draw(PROTOTYPES, 6),
        "center": draw(PROTOTYPES) / 5,
        "gain": 1 + draw(PROTOTYPES, 1).abs(),
        "teacher_gain": 1 + draw(PROTOTYPES, 1).abs() / 2,
    }


def draw_places(arguments):
    return [
        CropPlaces(draw(*group.shape[:2], 4).abs(), draw(*group.shape[:2]) > 0, grid)
        for group, grid in zip(arguments["student_features"], [(2, 2), (1, 1)], strict=True)
    ]


def full_loss(arguments, matching, places):
    """The loss with every logit at once; the mean logit of an image is one of logits."""
    logits = []
    for side, name in (("student", ""), ("teacher", "teacher_")):
        prototypes = F.normalize(arguments[f"{name}prototypes"], dim=1) * arguments[f"{name}gain"]
        logits.append([group @ prototypes.T for group in arguments[side]])
    student, (teacher,) = logits
    mean = teacher.mean(dim=(0, 2), keepdim=True)
    center = (1 - matching.image_center) * arguments["center"] + matching.image_center * mean
    targets = ((teacher - center) / 0.05).softmax(dim=-1).flatten(0, 2)
    kept = [group.flatten(0, 2) for group in student if group.shape[2] >= matching.min_regions]
    log_student = (torch.cat(kept) / 0.1).log_softmax(dim=-1)
    match, weight = pair_regions(
        arguments["student_features"],
        arguments["teacher_features"],
        torch.float64,
        matching,
        places,
    )
    return -(weight[..., None] * targets[match] * log_student[:, None]).sum()


@pytest.mark.parametrize(
    "matching",
    [
        RegionMatching(image_center=1.0),
        RegionMatching(image_center=0.3, min_regions=2),
        RegionMatching("position", image_center=0.5),
        RegionMatching("mixture", center_features=True),
    ],
    ids=str,
)
def test_settings_reach_the_loss_and_its_gradients(arguments, matching):
    places = draw_places(arguments)
    variables = [*arguments["student"], arguments["prototypes"]]
    loss = region_loss(**arguments, **TEMPERATURES, matching=matching, places=places)
    expected = full_loss(arguments, matching, places)
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, full_loss(arguments, RegionMatching(), None))
    torch.testing.assert_close(
        torch.autograd.grad(loss, variables, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(expected, variables, materialize_grads=True, allow_unused=True),
    )


def test_regions_that_are_all_alike_have_uniform_targets_with_their_own_center(arguments):
    alike = {"teacher": [arguments["teacher"][0][:, :, :1].mean(0, True).expand(2, -1, 4, -1)]}
    loss = region_loss(
        **arguments | alike, **TEMPERATURES, matching=RegionMatching(image_center=1.0)
    )
    # Of all students the one whose distributions are uniform then has the lowest loss.
    assert loss > torch.tensor(float(PROTOTYPES)).log()
    same = {"prototypes": arguments["prototypes"][:1].expand(PROTOTYPES, -1), "gain": None}
    loss = region_loss(
        **arguments | alike | same, **TEMPERATURES, matching=RegionMatching(image_center=1.0)
    )
    assert loss.item() == pytest.approx(torch.tensor(float(PROTOTYPES)).log().item())


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
