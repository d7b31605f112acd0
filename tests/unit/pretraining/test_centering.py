"""The center of the teacher's logits, which the parity tests follow over whole runs."""

import torch
from torch.nn import functional as F

from esvit_hf.pretraining.centering import TeacherCenter, mean_bottleneck


def test_the_center_moves_to_the_mean_logit_of_all_micro_batches():
    torch.manual_seed(0)
    bottlenecks = [[torch.randn(2, 3, 4), torch.randn(1, 3, 4)], [torch.randn(3, 3, 4)]]
    direction, gain = torch.randn(5, 4), torch.rand(5, 1)
    center = TeacherCenter(5, momentum=0.75)
    center.update_center([mean_bottleneck(groups) for groups in bottlenecks], direction, gain)
    rows = torch.cat([group.flatten(0, 1) for groups in bottlenecks for group in groups])
    logits = rows @ (gain * F.normalize(direction, dim=1)).T
    torch.testing.assert_close(center.center, 0.25 * logits.mean(dim=0))
