"""Optimizer groups, clipping, the moving average and the schedules against their plain
definitions.
"""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from esvit_hf.pretraining.ema import set_teacher_mode, update_teacher
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.optimizer import build_optimizer, clip_all_gradients, clip_each_gradient
from esvit_hf.pretraining.schedules import cosine_schedule, linear_schedule


@given(
    warmup=st.integers(0, 20),
    rest=st.integers(1, 50),
    start=st.floats(0.1, 2),
    end=st.floats(0, 0.1),
)
def test_cosine_schedule_is_linspace_then_cosine(warmup, rest, start, end):
    total = warmup + rest
    steps = np.arange(rest)
    expected = np.concatenate(
        [
            np.linspace(0, start, warmup),
            end + 0.5 * (start - end) * (1 + np.cos(math.pi * steps / rest)),
        ]
    )
    schedule = cosine_schedule(start, end, total, warmup_steps=warmup)
    np.testing.assert_allclose(
        [schedule(step) for step in range(total)], expected, rtol=1e-12, atol=1e-12
    )


@given(epochs=st.integers(0, 30))
def test_linear_schedule_is_linspace_then_constant(epochs):
    expected = np.concatenate([np.linspace(0.04, 0.07, epochs), np.full(5, 0.07)])
    schedule = linear_schedule(0.04, 0.07, epochs)
    np.testing.assert_allclose([schedule(epoch) for epoch in range(epochs + 5)], expected)


def test_weight_decay_reaches_matrices_only():
    head = ProjectionHead(4, 6, hidden_dim=5, bottleneck_dim=3, batch_norm=True)
    decayed, kept = build_optimizer(head).param_groups
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(head.parameters()))
    frozen = ProjectionHead(4, 6, train_prototype_gain=False)
    assert all(
        p is not frozen.prototype_gain
        for group in build_optimizer(frozen).param_groups
        for p in group["params"]
    )


@pytest.mark.parametrize("clip", [clip_each_gradient, clip_all_gradients])
def test_clipping_equals_its_definition(clip):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2))]
    for parameter, scale in zip(parameters, (10.0, 0.01, 1.0), strict=True):
        parameter.grad = scale * torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in parameters]
    everything = torch.cat([gradient.flatten() for gradient in before]).norm()
    norm = clip(parameters + [nn.Parameter(torch.zeros(1))], 0.5)
    torch.testing.assert_close(norm, everything)
    for parameter, gradient in zip(parameters, before, strict=True):
        length = gradient.norm() if clip is clip_each_gradient else everything
        torch.testing.assert_close(parameter.grad, gradient * min(1.0, 0.5 / (length + 1e-6)))


def test_teacher_follows_parameters_but_not_buffers():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    teacher = copy.deepcopy(student)
    set_teacher_mode(teacher)
    for parameter in student.parameters():
        parameter.data.normal_()
    student[1].running_mean.fill_(7.0)
    before = [parameter.clone() for parameter in teacher.parameters()]
    update_teacher(teacher.parameters(), student.parameters(), 0.9)
    for new, old, source in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(new.data, 0.9 * old + 0.1 * source.data)
        assert not new.requires_grad
    assert torch.equal(teacher[1].running_mean, torch.zeros(3))
    assert teacher[1].training and not teacher[2].training


def test_prototypes_have_their_gain_as_length():
    head = ProjectionHead(4, 6, hidden_dim=5, bottleneck_dim=3)
    head.prototype_gain.data.uniform_(0.5, 2.0)
    torch.testing.assert_close(head.prototypes().norm(dim=1, keepdim=True), head.prototype_gain)
    torch.testing.assert_close(head(torch.randn(2, 7, 4)).norm(dim=-1), torch.ones(2, 7))
