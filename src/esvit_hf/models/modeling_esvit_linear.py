"""A linear layer that multiplies float32 matrices with oneDNN on CPU, where PyTorch alone would use
MKL.

MKL leaves the AVX-512 units of AMD processors unused: there oneDNN is about twice as fast
(measured: forward 2.3 times, gradient of the input 2.4 times, gradient of the weight 1.2 to 2
times). On other processors the two are equally fast. In 16 bits PyTorch itself uses oneDNN.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _onednn_product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Compute left (..., M, K) @ right.T + bias for right (N, K)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


class _OneDnnLinear(torch.autograd.Function):
    """`F.linear` and its gradient with oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _onednn_product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        for_inputs = (
            _OneDnnLinear.apply(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        )
        for_weight = (
            _weight_gradient(rows, inputs.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        )
        return for_inputs, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _weight_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Compute gradient.T (N, M) @ inputs (M, K).

    The operator copies its left side, transposed here and slow to read: of two ways the one with
    the narrower copy.
    """
    if gradient.shape[1] <= inputs.shape[1]:
        return cast("Tensor", _OneDnnLinear.apply(gradient.t(), inputs.t(), None))
    return cast("Tensor", _OneDnnLinear.apply(inputs.t(), gradient.t(), None)).t()


# The operator is what torch.compile itself emits for CPUs; it is absent from builds without oneDNN.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def _takes_onednn(inputs: Tensor, weight: Tensor) -> bool:
    return bool(
        _HAS_ONEDNN
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        # Distributed, quantized and otherwise wrapped tensors have their own products.
        and type(inputs) is Tensor
        and type(weight) is nn.Parameter
        and inputs.ndim > 1
        and inputs.numel() > 0
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def multiply_transposed(left: Tensor, right: Tensor) -> Tensor:
    """Multiply plain tensors outside autograd and autocast, in float32 on CPU with oneDNN.

    Args:
        left: (M, K).
        right: (N, K), of the same type and device.

    Returns:
        (M, N), left @ right.T.
    """
    if (
        _HAS_ONEDNN
        and left.device.type == "cpu"
        and left.dtype == torch.float32
        and left.numel() > 0
    ):
        return _onednn_product(left, right, None)
    return left @ right.t()


class EsvitLinear(nn.Linear):
    """`nn.Linear` with the same parameters and results up to rounding, faster in float32 on some
    CPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: (..., in_features).

        Returns:
            (..., out_features).
        """
        if _takes_onednn(input, self.weight):
            output: Tensor = _OneDnnLinear.apply(input, self.weight, self.bias)
            return output
        return F.linear(input, self.weight, self.bias)
