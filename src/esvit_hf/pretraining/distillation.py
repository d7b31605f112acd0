"""Student and teacher, each a backbone with a head for every objective: from crops to what the
losses need.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esvit_hf.backbones.adapter import BackboneFeatures, RegionBackbone
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.objectives.base import Objective, Projection


@dataclass(frozen=True)
class DistillationOutput:
    """What one network makes of all its crops.

    Attributes:
        projections: by objective, of those that were asked for.
        grids: rows and columns of regions, one a group of crops of one size.
    """

    projections: dict[str, Projection]
    grids: list[tuple[int, int]]


class DistillationNetwork(nn.Module):
    """A backbone with projection heads; student and teacher are two of these.

    Args:
        backbone: the network under pretraining.
        heads: one head an objective, by its name.
    """

    def __init__(self, backbone: RegionBackbone, heads: Mapping[str, ProjectionHead]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def head(self, objective: str) -> ProjectionHead:
        """Return the head of an objective."""
        head = self.heads[objective]
        assert isinstance(head, ProjectionHead)
        return head

    def forward(
        self, crops: Sequence[Tensor], objectives: Iterable[Objective]
    ) -> DistillationOutput:
        """Run all crops, those of one size as one batch, and the heads of some objectives.

        Args:
            crops: one float tensor (B, 3, H, W) a view; views of one size stand together.
            objectives: objectives whose heads run.

        Returns:
            What the losses take.
        """
        features = []
        for group in group_by_size(crops):
            found = self.backbone(torch.cat(group) if len(group) > 1 else group[0])
            shape = len(group), len(group[0])
            features.append(
                BackboneFeatures(
                    found.regions.unflatten(0, shape), found.pooled.unflatten(0, shape), found.grid
                )
            )
        return DistillationOutput(
            {
                objective.name: project(self.head(objective.name), objective.head_input(features))
                for objective in objectives
            },
            [group.grid for group in features],
        )


def group_by_size(crops: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group neighboring crops (B, 3, H, W) of one size."""
    groups: list[list[Tensor]] = []
    for crop in crops:
        if groups and groups[-1][0].shape == crop.shape:
            groups[-1].append(crop)
        else:
            groups.append([crop])
    return groups


def project(head: ProjectionHead, features: list[Tensor]) -> Projection:
    """Run a head once on features (..., C) of any number of groups."""
    rows = [group.flatten(0, -2) for group in features]
    bottlenecks = head(torch.cat(rows) if len(rows) > 1 else rows[0])
    blocks = bottlenecks.split([len(group) for group in rows])
    return Projection(
        features,
        [block.view(*group.shape[:-1], -1) for block, group in zip(blocks, features, strict=True)],
    )


@dataclass
class DistillationParts:
    """Everything of a run that has weights or centers, and the objectives that use it.

    Attributes:
        objectives: the objectives of the run by name, in the order in which they are added up.
        student: the network that is trained.
        teacher: its moving average.
        centers: one `TeacherCenter` an objective.
    """

    objectives: dict[str, Objective]
    student: DistillationNetwork
    teacher: DistillationNetwork
    centers: nn.ModuleDict
