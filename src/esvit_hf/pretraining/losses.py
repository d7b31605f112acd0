"""View loss and region loss (EsViT section 3).

Letters: B images, V student views, Q teacher views, N regions, C channels, D bottleneck channels, K
prototypes. The Q teacher views are the first Q of the V student views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.pretraining.objectives.cross_entropy import matched_cross_entropy
from esvit_hf.pretraining.objectives.matching import (
    RegionMatching,
    count_view_pairs,
    different_views,
    pair_regions,
)
from esvit_hf.pretraining.objectives.position import CropPlaces


def view_loss(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    gain: Tensor | None = None,
    teacher_gain: Tensor | None = None,
) -> Tensor:
    """Cross-entropy between views of an image, averaged over images and pairs of different views
    (EsViT eq. 1, L_V).

    Args:
        student: view bottlenecks of the student (V, B, D).
        prototypes: prototypes of the student's view head (K, D).
        teacher: view bottlenecks of the teacher (Q, B, D).
        teacher_prototypes: prototypes of the teacher's view head (K, D).
        center: center of the teacher's view logits, K elements.
        student_temperature: temperature of the student.
        teacher_temperature: temperature of the teacher.
        gain: lengths of the student's prototypes (K, 1); of `prototypes` only the directions count
            then.
        teacher_gain: the same for the teacher's.

    Returns:
        The scalar loss.
    """
    (student_views, images, _), teacher_views = student.shape, teacher.shape[0]
    device = student.device
    teacher_row = torch.arange(teacher_views * images, device=device).view(teacher_views, images)
    match = teacher_row.T.expand(student_views, -1, -1)
    views = range(student_views), range(teacher_views)
    counted = different_views(*views, device).to(student.dtype)
    weight = counted / (images * count_view_pairs([views[0]], [views[1]]))
    return matched_cross_entropy(
        student.flatten(0, 1),
        prototypes,
        teacher.flatten(0, 1),
        teacher_prototypes,
        center,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        gain=gain,
        teacher_gain=teacher_gain,
        match=match.flatten(0, 1),
        weight=weight[:, None].expand(-1, images, -1).flatten(0, 1),
    )


def region_loss(
    student: Sequence[Tensor],
    student_features: Sequence[Tensor],
    prototypes: Tensor,
    teacher: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    teacher_prototypes: Tensor,
    center: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    gain: Tensor | None = None,
    teacher_gain: Tensor | None = None,
    matching: RegionMatching | None = None,
    places: Sequence[CropPlaces] | None = None,
) -> Tensor:
    """Cross-entropy between matched regions, averaged over regions, images and pairs of views
    (EsViT eq. 2, L_R).

    Views come in groups of one size, in view order: the first teacher group holds the first teacher
    views, and so on.

    Args:
        student: region bottlenecks of the student, one tensor (V_g, B, N_g, D) a group.
        student_features: backbone regions of the student, one tensor (V_g, B, N_g, C) a group.
        prototypes: prototypes of the student's region head (K, D).
        teacher: region bottlenecks of the teacher, one tensor (Q_g, B, N_g, D) a group.
        teacher_features: backbone regions of the teacher, one tensor (Q_g, B, N_g, C) a group.
        teacher_prototypes: prototypes of the teacher's region head (K, D).
        center: center of the teacher's region logits, K elements.
        student_temperature: temperature of the student.
        teacher_temperature: temperature of the teacher.
        gain: lengths of the student's prototypes (K, 1); of `prototypes` only the directions count
            then.
        teacher_gain: the same for the teacher's.
        matching: which teacher region a student region learns from; EsViT's rule by default.
        places: where the student's views lie, one a group; not for the matching rule `feature`.

    Returns:
        The scalar loss.

    Raises:
        ValueError: no two views can be compared, or the matching rule asks for places.
    """
    matching = matching or RegionMatching()
    match, weight = pair_regions(
        student_features, teacher_features, student[0].dtype, matching, places
    )
    teacher, center = matching.center_targets(teacher, center)
    student_rows, teacher_rows = (
        torch.cat([group.flatten(0, 2) for group in groups if matching.takes_part(group)])
        for groups in (student, teacher)
    )
    return matched_cross_entropy(
        student_rows,
        prototypes,
        teacher_rows,
        teacher_prototypes,
        center,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        gain=gain,
        teacher_gain=teacher_gain,
        match=match,
        weight=weight,
    )
