"""A linear layer that multiplies float32 matrices with oneDNN on CPU, where PyTorch alone would use MKL.

MKL leaves the AVX-512 units of AMD processors unused: there oneDNN is about twice as fast (measured: forward 2.3 times,
gradient of the input 2.4 times, gradient of the weight 1.2 to 2 times). On other processors the two are equally fast.
In 16 bits PyTorch itself uses oneDNN.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
        for_inputs = _OneDnnLinear.apply(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        for_weight = _OneDnnLinear.apply(rows.t(), inputs.flatten(0, -2).t(), None) if ctx.needs_input_grad[1] else None
        return for_inputs, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


# The operator is what torch.compile itself emits for CPUs; it is absent from builds without oneDNN.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _takes_onednn(inputs: Tensor, weight: Tensor) -> bool:
    return bool(
        _HAS_ONEDNN
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        # Distributed, quantised and otherwise wrapped tensors have their own products.
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


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Compute left (..., M, K) @ right.T + bias outside autograd and autocast."""
    if _HAS_ONEDNN and left.device.type == "cpu" and left.dtype == torch.float32 and left.numel() > 0:
        return _onednn_product(left, right, bias)
    return F.linear(left, right, bias)


def multiply_transposed(left: Tensor, right: Tensor) -> Tensor:
    """Multiply plain tensors outside autograd and autocast, in float32 on CPU with oneDNN.

    Args:
        left: (M, K).
        right: (N, K), of the same type and device.

    Returns:
        (M, N), left @ right.T.
    """
    return _product(left, right, None)


class EsvitLinear(nn.Linear):
    """`nn.Linear` with the same parameters and results up to rounding, faster in float32 on some CPUs."""

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


class _LinearAfter(torch.autograd.Function):
    """A linear layer behind a function, whose arguments are kept for the backward pass instead of its result."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        num_arguments: int,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        device = weight.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.function, ctx.num_arguments = function, num_arguments
        ctx.autocast = {"device_type": device, "dtype": dtype, "enabled": enabled}
        ctx.save_for_backward(weight, bias, *tensors)
        inputs = function(*tensors[:num_arguments])
        dtype = dtype if enabled else inputs.dtype
        with torch.autocast(device, enabled=False):
            return _product(inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weight, bias, *tensors = saved
        arguments, parameters = tensors[: ctx.num_arguments], tensors[ctx.num_arguments :]
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            # The gradient will be differentiated itself: leave it all to autograd.
            with torch.autocast(**ctx.autocast):
                output = F.linear(ctx.function(*arguments), weight, bias)
            return None, None, *_gradients(output, saved, needed, gradient, create_graph=True)
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(arguments, needed[2:], strict=False)]
            inputs = ctx.function(*leaves)
        rows = gradient.flatten(0, -2)
        for_weight = for_bias = None
        with torch.autocast(gradient.device.type, enabled=False):
            for_inputs = _product(gradient, weight.to(gradient.dtype).t(), None).to(inputs.dtype)
            if needed[0]:
                values = inputs.detach().to(gradient.dtype).flatten(0, -2)
                for_weight = _product(rows.t(), values.t(), None).to(weight.dtype)
            if needed[1]:
                for_bias = rows.sum(0).to(bias.dtype)
        others = _gradients(inputs, [*leaves, *parameters], needed[2:], for_inputs)
        return None, None, for_weight, for_bias, *others


def _gradients(
    output: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool], gradient: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """Gradients of the tensors for which they are needed, None for the others."""
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    if not wanted:
        return [None] * len(tensors)
    found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=create_graph, allow_unused=True))
    return [next(found) if need else None for need in needed]


def linear_after(
    linear: nn.Module,
    function: Callable[..., Tensor],
    *arguments: Tensor,
    parameters: Iterable[nn.Parameter] = (),
) -> Tensor:
    """Compute linear(function(*arguments)), and keep for the backward pass the arguments instead of the result.

    For functions that are cheap beside the layer and whose result is kept by nothing else: activations, norms, copies.
    Compilers make this choice themselves, so a traced network gets the plain expression.

    Args:
        linear: the layer; the plain expression is used for any but an unchanged `EsvitLinear`.
        function: deterministic; it is called again in the backward pass.
        *arguments: tensors, of which no other is used by the function but its parameters.
        parameters: what the function uses beside its arguments and needs gradients.

    Returns:
        (..., out_features).
    """
    if (
        torch.is_grad_enabled()
        and type(linear) is EsvitLinear
        and type(linear.weight) is nn.Parameter
        and all(type(argument) is Tensor for argument in arguments)
        and not (linear._forward_hooks or linear._forward_pre_hooks)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    ):
        output: Tensor = _LinearAfter.apply(
            function, len(arguments), linear.weight, linear.bias, *arguments, *parameters
        )
        return output
    result: Tensor = linear(function(*arguments))
    return result
