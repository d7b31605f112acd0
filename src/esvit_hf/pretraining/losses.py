"""View loss and region-matching loss, without ever holding a (regions x prototypes) tensor.

Letters: B images, V student views, Q teacher views, N regions, C channels, D bottleneck channels, K prototypes.
The Q teacher views are the first Q of the V student views.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_ELEMENTS = 2**24
"""Logits held at once, in elements: 64 MiB of float32."""


class _MatchedCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies between rows of two softmax distributions over prototypes.

    With student logits z_i = s_i W / t_s, teacher distributions p_j and pairs (i, j) of weight w_ij:
        loss = sum_i r_i logsumexp(z_i) - sum_ij w_ij <p_j, z_i>,   r_i = sum_j w_ij.
    <p_j, z_i> = s_i . (p_j W) / t_s needs one D-vector a teacher row, however many student rows match it. The gradients
    are linear in the same block-wise distributions, so the forward pass yields them and nothing is recomputed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        centre: Tensor,
        student_temperature: float,
        teacher_temperature: float,
        match: Tensor,
        weight: Tensor,
        block_elements: int,
    ) -> Tensor:
        device = student.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student.dtype
        accumulate = torch.promote_types(student.dtype, torch.float32)
        need_student, need_prototypes = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        with torch.autocast(device, enabled=False):
            student, weight = student.to(accumulate), weight.to(accumulate)
            row_weight = weight.sum(dim=1)
            values = prototypes.to(compute)
            rows = max(1, block_elements // prototypes.shape[0])
            gradient_prototypes = torch.zeros_like(prototypes, dtype=accumulate) if need_prototypes else None

            pull = torch.zeros(teacher.shape[0], student.shape[1], dtype=accumulate, device=student.device)
            if need_prototypes:
                for column in range(match.shape[1]):
                    pull.index_add_(0, match[:, column], weight[:, column, None] * student)
            expected = torch.empty_like(pull)
            keys = teacher_prototypes.to(compute).t()
            offset = (centre.to(accumulate) / -teacher_temperature).view(1, -1)
            scaled = (teacher.to(accumulate) / teacher_temperature).to(compute)
            for start in range(0, teacher.shape[0], rows):
                block = slice(start, start + rows)
                logits = (scaled[block] @ keys).to(accumulate).add_(offset)
                probabilities = torch.softmax(logits, dim=1).to(compute)
                expected[block] = probabilities @ values
                if gradient_prototypes is not None:
                    gradient_prototypes.sub_(probabilities.t() @ pull[block].to(compute))

            target = torch.zeros_like(student)
            for column in range(match.shape[1]):
                target.addcmul_(expected[match[:, column]], weight[:, column, None])
            loss = -(target * student).sum() / student_temperature

            mean_prototype = torch.empty_like(student) if need_student else None
            keys = values.t()
            scaled = (student / student_temperature).to(compute)
            for start in range(0, student.shape[0], rows):
                block = slice(start, start + rows)
                logits = (scaled[block] @ keys).to(accumulate)
                normaliser = torch.logsumexp(logits, dim=1)
                loss = loss + (row_weight[block] * normaliser).sum()
                if not (need_student or need_prototypes):
                    continue
                probabilities = logits.sub_(normaliser[:, None]).exp_().to(compute)
                if mean_prototype is not None:
                    mean_prototype[block] = probabilities @ values
                if gradient_prototypes is not None:
                    weighted = (row_weight[block, None] * student[block]).to(compute)
                    gradient_prototypes.add_(probabilities.t() @ weighted)

            gradient_student = None
            if mean_prototype is not None:
                gradient_student = (mean_prototype.mul_(row_weight[:, None]) - target).div_(student_temperature)
            if gradient_prototypes is not None:
                gradient_prototypes.div_(student_temperature)
        ctx.save_for_backward(gradient_student, gradient_prototypes)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient_student, gradient_prototypes = ctx.saved_tensors
        return (
            None if gradient_student is None else gradient_student * gradient,
            None if gradient_prototypes is None else gradient_prototypes * gradient,
            *(None,) * 8,
        )


def matched_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    match: Tensor,
    weight: Tensor,
    block_elements: int | None = None,
) -> Tensor:
    """Weighted cross-entropy from matched teacher rows to student rows, in memory independent of their number.

    Gradients flow to `student` and `prototypes`. Matrix products run in the autocast dtype, everything else in float32
    (float64 for float64 input).

    Args:
        student: student bottlenecks (M, D).
        prototypes: student prototypes (K, D).
        teacher: teacher bottlenecks (T, D).
        teacher_prototypes: teacher prototypes (K, D).
        centre: centre of the teacher logits, K elements.
        student_temperature: divides the student logits.
        teacher_temperature: divides the centred teacher logits.
        match: teacher rows of each student row (M, P), int64.
        weight: weight of each pair (M, P), 0 for a pair that does not count.
        block_elements: logits held at once; `BLOCK_ELEMENTS` by default.

    Returns:
        The scalar sum over pairs of weight times cross-entropy.
    """
    loss: Tensor = _MatchedCrossEntropy.apply(
        student,
        prototypes,
        teacher,
        teacher_prototypes,
        centre,
        student_temperature,
        teacher_temperature,
        match,
        weight,
        block_elements or BLOCK_ELEMENTS,
    )
    return loss


def count_pairs(student_views: int, teacher_views: int) -> int:
    """Return the number of (teacher view, other student view) pairs that a loss averages over.

    Raises:
        ValueError: if there is no such pair.
    """
    pairs = teacher_views * (student_views - 1)
    if pairs < 1:
        raise ValueError(
            f"{student_views} student view(s) and {teacher_views} teacher view(s) form no pair of different views: "
            "give at least one teacher view and one more view"
        )
    return pairs


def view_loss(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy between views of an image, averaged over images and pairs of different views (EsViT eq. 1, L_V).

    Args:
        student: view bottlenecks of the student (V, B, D).
        prototypes: prototypes of the student's view head (K, D).
        teacher: view bottlenecks of the teacher (Q, B, D).
        teacher_prototypes: prototypes of the teacher's view head (K, D).
        centre: centre of the teacher's view logits, K elements.
        student_temperature: temperature of the student.
        teacher_temperature: temperature of the teacher.

    Returns:
        The scalar loss.
    """
    (student_views, images, _), teacher_views = student.shape, teacher.shape[0]
    device = student.device
    view = torch.arange(student_views, device=device).view(-1, 1, 1)
    image = torch.arange(images, device=device).view(1, -1, 1)
    teacher_view = torch.arange(teacher_views, device=device).view(1, 1, -1)
    match = (teacher_view * images + image).expand(student_views, -1, -1)
    weight = (view != teacher_view).to(student.dtype) / (images * count_pairs(student_views, teacher_views))
    return matched_cross_entropy(
        student.flatten(0, 1),
        prototypes,
        teacher.flatten(0, 1),
        teacher_prototypes,
        centre,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        match=match.flatten(0, 1),
        weight=weight.expand(-1, images, -1).flatten(0, 1),
    )


def match_regions(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Find for each student region the teacher region with the highest cosine similarity (EsViT section 3.2).

    Args:
        student_features: backbone regions of the student (..., N, C).
        teacher_features: backbone regions of the teacher (..., M, C).

    Returns:
        Indices (..., N) into the M teacher regions, int64.
    """
    with torch.no_grad(), torch.autocast(student_features.device.type, enabled=False):
        dtype = torch.promote_types(student_features.dtype, torch.float32)
        student_unit = F.normalize(student_features.detach().to(dtype), dim=-1)
        teacher_unit = F.normalize(teacher_features.detach().to(dtype), dim=-1)
        return (student_unit @ teacher_unit.mT).argmax(dim=-1)


def region_loss(
    student: Sequence[Tensor],
    student_features: Sequence[Tensor],
    prototypes: Tensor,
    teacher: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    teacher_prototypes: Tensor,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Cross-entropy between matched regions, averaged over regions, images and pairs of views (EsViT eq. 2, L_R).

    Views come in groups of one size, in view order: the first teacher group holds the first teacher views, and so on.

    Args:
        student: region bottlenecks of the student, one tensor (V_g, B, N_g, D) a group.
        student_features: backbone regions of the student, one tensor (V_g, B, N_g, C) a group.
        prototypes: prototypes of the student's region head (K, D).
        teacher: region bottlenecks of the teacher, one tensor (Q_g, B, N_g, D) a group.
        teacher_features: backbone regions of the teacher, one tensor (Q_g, B, N_g, C) a group.
        teacher_prototypes: prototypes of the teacher's region head (K, D).
        centre: centre of the teacher's region logits, K elements.
        student_temperature: temperature of the student.
        teacher_temperature: temperature of the teacher.

    Returns:
        The scalar loss.
    """
    images, device = student[0].shape[1], student[0].device
    pairs = count_pairs(sum(group.shape[0] for group in student), sum(group.shape[0] for group in teacher))
    matches, weights = [], []
    first_view = 0
    for features in student_features:
        views, _, regions, _ = features.shape
        view = torch.arange(first_view, first_view + views, device=device).view(-1, 1)
        first_view += views
        group_matches, group_weights = [], []
        first_teacher_view = first_row = 0
        for target in teacher_features:
            teacher_views, _, teacher_regions, _ = target.shape
            nearest = match_regions(features[:, None], target[None])
            row = torch.arange(teacher_views * images, device=device).view(1, teacher_views, images, 1)
            group_matches.append(nearest + row * teacher_regions + first_row)
            teacher_view = torch.arange(first_teacher_view, first_teacher_view + teacher_views, device=device)
            counts = (view != teacher_view).to(student[0].dtype) / (regions * images * pairs)
            group_weights.append(counts[:, :, None, None].expand(-1, -1, images, regions))
            first_teacher_view += teacher_views
            first_row += teacher_views * images * teacher_regions
        matches.append(torch.cat(group_matches, dim=1).movedim(1, -1).flatten(0, 2))
        weights.append(torch.cat(group_weights, dim=1).movedim(1, -1).flatten(0, 2))
    return matched_cross_entropy(
        torch.cat([group.flatten(0, 2) for group in student]),
        prototypes,
        torch.cat([group.flatten(0, 2) for group in teacher]),
        teacher_prototypes,
        centre,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        match=torch.cat(matches),
        weight=torch.cat(weights),
    )
