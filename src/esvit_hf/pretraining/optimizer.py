"""Parameter groups, AdamW and gradient clipping of the reference, in a handful of kernels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def build_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """Build AdamW with two groups: weights of rank 2 and more decay, biases and rank-1 tensors do
    not.

    The learning rate and the weight decay of the first group are set by schedules at every step.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (kept if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)
    start_averages(optimizer)
    return optimizer


def start_averages(optimizer: torch.optim.Optimizer) -> None:
    """Make the averages of AdamW before its first step, and free those of parameters that it no
    longer has, once shards have taken their place.

    Made during the first step, they would lie between its activations and split the memory that the
    next step's need in one piece (measured: a quarter of the peak on CPU).
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                # The type that PyTorch itself takes, and turns to.
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, a scalar tensor."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale down each parameter's own gradient to a norm of at most `max_norm`, as the reference
    does.

    Args:
        parameters: parameters, with or without gradients.
        max_norm: largest norm of a single gradient.

    Returns:
        The norm of all gradients together before clipping, a scalar tensor.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    # In lists up to the end, as PyTorch 2.9 cannot take a stack of norms of sharded gradients
    # apart.
    scales = torch._foreach_add(norms, 1e-6)
    torch._foreach_reciprocal_(scales)
    torch._foreach_mul_(scales, max_norm)
    torch._foreach_clamp_max_(scales, 1.0)
    torch._foreach_mul_(gradients, scales)
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_all_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients together to a global norm of at most `max_norm`; return the norm before
    clipping.
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
