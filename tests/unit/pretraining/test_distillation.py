"""What a network hands the objectives."""

import torch

from esvit_hf.pretraining.distillation import project
from esvit_hf.pretraining.heads import ProjectionHead


def test_groups_of_any_size_pass_a_head_as_if_each_were_alone():
    torch.manual_seed(0)
    head = ProjectionHead(6, 8, hidden_dim=5, bottleneck_dim=3)
    groups = [torch.randn(2, 3, 4, 6), torch.randn(1, 3, 9, 6)]
    projection = project(head, groups)
    assert projection.features == groups
    for group, bottlenecks in zip(groups, projection.bottlenecks, strict=True):
        assert bottlenecks.shape == (*group.shape[:-1], 3)
        torch.testing.assert_close(bottlenecks, head(group))
