"""View loss and region loss (EsViT section 3).

Letters: B images, V student views, Q teacher views, N regions, C channels, D bottleneck channels, K
prototypes. The Q teacher views are the first Q of the V student views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.pretraining.objectives.cross_entropy import matched_cross_entropy
from esvit_hf.pretraining.objectives.matching import (
    count_view_pairs,
    different_views,
    pair_regions,
)


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
    counted = different_views(student_views, teacher_views, device).to(student.dtype)
    weight = counted / (images * count_view_pairs(student_views, teacher_views))
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

    Returns:
        The scalar loss.
    """
    match, weight = pair_regions(student_features, teacher_features, student[0].dtype)
    return matched_cross_entropy(
        torch.cat([group.flatten(0, 2) for group in student]),
        prototypes,
        torch.cat([group.flatten(0, 2) for group in teacher]),
        teacher_prototypes,
        center,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        gain=gain,
        teacher_gain=teacher_gain,
        match=match,
        weight=weight,
    )
