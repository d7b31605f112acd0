"""The objective written straightforwardly, the way a paper's code does it: full logits, one softmax
for each pair.

What the fast code is measured against, and the simplest statement of what it computes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STUDENT_TEMPERATURE = 0.1
TEACHER_TEMPERATURE = 0.04
CENTER_MOMENTUM = 0.9


class PlainHead(nn.Module):
    """Projection head that ends in logits (..., K)."""

    def __init__(
        self, input_dim: int, num_prototypes: int, hidden_dim: int = 2048, bottleneck_dim: int = 256
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.last = nn.utils.parametrizations.weight_norm(
            nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.last(F.normalize(self.layers(features), dim=-1))
        return logits


def plain_losses(
    student: "PlainOutput", teacher: "PlainOutput", centers: dict[str, Tensor]
) -> Tensor:
    """Both losses at weight 0.5, one pair of views after the other.

    The logits are divided by their temperatures as a whole; every pair takes a log-softmax of its
    own and gathers its own copy of the teacher's distributions.
    """
    view_targets, region_targets = (
        [F.softmax((logits - center) / TEACHER_TEMPERATURE, dim=-1) for logits in outputs]
        for outputs, center in (
            (teacher.view_logits, centers["view"]),
            (teacher.region_logits, centers["region"]),
        )
    )
    view_logits = [logits / STUDENT_TEMPERATURE for logits in student.view_logits]
    region_logits = [logits / STUDENT_TEMPERATURE for logits in student.region_logits]
    total, pairs = torch.zeros(()), 0
    for q, view_target in enumerate(view_targets):
        for v, logits in enumerate(view_logits):
            if v == q:
                continue
            pairs += 1
            view_loss = torch.sum(-view_target * F.log_softmax(logits, dim=-1), dim=-1)
            similarity = F.normalize(student.region_features[v].detach(), dim=-1) @ F.normalize(
                teacher.region_features[q], dim=-1
            ).transpose(1, 2)
            nearest = similarity.argmax(dim=-1, keepdim=True)
            matched = region_targets[q].gather(
                1, nearest.expand(-1, -1, centers["region"].shape[0])
            )
            region_loss = torch.sum(
                -matched * F.log_softmax(region_logits[v], dim=-1), dim=-1
            ).mean(dim=-1)
            total = total + (0.5 * view_loss + 0.5 * region_loss).mean()
    return total / pairs


@dataclass(frozen=True)
class PlainOutput:
    """What a network and its heads make of all views, as lists with one entry a view.

    Attributes:
        view_logits: (B, K).
        region_logits: (B, N, K).
        region_features: backbone regions (B, N, C).
    """

    view_logits: list[Tensor]
    region_logits: list[Tensor]
    region_features: list[Tensor]


def run_heads(
    view_head: PlainHead, region_head: PlainHead, pooled: Tensor, regions: list[Tensor]
) -> PlainOutput:
    """Run both heads.

    Args:
        view_head: head of the view feature.
        region_head: head of the regions.
        pooled: view features (V, B, C).
        regions: backbone regions (V_g, B, N_g, C), one tensor for each group of views of one size.
    """
    views = view_head(pooled)
    rows = region_head(torch.cat([group.flatten(0, 2) for group in regions]))
    parts = rows.split([group.shape[:3].numel() for group in regions])
    logits = [part.view(*group.shape[:3], -1) for part, group in zip(parts, regions, strict=True)]
    return PlainOutput(
        list(views),
        [view for group in logits for view in group],
        [view for group in regions for view in group],
    )


@torch.no_grad()
def update_center(center: Tensor, teacher_logits: list[Tensor]) -> None:
    """Move the center (K,) towards the mean of the teacher's logits (..., K) of all views, which
    are of one size.
    """
    mean = torch.stack([logits.flatten(0, -2).mean(dim=0) for logits in teacher_logits]).mean(dim=0)
    center.mul_(CENTER_MOMENTUM).add_(mean * (1 - CENTER_MOMENTUM))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip each parameter's gradient on its own, one after the other, as the reference does."""
    for parameter in parameters:
        if parameter.grad is not None:
            factor = max_norm / (parameter.grad.norm(2).item() + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)


@torch.no_grad()
def update_average(
    teacher: Iterable[nn.Parameter], student: Iterable[nn.Parameter], momentum: float
) -> None:
    """Move the teacher's parameters towards the student's, one after the other."""
    for target, source in zip(teacher, student, strict=True):
        target.mul_(momentum).add_((1 - momentum) * source.detach())


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Split parameters into those with and those without weight decay."""
    decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    kept = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": 0.04}, {"params": kept, "weight_decay": 0.0}]
