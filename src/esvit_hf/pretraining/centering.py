"""Center of the teacher's logits: an exponential moving average over batches and processes."""

import torch
from torch import Tensor, nn


class TeacherCenter(nn.Module):
    """Moving average of the mean teacher logit, which keeps one prototype from taking over (DINO
    section 3.1).

    A step uses the center of the step before. Logits are linear in the bottleneck, so D numbers are
    averaged over micro-batches and processes, and the K logits follow from them once per optimizer
    step.

    Args:
        num_prototypes: number of prototypes K.
        bottleneck_dim: bottleneck channels D.
        momentum: share of the old center that is kept.
    """

    def __init__(self, num_prototypes: int, bottleneck_dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes, dtype=torch.float32))
        pending = torch.zeros(bottleneck_dim, dtype=torch.float32)
        self.register_buffer("pending_sum", pending, persistent=False)
        self.register_buffer("pending_batches", torch.zeros(()), persistent=False)
        self.center: Tensor
        self.pending_sum: Tensor
        self.pending_batches: Tensor

    @torch.no_grad()
    def observe(self, bottleneck: Tensor) -> None:
        """Note the teacher bottlenecks (..., D) of one micro-batch."""
        self.pending_sum += bottleneck.float().flatten(0, -2).mean(dim=0)
        self.pending_batches += 1

    @torch.no_grad()
    def update_center(self, prototypes: Tensor, gain: Tensor | None = None) -> None:
        """Move the center towards the mean logit observed since the last update, over all
        processes.

        Args:
            prototypes: the teacher's prototypes (K, D) that belong to the observed bottlenecks.
            gain: lengths of the prototypes (K, 1); of `prototypes` only the directions count then.
        """
        mean = self.pending_sum / self.pending_batches
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        logits = prototypes.float() @ mean
        if gain is not None:
            logits *= (gain / prototypes.norm(dim=1, keepdim=True))[:, 0]
        self.center.lerp_(logits, 1 - self.momentum)
        self.pending_sum.zero_()
        self.pending_batches.zero_()
