"""Student and teacher: a backbone with a view head and a region head, from crops to what the losses
need.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.pretraining.heads import ProjectionHead


@dataclass
class DistillationOutput:
    """Bottlenecks of one network over all its views.

    Attributes:
        views: view bottlenecks (V, B, D); None without a view head.
        regions: region bottlenecks, one tensor (V_g, B, N_g, D) for each group of views of one
            size; empty when they are not asked for.
        region_features: backbone regions, one tensor (V_g, B, N_g, C) a group.
    """

    views: Tensor | None
    regions: list[Tensor]
    region_features: list[Tensor]


class DistillationNetwork(nn.Module):
    """A backbone with up to two projection heads; student and teacher are two of these.

    Args:
        backbone: the network under pretraining.
        view_head: head on the pooled feature, or None.
        region_head: head on the regions, or None.
    """

    def __init__(
        self,
        backbone: RegionBackbone,
        view_head: ProjectionHead | None,
        region_head: ProjectionHead | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.view_head = view_head
        self.region_head = region_head

    def heads(self) -> dict[str, ProjectionHead]:
        """Return the heads that there are, by name."""
        heads = {"view_head": self.view_head, "region_head": self.region_head}
        return {name: head for name, head in heads.items() if head is not None}

    def forward(self, crops: Sequence[Tensor], with_regions: bool = True) -> DistillationOutput:
        """Run all views, those of one size as one batch.

        Args:
            crops: one float tensor (B, 3, H, W) a view; views of one size stand together.
            with_regions: run the region head.

        Returns:
            What the two losses take.
        """
        images = crops[0].shape[0]
        regions_wanted = with_regions and self.region_head is not None
        pooled, region_features = [], []
        for group in group_by_size(crops):
            features = self.backbone(torch.cat(group) if len(group) > 1 else group[0])
            pooled.append(features.pooled)
            if regions_wanted:
                region_features.append(features.regions.unflatten(0, (len(group), images)))
        output = DistillationOutput(None, [], region_features)
        if self.view_head is not None:
            output.views = self.view_head(torch.cat(pooled)).unflatten(0, (len(crops), images))
        if regions_wanted:
            assert self.region_head is not None
            rows = self.region_head(torch.cat([group.flatten(0, 2) for group in region_features]))
            sizes = [group.shape[:3].numel() for group in region_features]
            output.regions = [
                block.view(*group.shape[:3], -1)
                for block, group in zip(rows.split(sizes), region_features, strict=True)
            ]
        elif self.region_head is not None and torch.is_grad_enabled():
            # Distributed data parallel waits for a gradient of every parameter; the loop drops
            # these zeros again.
            zero = sum(parameter.flatten()[0] for parameter in self.region_head.parameters()) * 0.0
            if output.views is not None:
                output.views = output.views + zero
        return output


def group_by_size(crops: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group neighboring crops (B, 3, H, W) of one size."""
    groups: list[list[Tensor]] = []
    for crop in crops:
        if groups and groups[-1][0].shape == crop.shape:
            groups[-1].append(crop)
        else:
            groups.append([crop])
    return groups
