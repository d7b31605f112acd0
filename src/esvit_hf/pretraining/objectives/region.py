"""The region objective: regions of an image have the distribution of the region most like them in
another view (EsViT eq. 2, L_R).

Letters: B images, V student views, Q teacher views, N regions, C channels, D bottleneck channels, K
prototypes. The Q teacher views are the first Q of the V student views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.backbones.adapter import BackboneFeatures
from esvit_hf.pretraining.monitor import Rule
from esvit_hf.pretraining.objectives.base import Comparison, Objective
from esvit_hf.pretraining.objectives.cross_entropy import matched_cross_entropy
from esvit_hf.pretraining.objectives.matching import (
    center_targets,
    match_by_feature,
    pair_regions,
    takes_part,
)
from esvit_hf.pretraining.objectives.position import CropPlaces
from esvit_hf.pretraining.objectives.region_signals import (
    effective_dimensions,
    image_share,
    place_share,
)
from esvit_hf.pretraining.objectives.settings import RegionMatching, RegionSettings

ENOUGH_IMAGES, ENOUGH_REGIONS = 8, 4
"""Of fewer, chance alone explains much of the variance: 1 / B of it by place, 1 / N by image."""


class RegionObjective(Objective):
    """Compares every region with one of another view: by default the one whose backbone feature is
    nearest.
    """

    name = "region"
    settings_class = RegionSettings
    settings: RegionSettings

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
            matching=self.settings.matching,
            places=comparison.places,
            **comparison.distributions(),
        )

    def signals(self, comparison: Comparison) -> dict[str, Tensor]:
        """Add what the regions tell apart, as far as there are enough of them, and the share of
        regions that others are matched to, if there are two views to match.
        """
        signals = super().signals(comparison)
        regions = comparison.teacher.features[0][0]
        if regions.shape[0] >= ENOUGH_IMAGES and regions.shape[1] >= ENOUGH_REGIONS:
            signals["image_share"] = image_share(regions)
            signals["place_share"] = place_share(regions)
            signals["effective_dimensions"] = effective_dimensions(regions)
        student, teacher = (
            network.features[0] for network in (comparison.student, comparison.teacher)
        )
        if len(student) > 1:
            signals["match_diversity"] = match_diversity(student, teacher[:, : student.shape[1]])
        return signals

    def few_targets(self, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """Choose those of one image, centered on it as in the loss."""
        own = [group[:, :1] for group in comparison.teacher.bottlenecks]
        centered, center = center_targets(self.settings.matching, own, comparison.center)
        return centered[0], center

    def rules(self, num_prototypes: int) -> list[Rule]:
        """Add that regions must differ within an image, and not by their place alone."""
        settings = f"objectives.{self.name}"
        return [
            *super().rules(num_prototypes),
            Rule(
                "image_share",
                lambda value: value > 0.9,
                f"the regions of an image have become alike, which makes every match right: set "
                f"{settings}.matching.image_center to 0.5 or more, or let {settings}.weight_end be "
                f"0",
            ),
            Rule(
                "place_share",
                lambda value: value > 0.5,
                f"regions say where they are rather than what they show: set "
                f"{settings}.matching.rule to position, or let {settings}.weight_end be 0",
            ),
            Rule(
                "match_diversity",
                lambda value: value < 0.02,
                "nearly all regions of an image are matched to the same region of its other view, "
                "so the regions have become alike: lower optimizer.learning_rate, or train the "
                "view objective as well",
            ),
        ]


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
    teacher, center = center_targets(matching, teacher, center)
    student_rows, teacher_rows = (
        torch.cat([group.flatten(0, 2) for group in groups if takes_part(matching, group)])
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
