"""Teacher as the exponential moving average of the student."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def update_teacher(
    teacher: Iterable[nn.Parameter], student: Iterable[nn.Parameter], momentum: float
) -> None:
    """Move the teacher's parameters towards the student's, buffers apart.

    Args:
        teacher: the teacher's parameters, updated in place.
        student: the student's parameters, in the same order.
        momentum: share of the teacher that is kept.
    """
    targets: list[Tensor] = list(teacher)
    sources: list[Tensor] = list(student)
    if any(isinstance(source, DTensor) for source in sources):
        # A student in shards: the teacher is whole in every process, and one parameter at a time is
        # put together.
        for target, source in zip(targets, sources, strict=True):
            target.lerp_(
                source.full_tensor() if isinstance(source, DTensor) else source, 1 - momentum
            )
    else:
        torch._foreach_lerp_(targets, sources, 1 - momentum)


def set_teacher_mode(teacher: nn.Module) -> None:
    """Freeze a teacher: no gradients, no stochastic depth, batch norms on batch statistics as in
    the reference.
    """
    teacher.requires_grad_(False)
    teacher.eval()
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
