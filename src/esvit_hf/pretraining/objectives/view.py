"""The view objective: views of an image have the same distribution (EsViT eq. 1, L_V)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.backbones.adapter import BackboneFeatures
from esvit_hf.pretraining.losses import view_loss
from esvit_hf.pretraining.objectives.base import Comparison, Objective


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
