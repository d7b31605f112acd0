"""Which rows are compared, and how much each pair counts."""

import pytest
import torch
from torch.nn import functional as F

from esvit_hf.pretraining.objectives.matching import (
    count_view_pairs,
    different_views,
    match_by_feature,
    pair_regions,
)


def test_pairs_of_views_are_those_of_different_views():
    compared = different_views(3, 2, torch.device("cpu"))
    assert compared.tolist() == [[False, True], [True, False], [True, True]]
    assert count_view_pairs(3, 2) == compared.sum()


@pytest.mark.parametrize("views", [(1, 1), (3, 0)])
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


def test_regions_are_paired_by_row_and_weights_average():
    torch.manual_seed(0)
    images, shapes = 2, [(1, 4), (2, 3)]
    student = [torch.randn(views, images, regions, 5) for views, regions in shapes]
    teacher = [torch.randn(1, images, 4, 5), torch.randn(1, images, 3, 5)]
    match, weight = pair_regions(student, teacher, torch.float64)
    assert weight.dtype == torch.float64
    views = [view for group in student for view in group]
    teacher_views = [view for group in teacher for view in group]
    first_row = [0, images * 4]
    row = 0
    for v, view in enumerate(views):
        for image in range(images):
            for region in view[image]:
                for q, target in enumerate(teacher_views):
                    cosines = F.cosine_similarity(region, target[image])
                    expected = first_row[q] + image * target.shape[1] + cosines.argmax()
                    assert match[row, q] == expected
                    share = 1 / (view.shape[1] * images * 4)
                    assert weight[row, q].item() == pytest.approx(share if v != q else 0)
                row += 1
    assert row == len(match) == len(weight)
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0, dtype=torch.float64))
