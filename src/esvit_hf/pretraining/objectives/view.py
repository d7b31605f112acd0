"""The view objective: views of an image have the same distribution (EsViT eq. 1, L_V).

Letters: B images, V student views, Q teacher views, D bottleneck channels, K
prototypes. The Q teacher views are the first Q of the V student views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.backbones.adapter import BackboneFeatures
from esvit_hf.pretraining.objectives.base import Comparison, Objective
from esvit_hf.pretraining.objectives.cross_entropy import matched_cross_entropy
from esvit_hf.pretraining.objectives.matching import count_view_pairs, different_views


class ViewObjective(Objective):
    """Compares the pooled features of every pair of different views."""

    name = "view"

    def head_input(self, features: Sequence[BackboneFeatures]) -> list[Tensor]:
        """Choose the view features of all crops, as one tensor (V, B, C)."""
        return [torch.cat([group.pooled for group in features])]

    def loss(self, comparison: Comparison) -> Tensor:
        """Return the view loss."""
        return view_loss(
            comparison.student.bottlenecks[0],
            teacher=comparison.teacher.bottlenecks[0],
            **comparison.distributions(),
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
