"""Cross-entropy from matched teacher rows to student rows: the formula, and a fast way to it.

`plain_cross_entropy` is the definition, a few lines with every logit at once. At 65,536 prototypes
those logits are gigabytes. `matched_cross_entropy` gives the same loss and gradients tile by tile,
without ever holding a (rows x prototypes) tensor.

Letters: M student rows, T teacher rows, P pairs of a student row, D bottleneck channels, K
prototypes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esvit_hf.acceleration.linear import multiply_transposed

BLOCK_ELEMENTS = 2**25
"""Logits held at once, in elements: 128 MiB of float32."""
CPU_COLUMNS = 4096
CPU_TILE_ELEMENTS = 2**20
"""On CPU prototypes are taken by so many, with as many rows as keep the product in the cache."""
FLOAT16_BOUND = 2.0**15
"""What a sum of products in float16 may reach; the largest float16 is 65,504."""


def prototype_matrix(directions: Tensor, gain: Tensor | None) -> Tensor:
    """Return the prototypes (K, D): `directions` (K, D), brought to the lengths `gain` (K, 1) if
    there are any.
    """
    return (
        directions if gain is None else directions * (gain / directions.norm(dim=1, keepdim=True))
    )


def plain_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    match: Tensor,
    weight: Tensor,
    gain: Tensor | None = None,
    teacher_gain: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy from matched teacher rows to student rows (EsViT eq. 1 and 2).

    Args:
        student: student bottlenecks (M, D).
        prototypes: student prototypes (K, D).
        teacher: teacher bottlenecks (T, D).
        teacher_prototypes: teacher prototypes (K, D).
        center: center of the teacher logits, K elements.
        student_temperature: divides the student logits.
        teacher_temperature: divides the centered teacher logits.
        match: teacher rows of each student row (M, P), int64.
        weight: weight of each pair (M, P), 0 for a pair that does not count.
        gain: lengths of the student's prototypes (K, 1); of `prototypes` only the directions count
            then.
        teacher_gain: the same for the teacher's.

    Returns:
        The scalar sum over pairs of weight times cross-entropy.
    """
    student_logits = student @ prototype_matrix(prototypes, gain).T / student_temperature
    with torch.no_grad():
        teacher_logits = teacher @ prototype_matrix(teacher_prototypes, teacher_gain).T - center
        targets = (teacher_logits / teacher_temperature).softmax(dim=1)
    log_student = student_logits.log_softmax(dim=1)
    cross_entropy = -(targets[match] * log_student[:, None]).sum(dim=2)
    return (weight * cross_entropy).sum()


def _blocks_of_prototypes(prototypes: Tensor) -> list[slice]:
    """Split K rows into blocks that stay in the cache on CPU; one block elsewhere."""
    count = prototypes.shape[0]
    size = CPU_COLUMNS if prototypes.device.type == "cpu" else count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Prototypes:
    """The prototype matrix W (K, D) as blocks of columns of the logits, without a float32 copy of
    it.

    Args:
        directions: (K, D).
        gain: (K, 1), the lengths of the prototypes; None if `directions` have them.
        dtype: type of the products.
    """

    def __init__(self, directions: Tensor, gain: Tensor | None, dtype: torch.dtype) -> None:
        self.matrix = self.directions = directions
        self.gain = gain
        self.column_scale: Tensor | None = None
        if gain is not None:
            self.lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
            self.scale = gain / self.lengths
            self.column_scale = self.scale.t()
        if dtype != directions.dtype:
            # A smaller copy is needed anyway: it takes the scale in.
            self.matrix = torch.empty_like(directions, dtype=dtype)
            for block in _blocks_of_prototypes(directions):
                self.matrix[block] = (
                    directions[block] if gain is None else directions[block] * self.scale[block]
                )
            self.column_scale = None

    def logits(self, rows: Tensor, columns: slice, dtype: torch.dtype) -> Tensor:
        """Return rows (R, D) @ W.T, of the columns asked for (R, C)."""
        logits = multiply_transposed(rows, self.matrix[columns]).to(dtype)
        return logits if self.column_scale is None else logits.mul_(self.column_scale[:, columns])

    def mean(self, probabilities: Tensor, columns: slice) -> Tensor:
        """Return probabilities (R, C) @ W (R, D), of the columns given."""
        if self.column_scale is not None:
            probabilities = probabilities * self.column_scale[:, columns]
        return multiply_transposed(probabilities, self.matrix[columns].t())

    def pull_back(self, gradient: Tensor, columns: slice) -> Tensor:
        """Turn the gradient (C, D) of W into that of the directions, in place, and return the
        gain's (C, 1).
        """
        directions, lengths = self.directions[columns], self.lengths[columns]
        gradient_gain = (gradient * directions).sum(dim=1, keepdim=True) / lengths
        gradient.addcmul_(directions, gradient_gain / lengths, value=-1).mul_(self.scale[columns])
        return gradient_gain


def _float16_scale(weights: Tensor, compute: torch.dtype) -> Tensor:
    """Find the power of two that lets weights.T @ P use the range of float16, for probabilities P.

    A weight of 1e-5 times a probability of 1e-5 is zero in float16, and the loss scale comes too
    late for it. Probabilities are at most 1, so no entry of the product exceeds the sum of the
    weights' sizes.

    Args:
        weights: (tiles, R, D), in the type of the sums.
        compute: type of the product.

    Returns:
        One factor a tile (tiles, 1, 1); 1 for a product in another type.
    """
    if compute != torch.float16:
        return weights.new_ones(weights.shape[0], 1, 1)
    largest = weights.abs().sum(dim=1, keepdim=True).amax(dim=2, keepdim=True)
    # Weights that are all zero must not make the factor infinite.
    return (FLOAT16_BOUND / largest.clamp(min=2.0**-64)).log2().floor().exp2()


class _Tiles:
    """Blocks of rows and of prototypes in which distributions are formed, and the gradient that
    gathers there.

    Args:
        prototypes: those that the gradient is for.
        dtype: type in which sums are kept.
        block_elements: logits held at once.
    """

    def __init__(self, prototypes: _Prototypes, dtype: torch.dtype, block_elements: int) -> None:
        self.prototypes = prototypes
        count, width = prototypes.directions.shape
        device = prototypes.directions.device
        self.columns = _blocks_of_prototypes(prototypes.directions)
        rows = block_elements // count
        if device.type == "cpu":
            rows = min(rows, CPU_TILE_ELEMENTS // self.columns[0].stop)
        self.rows = max(1, rows)
        self.gradient = torch.zeros(count, width, dtype=dtype, device=device)
        # Until the end a block (C, D) holds its transpose (D, C): that product is the faster one on
        # CPU.
        self.transposed = [self.gradient[block].view(width, -1) for block in self.columns]

    def softmax_products(
        self, rows: Tensor, keys: _Prototypes, offset: Tensor | None, pull: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Form P = softmax(rows @ keys.T + offset) tile by tile, and use each tile twice.

        A block of rows goes through all prototypes before its sums are known; each tile is
        normalized on its own, and `share` is what it has of the whole. P.T @ pull is added to the
        gradient.

        Args:
            rows: (M, D), in the type of the sums.
            keys: prototypes that give the logits (K, D).
            offset: added to the logits, K elements.
            pull: (M, D).

        Returns:
            P @ prototypes (M, D) and the logsumexp of the logits (M,).
        """
        compute = keys.matrix.dtype
        mean = torch.empty_like(rows)
        normalizer = rows.new_empty(rows.shape[0])
        for start in range(0, rows.shape[0], self.rows):
            some = slice(start, start + self.rows)
            queries = rows[some].to(compute)
            tiles, means, normalizers = [], [], []
            for columns in self.columns:
                logits = keys.logits(queries, columns, rows.dtype)
                if offset is not None:
                    logits.add_(offset[columns])
                probabilities = torch.softmax(logits, dim=1)
                # The largest probability is the largest exponential over their sum.
                normalizers.append(logits.amax(dim=1) - probabilities.amax(dim=1).log())
                tiles.append(probabilities.to(compute))
                means.append(self.prototypes.mean(tiles[-1], columns))
            stacked = torch.stack(normalizers)
            share = torch.softmax(stacked, dim=0).unsqueeze(2)
            normalizer[some] = torch.logsumexp(stacked, dim=0)
            mean[some] = (torch.stack(means) * share).sum(dim=0)
            weighted = pull[some] * share
            scale = _float16_scale(weighted, compute)
            weighted = weighted.mul_(scale).to(compute)
            for tile, weights, factor, total in zip(
                tiles, weighted, scale, self.transposed, strict=True
            ):
                total.addcdiv_(multiply_transposed(weights.t(), tile.t()), factor)
        return mean, normalizer

    def finish_gradients(self) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of the prototypes' directions (K, D) and gain (K, 1)."""
        gains = []
        for block, columns in zip(self.transposed, self.columns, strict=True):
            gradient = self.gradient[columns]
            gradient.copy_(block.t().clone(memory_format=torch.contiguous_format))
            if self.prototypes.gain is not None:
                gains.append(self.prototypes.pull_back(gradient, columns))
        return self.gradient, torch.cat(gains) if gains else None


@dataclass(frozen=True)
class _CrossEntropyInputs:
    """Arguments of `matched_cross_entropy` and the types it computes in."""

    student: Tensor
    prototypes: Tensor
    gain: Tensor | None
    teacher: Tensor
    teacher_prototypes: Tensor
    teacher_gain: Tensor | None
    center: Tensor
    student_temperature: float
    teacher_temperature: float
    match: Tensor
    weight: Tensor
    block_elements: int
    compute: torch.dtype
    accumulate: torch.dtype

    def loss_and_gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the loss and its gradients for student, prototypes and gain.

        With student logits z_i = s_i W / t_s, teacher distributions p_j and pairs (i, j) of weight
        w_ij:
            loss = sum_i r_i logsumexp(z_i) - sum_ij w_ij <p_j, z_i>,   r_i = sum_j w_ij.
        <p_j, z_i> = s_i . (p_j W) / t_s needs one D-vector a teacher row, however many student rows
        match it. The gradients are linear in the same distributions, so they come with the loss and
        no logit is computed twice.
        """
        prototypes = _Prototypes(self.prototypes, self.gain, self.compute)
        teacher_prototypes = _Prototypes(self.teacher_prototypes, self.teacher_gain, self.compute)
        tiles = _Tiles(prototypes, self.accumulate, self.block_elements)
        student = self.student.to(self.accumulate) / self.student_temperature
        teacher = self.teacher.to(self.accumulate) / self.teacher_temperature
        offset = self.center.to(self.accumulate) / -self.teacher_temperature
        weight = self.weight.to(self.accumulate)
        row_weight = weight.sum(dim=1, keepdim=True)
        pairs = list(zip(self.match.unbind(1), weight.unsqueeze(2).unbind(1), strict=True))

        pull = torch.zeros_like(teacher)
        for rows, weights in pairs:
            pull.index_add_(0, rows, weights * student, alpha=-1)
        expected, _ = tiles.softmax_products(teacher, teacher_prototypes, offset, pull)
        target = torch.zeros_like(student)
        for rows, weights in pairs:
            target.addcmul_(expected[rows], weights)

        mean, normalizer = tiles.softmax_products(student, prototypes, None, row_weight * student)
        loss = (row_weight[:, 0] * normalizer).sum() - (target * student).sum()
        gradient_student = mean.mul_(row_weight).sub_(target).div_(self.student_temperature)
        return loss, gradient_student, *tiles.finish_gradients()


class _MatchedCrossEntropy(torch.autograd.Function):
    """Hands the gradients that came with the loss on to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        gain: Tensor | None,
        inputs: _CrossEntropyInputs,
    ) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            loss, *ctx.gradients = inputs.loss_and_gradients()
        ctx.inputs = inputs
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients become the parameters' own without a copy; a second pass through the graph
        # computes new ones.
        if ctx.gradients is None:
            with torch.autocast(gradient.device.type, enabled=False):
                _, *ctx.gradients = ctx.inputs.loss_and_gradients()
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if value is None else value.mul_(gradient) for value in gradients), None)


def matched_cross_entropy(
    student: Tensor,
    prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    center: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    match: Tensor,
    weight: Tensor,
    gain: Tensor | None = None,
    teacher_gain: Tensor | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """Compute `plain_cross_entropy` and its gradients in memory independent of the number of rows.

    Gradients flow to `student`, `prototypes` and `gain`. Matrix products run in the autocast dtype,
    everything else in float32 (float64 for float64 input).

    Args:
        student: as in `plain_cross_entropy`, like all that is not named here.
        block_elements: logits held at once; `BLOCK_ELEMENTS` by default, less on CPU.

    Returns:
        The scalar sum over pairs of weight times cross-entropy.
    """
    device = student.device.type
    compute = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else prototypes.dtype
    )
    inputs = _CrossEntropyInputs(
        student.detach(),
        prototypes.detach(),
        None if gain is None else gain.detach(),
        teacher,
        teacher_prototypes,
        teacher_gain,
        center,
        student_temperature,
        teacher_temperature,
        match,
        weight,
        block_elements or BLOCK_ELEMENTS,
        compute,
        torch.promote_types(prototypes.dtype, torch.float32),
    )
    loss: Tensor = _MatchedCrossEntropy.apply(student, prototypes, gain, inputs)
    return loss
