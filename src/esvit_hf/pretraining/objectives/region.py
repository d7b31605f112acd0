"""The region objective: regions of an image have the distribution of the region most like them in
another view (EsViT eq. 2, L_R).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.backbones.adapter import BackboneFeatures
from esvit_hf.pretraining.losses import region_loss
from esvit_hf.pretraining.monitor import Rule
from esvit_hf.pretraining.objectives.base import Comparison, Objective
from esvit_hf.pretraining.objectives.matching import match_by_feature


class RegionObjective(Objective):
    """Compares every region with the region of another view whose backbone feature is nearest."""

    name = "region"

    def head_input(self, features: Sequence[BackboneFeatures]) -> list[Tensor]:
        """Choose the regions, one tensor (V_g, B, N_g, C) a group."""
        return [group.regions for group in features]

    def loss(self, comparison: Comparison) -> Tensor:
        """Return the region loss."""
        student, teacher = comparison.student, comparison.teacher
        return region_loss(
            student.bottlenecks,
            student.features,
            teacher=teacher.bottlenecks,
            teacher_features=teacher.features,
            **comparison.distributions(),
        )

    def signals(self, comparison: Comparison) -> dict[str, Tensor]:
        """Add the share of regions that others are matched to, if there are two views to match."""
        signals = super().signals(comparison)
        student, teacher = (
            network.features[0] for network in (comparison.student, comparison.teacher)
        )
        if len(student) > 1:
            signals["match_diversity"] = match_diversity(student, teacher[:, : student.shape[1]])
        return signals

    def rules(self, num_prototypes: int) -> list[Rule]:
        """Add that regions must not all be matched to the same one."""
        return [
            *super().rules(num_prototypes),
            Rule(
                "match_diversity",
                lambda value: value < 0.02,
                "nearly all regions of an image are matched to the same region of its other view, "
                "so the regions have become alike: lower learning_rate, or train the view "
                "objective as well",
            ),
        ]


@torch.no_grad()
def match_diversity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Share of the teacher's regions that some region of another view of the image is matched to.

    Args:
        student_features: backbone regions of the student (V, B, N, C).
        teacher_features: backbone regions of the teacher (Q, B, M, C); its views are the student's
            first ones.

    Returns:
        A scalar on the device, 1 / M if all regions are matched to the same one.
    """
    nearest = match_by_feature(student_features[:, None], teacher_features[None])
    regions = teacher_features.shape[-2]
    chosen = nearest.new_zeros(*nearest.shape[:-1], regions).scatter_(-1, nearest, 1)
    share = chosen.float().mean(dim=(2, 3))
    views, teacher_views = share.shape
    other = ~torch.eye(views, teacher_views, dtype=torch.bool, device=share.device)
    return (share * other).sum() / other.sum()
