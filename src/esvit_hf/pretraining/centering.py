"""Center of the teacher's logits: an exponential moving average over batches and processes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def mean_bottleneck(bottlenecks: Sequence[Tensor]) -> Tensor:
    """Average all bottlenecks of a micro-batch.

    Args:
        bottlenecks: tensors (..., D).

    Returns:
        (D,), float32.
    """
    return torch.cat([group.flatten(0, -2) for group in bottlenecks]).float().mean(dim=0)


class TeacherCenter(nn.Module):
    """Moving average of the mean teacher logit, which keeps one prototype from taking over (DINO
    section 3.1).

    A step uses the center of the step before. Logits are linear in the bottleneck, so D numbers are
    averaged over micro-batches and processes, and the K logits follow from them once per optimizer
    step.

    Args:
        num_prototypes: number of prototypes K.
        momentum: share of the old center that is kept.
    """

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes, dtype=torch.float32))
        self.center: Tensor

    @torch.no_grad()
    def update_center(
        self, means: Sequence[Tensor], prototypes: Tensor, gain: Tensor | None = None
    ) -> None:
        """Move the center towards the mean logit of one optimizer step, over all processes.

        Args:
            means: `mean_bottleneck` (D,) of the teacher in every micro-batch of the step.
            prototypes: the teacher's prototypes (K, D) that belong to the bottlenecks.
            gain: lengths of the prototypes (K, 1); of `prototypes` only the directions count then.
        """
        mean = sum(means, start=torch.zeros_like(means[0])) / len(means)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        logits = prototypes.float() @ mean
        if gain is not None:
            logits *= (gain / prototypes.norm(dim=1, keepdim=True))[:, 0]
        self.center.lerp_(logits, 1 - self.momentum)
