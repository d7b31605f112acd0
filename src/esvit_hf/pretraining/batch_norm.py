"""Batch norm over the batches of all processes, on any device (PyTorch's own SyncBatchNorm needs a
GPU).
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; so is its gradient, as every process's loss depends on
    the sum.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm whose statistics in training are those of the batches of all processes together.

    All batches must be of one size. Arguments and state are those of `torch.nn.BatchNorm2d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: Tensor) -> Tensor:
        """Normalize features (B, C, ...)."""
        if not self.training:
            return super().forward(input)
        features = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(features, [0, *range(2, input.ndim)], correction=0)
        processes = distributed.get_world_size()
        own = torch.arange(processes, device=input.device) == distributed.get_rank()
        # One row a process: a variance from sums of squares would cancel where the mean is large.
        everyone = _SumOverProcesses.apply(torch.stack([mean, variance]) * own.view(-1, 1, 1))
        means, variances = everyone.unbind(1)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        self._update_statistics(
            mean.detach(), variance.detach(), processes * features.numel() // features.shape[1]
        )
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = (1, -1, *[1] * (input.ndim - 2))
        return torch.addcmul(shift.view(shape), features, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if (
            self.running_mean is None
            or self.running_var is None
            or self.num_batches_tracked is None
        ):
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


def synchronize_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm inside a module by one that sees the batches of all processes, in
    place.

    Raises:
        ValueError: for a batch norm of a kind that does more tha normalize.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and type(child) in PLAIN_BATCH_NORMS:
            setattr(module, name, _synchronized(child))
        elif isinstance(child, _BatchNorm) and not isinstance(child, SynchronizedBatchNorm):
            raise ValueError(
                f"{name} is a {type(child).__name__}, whose statistics cannot be shared by several "
                f"processes: train on one process, or take a network with nn.BatchNorm2d"
            )
        else:
            synchronize_batch_norms(child)


def _synchronized(norm: _BatchNorm) -> SynchronizedBatchNorm:
    new = SynchronizedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)
