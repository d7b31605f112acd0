"""Which rows of the teacher a row of the student is compared with, and how much each pair counts.

Letters: B images, V student views, Q teacher views, N regions, C channels. The Q teacher views are
the first Q of the V student views.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from esvit_hf.pretraining.objectives.position import CropPlaces, match_by_position
from esvit_hf.pretraining.objectives.settings import RegionMatching


def takes_part(matching: RegionMatching, regions: Tensor) -> bool:
    """Tell whether views with such regions (V_g, B, N_g, any) are compared."""
    return regions.shape[2] >= matching.min_regions


def center_targets(
    matching: RegionMatching, teacher: Sequence[Tensor], center: Tensor
) -> tuple[Sequence[Tensor], Tensor]:
    """Take the share `image_center` of each image's mean logit from the logits of its regions.

    Logits are linear in the bottlenecks, so it is taken from these.

    Args:
        matching: its share.
        teacher: region bottlenecks of the teacher, one tensor (Q_g, B, N_g, D) a group.
        center: moving center of the teacher's logits, K elements.

    Returns:
        Bottlenecks and center that take the place of the ones given.
    """
    if matching.image_center == 0:
        return teacher, center
    mean = matching.image_center * image_mean(teacher)
    return [group - mean for group in teacher], (1 - matching.image_center) * center


def count_view_pairs(student: Sequence[range], teacher: Sequence[range]) -> int:
    """Count the pairs of different views that a loss averages over.

    Args:
        student: numbers of the student's views, one range a group.
        teacher: numbers of the teacher's views, one range a group.

    Raises:
        ValueError: if there is no such pair.
    """
    student_views, teacher_views = (
        {view for group in groups for view in group} for groups in (student, teacher)
    )
    pairs = len(student_views) * len(teacher_views) - len(student_views & teacher_views)
    if pairs < 1:
        raise ValueError(
            f"{len(student_views)} student view(s) and {len(teacher_views)} teacher view(s) form "
            f"no pair of different views: give at least one teacher view and one more view"
        )
    return pairs


def different_views(student: range, teacher: range, device: torch.device) -> Tensor:
    """Tell which pairs of views count: those of different views (EsViT eq. 1 and 2).

    Args:
        student: numbers of V student views.
        teacher: numbers of Q teacher views.
        device: where the answer is wanted.

    Returns:
        (V, Q) bool.
    """
    view = torch.arange(student.start, student.stop, device=device)
    teacher_view = torch.arange(teacher.start, teacher.stop, device=device)
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


@torch.no_grad()
def image_mean(groups: Sequence[Tensor]) -> Tensor:
    """Average the regions (V_g, B, N_g, C) of all views of an image.

    Returns:
        (B, 1, C), float32 at least.
    """
    dtype = torch.promote_types(groups[0].dtype, torch.float32)
    total = torch.stack([group.to(dtype).sum(dim=(0, 2)) for group in groups]).sum(dim=0)
    return (total / sum(group.shape[0] * group.shape[2] for group in groups))[:, None]


@dataclass(frozen=True)
class _RegionGroup:
    """Regions of the views of one size.

    Attributes:
        views: numbers of the V_g views.
        features: (V_g, B, N_g, C).
        places: where the views lie, if a rule asks for it.
        first_row: row of their first region among the rows of all groups.
    """

    views: range
    features: Tensor
    places: CropPlaces | None
    first_row: int

    def first_rows(self) -> Tensor:
        """Return the row of the first region of each image (V_g, B, 1)."""
        views, images, regions, _ = self.features.shape
        row = torch.arange(views * images, device=self.features.device).view(views, images, 1)
        return row * regions + self.first_row


def _region_groups(
    groups: Sequence[Tensor], places: Sequence[CropPlaces] | None, matching: RegionMatching
) -> list[_RegionGroup]:
    """Number views and rows, and keep the groups that take part."""
    mean = image_mean(groups) if matching.center_features else None
    kept: list[_RegionGroup] = []
    first_view = first_row = 0
    for index, features in enumerate(groups):
        count = features.shape[0]
        views = range(first_view, first_view + count)
        first_view += count
        if takes_part(matching, features):
            where = None if places is None else places[index].first(count)
            compared = features if mean is None else features - mean
            kept.append(_RegionGroup(views, compared, where, first_row))
            first_row += features.shape[:3].numel()
    return kept


def _match_groups(
    student: _RegionGroup, teacher: _RegionGroup, matching: RegionMatching
) -> list[tuple[Tensor, Tensor | float]]:
    """Match the regions of two groups: teacher regions (V_g, Q_g, B, N) and the share of each."""
    if matching.rule == "feature":
        return [(match_by_feature(student.features[:, None], teacher.features[None]), 1.0)]
    assert student.places is not None and teacher.places is not None
    by_position, overlaps = match_by_position(student.places, teacher.places)
    if matching.rule == "position":
        return [(by_position, overlaps)]
    by_feature = match_by_feature(student.features[:, None], teacher.features[None])
    share = matching.position_share * overlaps
    return [(by_position, share), (by_feature, 1 - share)]


@torch.no_grad()
def pair_regions(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    dtype: torch.dtype,
    matching: RegionMatching,
    places: Sequence[CropPlaces] | None = None,
) -> tuple[Tensor, Tensor]:
    """Pair each student region with one region of each teacher view, in a mixture with two.

    `different_views` says which pairs of views count, `matching` which regions. Regions count
    equally within a view, images and pairs of views among themselves. Where a rule leaves regions
    out, the others of the image take their weight.

    Args:
        student_features: backbone regions of the student, one tensor (V_g, B, N_g, C) a group of
            views of one size.
        teacher_features: backbone regions of the teacher, one tensor (Q_g, B, N_g, C) a group.
        dtype: type of the weights.
        matching: the rule.
        places: where the student's views lie, one a group; not for the rule `feature`. The
            teacher's are the first of each group.

    Returns:
        The teacher's rows (M, P), int64, and their weights (M, P), of the M student regions. Rows
        are counted through the groups that take part, within them by view, image and region.

    Raises:
        ValueError: no two views can be compared, or a rule asks for places that are not given.
    """
    if places is None and matching.rule != "feature":
        raise ValueError(f"the rule {matching.rule!r} asks for places: give those of the crops")
    student = _region_groups(student_features, places, matching)
    teacher = _region_groups(teacher_features, places, matching)
    if not student or not teacher:
        found = ", ".join(str(group.shape[2]) for group in student_features)
        raise ValueError(
            f"min_regions is {matching.min_regions}, but the crops have {found} regions: lower it, "
            f"or make the crops larger"
        )
    pairs = count_view_pairs([group.views for group in student], [group.views for group in teacher])
    images, device = student_features[0].shape[1], student_features[0].device
    matches, weights = [], []
    for group in student:
        rows, shares = [], []
        for target in teacher:
            counted = different_views(group.views, target.views, device).to(dtype)
            weight = counted / (group.features.shape[2] * images * pairs)
            for region, share in _match_groups(group, target, matching):
                rows.append(region + target.first_rows())
                shares.append((weight[:, :, None, None] * share).expand_as(region))
        matches.append(torch.cat(rows, dim=1))
        weights.append(torch.cat(shares, dim=1))
    if matching.rule == "position":
        weights = _share_out(weights)
    return _as_rows(matches), _as_rows(weights)


def _share_out(weights: Sequence[Tensor]) -> list[Tensor]:
    """Scale the weights (V_g, P, B, N_g) of each image to the same sum, which is 1 over B; those of
    an image without any pair stay 0.
    """
    total = torch.stack([group.sum(dim=(0, 1, 3)) for group in weights]).sum(dim=0)
    total = total.clamp(min=torch.finfo(total.dtype).tiny) * len(total)
    return [group / total[:, None] for group in weights]


def _as_rows(groups: Sequence[Tensor]) -> Tensor:
    """Turn (V_g, P, B, N_g) of each group into rows (M, P) of all regions."""
    return torch.cat([group.movedim(1, -1).flatten(0, 2) for group in groups])
