"""Which rows are compared, and how much each pair counts."""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from esvit_hf.pretraining.objectives.matching import (
    count_view_pairs,
    different_views,
    match_by_feature,
    pair_regions,
)
from esvit_hf.pretraining.objectives.position import CropPlaces, match_by_position
from esvit_hf.pretraining.objectives.settings import RegionMatching


def test_pairs_of_views_are_those_of_different_views():
    compared = different_views(range(3), range(2), torch.device("cpu"))
    assert compared.tolist() == [[False, True], [True, False], [True, True]]
    assert different_views(range(1, 3), range(1, 2), compared.device).tolist() == [[False], [True]]
    assert count_view_pairs([range(3)], [range(2)]) == compared.sum() == 4
    assert count_view_pairs([range(1), range(2, 4)], [range(1), range(1, 2)]) == 5


@pytest.mark.parametrize("views", [([range(1)], [range(1)]), ([range(3)], [])])
def test_views_without_a_pair_are_refused(views):
    with pytest.raises(ValueError, match="form no pair"):
        count_view_pairs(*views)


def test_the_most_similar_feature_is_found_whatever_its_length():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    nearest = match_by_feature(student, teacher * (0.1 + torch.rand(2, 3, 7, 1)))
    for view in range(2):
        for image in range(3):
            for region in range(5):
                cosines = F.cosine_similarity(student[view, image, region], teacher[view, image])
                assert nearest[view, image, region] == cosines.argmax()


def test_similarity_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 200, 16), torch.randn(2, 300, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = match_by_feature(student, teacher)
    assert torch.equal(rounded, match_by_feature(student, teacher))


@dataclass
class Case:
    """Crops of 2 x 2, 1 x 2 and one region; the teacher sees the two first and the third."""

    student: list[torch.Tensor]
    teacher: list[torch.Tensor]
    places: list[CropPlaces]


IMAGES, GROUPS, TEACHER_GROUPS = (
    2,
    [(2, (2, 2)), (2, (1, 2)), (1, (1, 1))],
    [(2, (2, 2)), (1, (1, 2))],
)


def draw_case():
    generator = torch.Generator().manual_seed(0)

    def features(views, grid):
        return 1 + torch.randn(views, IMAGES, math.prod(grid), 5, generator=generator)

    def place(views, grid):
        corners = torch.randint(0, 30, (views, IMAGES, 2), generator=generator)
        sides = torch.randint(10, 30, (views, IMAGES, 2), generator=generator)
        mirrored = torch.rand(views, IMAGES, generator=generator) < 0.5
        return CropPlaces(torch.cat([corners, sides], dim=2).float(), mirrored, grid)

    return Case(
        [features(*group) for group in GROUPS],
        [features(*group) for group in TEACHER_GROUPS],
        [place(*group) for group in GROUPS],
    )


@dataclass
class Crop:
    """One view of one image."""

    view: int
    features: torch.Tensor
    places: CropPlaces


def crops_of_image(groups, places, image, matching):
    """The crops of one image that take part; features less their mean if the matching says so."""
    mean = torch.cat([group[:, image].flatten(0, 1) for group in groups]).mean(dim=0)
    crops = []
    for group, where in zip(groups, places, strict=False):
        for slot, view in enumerate(group[:, image]):
            one = slice(slot, slot + 1), slice(image, image + 1)
            place = CropPlaces(where.boxes[one], where.mirrored[one], where.grid)
            features = view - mean if matching.center_features else view
            crops.append(Crop(len(crops), features, place))
    return [crop for crop in crops if len(crop.features) >= matching.min_regions]


def plain_pairs(case, matching):
    """What each student region learns from, one pair of regions at a time: weights by (view, image,
    region) of the student and of the teacher.
    """
    weights = {}
    for image in range(IMAGES):
        student = crops_of_image(case.student, case.places, image, matching)
        teacher = crops_of_image(case.teacher, case.places, image, matching)
        pairs = [(own, other) for own in student for other in teacher if own.view != other.view]
        found = defaultdict(float)
        for own, other in pairs:
            index, overlaps = match_by_position(own.places, other.places)
            for region, feature in enumerate(own.features):
                nearest = F.cosine_similarity(feature, other.features).argmax().item()
                share = {"feature": 0.0, "position": 1.0}.get(
                    matching.rule, matching.position_share
                )
                share *= overlaps[0, 0, 0, region].item()
                weight = 1 / len(own.features) / len(pairs)
                source = own.view, image, region
                found[source, (other.view, image, index[0, 0, 0, region].item())] += share * weight
                if matching.rule != "position":
                    found[source, (other.view, image, nearest)] += (1 - share) * weight
        total = sum(found.values())
        weights |= {pair: weight / total / IMAGES for pair, weight in found.items() if weight}
    return weights


def rows(groups, matching):
    """(view, image, region) of all rows of the groups that take part."""
    views, names = 0, []
    for group in groups:
        count, images, regions, _ = group.shape
        if regions >= matching.min_regions:
            names += itertools.product(range(views, views + count), range(images), range(regions))
        views += count
    return names


@pytest.mark.parametrize(
    "matching",
    [
        RegionMatching(),
        RegionMatching(min_regions=2),
        RegionMatching(center_features=True),
        RegionMatching("position"),
        RegionMatching("position", min_regions=3),
        RegionMatching("mixture"),
        RegionMatching("mixture", position_share=1.0, center_features=True),
    ],
    ids=str,
)
def test_regions_are_paired_as_one_pair_at_a_time(matching):
    case = draw_case()
    match, weight = pair_regions(case.student, case.teacher, torch.float64, matching, case.places)
    student, teacher = rows(case.student, matching), rows(case.teacher, matching)
    found = defaultdict(float)
    for source, targets, weights in zip(student, match.tolist(), weight.tolist(), strict=True):
        for target, value in zip(targets, weights, strict=True):
            found[source, teacher[target]] += value
    expected = plain_pairs(case, matching)
    assert {pair for pair, value in found.items() if value} == expected.keys()
    assert found == pytest.approx({pair: expected.get(pair, 0) for pair in found})
    assert sum(found.values()) == pytest.approx(1)


def test_matches_differ_between_the_rules():
    case = draw_case()
    pairs = [
        pair_regions(case.student, case.teacher, torch.float64, matching, case.places)
        for matching in (
            RegionMatching(),
            RegionMatching(center_features=True),
            RegionMatching("position"),
        )
    ]
    assert not torch.equal(pairs[0][0], pairs[1][0])
    assert not torch.equal(pairs[0][0], pairs[2][0])
    assert not torch.equal(pairs[0][1], pairs[2][1])


def test_an_image_whose_crops_do_not_overlap_counts_for_nothing():
    case = draw_case()
    apart = case.places[0].boxes.clone()
    for view in range(2):
        apart[view, 1, :2] = 1000.0 * view
    places = [replace(case.places[0], boxes=apart)]
    _, weight = pair_regions(
        case.student[:1], case.teacher[:1], torch.float64, RegionMatching("position"), places
    )
    of_image = weight.view(2, IMAGES, 4, 2).sum(dim=(0, 2, 3))
    assert of_image.tolist() == pytest.approx([0.5, 0])


def test_crops_with_too_few_regions_are_refused():
    case = draw_case()
    with pytest.raises(ValueError, match="min_regions is 5, but the crops have 4, 2, 1 regions"):
        pair_regions(case.student, case.teacher, torch.float32, RegionMatching(min_regions=5))


def test_a_rule_without_places_is_refused():
    case = draw_case()
    with pytest.raises(ValueError, match="'position' asks for places"):
        pair_regions(case.student, case.teacher, torch.float32, RegionMatching("position"))
