"""Which rows of the teacher a row of the student is compared with, and how much each pair counts.

Letters: B images, V student views, Q teacher views, N regions, C channels. The Q teacher views are
the first Q of the V student views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def count_view_pairs(student_views: int, teacher_views: int) -> int:
    """Return the number of (teacher view, other student view) pairs that a loss averages over.

    Raises:
        ValueError: if there is no such pair.
    """
    pairs = teacher_views * (student_views - 1)
    if pairs < 1:
        raise ValueError(
            f"{student_views} student view(s) and {teacher_views} teacher view(s) form no pair of "
            f"different views: give at least one teacher view and one more view"
        )
    return pairs


def different_views(student_views: int, teacher_views: int, device: torch.device) -> Tensor:
    """Tell which pairs of views count: those of different views (EsViT section 3.2).

    Returns:
        Whether student view v and teacher view q are compared (V, Q), bool.
    """
    view = torch.arange(student_views, device=device)
    teacher_view = torch.arange(teacher_views, device=device)
    return view[:, None] != teacher_view


def match_by_feature(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Find for each student region the teacher region with the highest cosine similarity (EsViT
    section 3.2).

    Args:
        student_features: backbone regions of the student (..., N, C).
        teacher_features: backbone regions of the teacher (..., M, C).

    Returns:
        Indices (..., N) into the M teacher regions, int64.
    """
    with torch.no_grad(), torch.autocast(student_features.device.type, enabled=False):
        dtype = torch.promote_types(student_features.dtype, torch.float32)
        student_unit = F.normalize(student_features.detach().to(dtype), dim=-1)
        teacher_unit = F.normalize(teacher_features.detach().to(dtype), dim=-1)
        return (student_unit @ teacher_unit.mT).argmax(dim=-1)


def pair_regions(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pair each student region with one region of each teacher view.

    `different_views` says which pairs of views count, `match_by_feature` which region of the
    teacher view it is. Regions count equally within a view, images and pairs of views among
    themselves.

    Args:
        student_features: backbone regions of the student, one tensor (V_g, B, N_g, C) a group of
            views of one size.
        teacher_features: backbone regions of the teacher, one tensor (Q_g, B, N_g, C) a group.
        dtype: type of the weights.

    Returns:
        The teacher's rows (M, Q), int64, and their weights (M, Q), of all M student regions. Rows
        are counted through the groups, within them by view, image and region.
    """
    images, device = student_features[0].shape[1], student_features[0].device
    group_sizes = [group.shape[0] for group in student_features]
    views = sum(group_sizes), sum(group.shape[0] for group in teacher_features)
    counted = different_views(*views, device).to(dtype)
    matches, weights = [], []
    for features, of_group in zip(student_features, counted.split(group_sizes), strict=True):
        regions = features.shape[2]
        first_row, rows = 0, []
        for target in teacher_features:
            teacher_views, _, teacher_regions, _ = target.shape
            end = first_row + teacher_views * images * teacher_regions
            first_of_image = torch.arange(first_row, end, teacher_regions, device=device)
            nearest = match_by_feature(features[:, None], target[None])
            rows.append(nearest + first_of_image.view(teacher_views, images, 1))
            first_row = end
        matches.append(torch.cat(rows, dim=1))
        weight = of_group / (regions * images * count_view_pairs(*views))
        weights.append(weight[:, :, None, None].expand_as(matches[-1]))
    return _as_rows(matches), _as_rows(weights)


def _as_rows(groups: Sequence[Tensor]) -> Tensor:
    """Turn (V_g, Q, B, N_g) of each group into rows (M, Q) of all regions."""
    return torch.cat([group.movedim(1, -1).flatten(0, 2) for group in groups])
