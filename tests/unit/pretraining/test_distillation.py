"""How objectives share a run's weight, and what a network hands them."""

import pytest
import torch

from esvit_hf.pretraining.distillation import loss_weights, project
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings
from esvit_hf.pretraining.objectives.view import ViewObjective


def objectives(*settings):
    return {
        str(number): ViewObjective(ObjectiveSettings(*each)) for number, each in enumerate(settings)
    }


def test_objectives_carry_the_weight_of_those_that_have_not_started():
    three = objectives((0.3, 0), (0.1, 0), (0.6, 2))
    assert loss_weights(three, 1) == pytest.approx({"0": 0.75, "1": 0.25})
    assert loss_weights(three, 2) == {"0": 0.3, "1": 0.1, "2": 0.6}


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.1, 0.2), (1.0, 0.7)])
def test_one_objective_carries_the_weight_of_two_exactly(first, second):
    assert loss_weights(objectives((first, 0), (second, 1)), 0) == {"0": first + second}


def test_groups_of_any_size_pass_a_head_as_if_each_were_alone():
    torch.manual_seed(0)
    head = ProjectionHead(6, 8, hidden_dim=5, bottleneck_dim=3)
    groups = [torch.randn(2, 3, 4, 6), torch.randn(1, 3, 9, 6)]
    projection = project(head, groups)
    assert projection.features == groups
    for group, bottlenecks in zip(groups, projection.bottlenecks, strict=True):
        assert bottlenecks.shape == (*group.shape[:-1], 3)
        torch.testing.assert_close(bottlenecks, head(group))
