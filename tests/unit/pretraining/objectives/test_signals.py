"""What the numbers about a teacher's outputs say."""

import math

import torch

from esvit_hf.pretraining.objectives.signals import output_spread, teacher_entropy


def test_entropy_of_uniform_and_of_constant_targets():
    prototypes, center = torch.eye(8), torch.zeros(8)
    single, mean = teacher_entropy(torch.zeros(5, 8), prototypes, center, 0.1)
    torch.testing.assert_close(torch.stack([single, mean]), torch.full((2,), math.log(8)))
    single, mean = teacher_entropy(torch.eye(8)[:1].expand(5, 8) * 100, prototypes, center, 0.1)
    torch.testing.assert_close(torch.stack([single, mean]), torch.zeros(2))


def test_spread_is_one_on_the_sphere_and_zero_for_one_output():
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(20000, 16), dim=1)
    torch.testing.assert_close(
        output_spread(rows.view(2, -1, 16)), torch.tensor(1.0), atol=0.01, rtol=0
    )
    assert output_spread(rows[:1].expand(50, -1)) < 1e-6
