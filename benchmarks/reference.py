"""The objective written straightforwardly, the way a paper's code does it: full logits, one softmax for each pair.

What the fast code is measured against, and the simplest statement of what it computes.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.04
CENTRE_MOMENTUM = 0.9


class PlainHead(nn.Module):
    """Projection head that ends in logits (..., K)."""

    def __init__(self, input_dim: int, num_prototypes: int, hidden_dim: int = 2048, bottleneck_dim: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck_dim, num_prototypes, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.last(F.normalize(self.layers(features), dim=-1))
        return logits


def plain_view_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], centre: Tensor) -> Tensor:
    """View loss of logits (B, K), one tensor a view."""
    total, pairs = torch.zeros(()), 0
    targets = [F.softmax((logits - centre) / TEACHER_TEMPERATURE, dim=-1).detach() for logits in teacher]
    for q, target in enumerate(targets):
        for v, logits in enumerate(student):
            if v != q:
                log_probabilities = F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)
                total = total - (target * log_probabilities).sum(dim=-1).mean()
                pairs += 1
    return total / pairs


def plain_region_loss(
    student: Sequence[Tensor],
    student_features: Sequence[Tensor],
    teacher: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    centre: Tensor,
) -> Tensor:
    """Region loss of logits (B, N, K) and backbone regions (B, N, C), one tensor a view."""
    total, pairs = torch.zeros(()), 0
    targets = [F.softmax((logits - centre) / TEACHER_TEMPERATURE, dim=-1).detach() for logits in teacher]
    for q, target in enumerate(targets):
        target_unit = F.normalize(teacher_features[q], dim=-1)
        for v, logits in enumerate(student):
            if v == q:
                continue
            similarity = F.normalize(student_features[v].detach(), dim=-1) @ target_unit.transpose(1, 2)
            nearest = similarity.argmax(dim=-1, keepdim=True)
            matched = target.gather(1, nearest.expand(-1, -1, target.shape[-1]))
            log_probabilities = F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)
            total = total - (matched * log_probabilities).sum(dim=-1).mean()
            pairs += 1
    return total / pairs


@torch.no_grad()
def update_centre(centre: Tensor, teacher_logits: Tensor) -> None:
    """Move the centre (K,) towards the mean of the teacher's logits (..., K)."""
    mean = teacher_logits.flatten(0, -2).mean(dim=0)
    centre.mul_(CENTRE_MOMENTUM).add_(mean * (1 - CENTRE_MOMENTUM))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip each parameter's gradient on its own, one after the other, as the reference does."""
    for parameter in parameters:
        if parameter.grad is not None:
            factor = max_norm / (parameter.grad.norm(2).item() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)


@torch.no_grad()
def update_average(teacher: Iterable[nn.Parameter], student: Iterable[nn.Parameter], momentum: float) -> None:
    """Move the teacher's parameters towards the student's, one after the other."""
    for target, source in zip(teacher, student, strict=True):
        target.mul_(momentum).add_((1 - momentum) * source.detach())


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Split parameters into those with and those without weight decay."""
    decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    kept = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": 0.04}, {"params": kept, "weight_decay": 0.0}]
