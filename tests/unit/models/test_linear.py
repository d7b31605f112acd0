"""The linear layer of the networks is `nn.Linear`, however it multiplies."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from esvit_hf.models import modeling_esvit_linear
from esvit_hf.models.modeling_esvit_linear import EsvitLinear, _OneDnnLinear

needs_onednn = pytest.mark.skipif(
    not modeling_esvit_linear._HAS_ONEDNN, reason="this PyTorch has no oneDNN"
)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12)])
def test_outputs_and_gradients_equal_those_of_pytorch(shape, bias):
    torch.manual_seed(0)
    layer = EsvitLinear(12, 9, bias=bias)
    inputs = torch.randn(shape, requires_grad=True)
    outputs = layer(inputs)
    assert "_OneDnnLinear" in outputs.grad_fn.name()
    expected = F.linear(inputs, layer.weight, layer.bias)
    torch.testing.assert_close(outputs, expected)
    weights = torch.randn_like(outputs)
    variables = [inputs, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((outputs * weights).sum(), variables),
        torch.autograd.grad((expected * weights).sum(), variables),
    )


@needs_onednn
def test_strided_inputs_and_second_derivatives():
    torch.manual_seed(0)
    layer = EsvitLinear(6, 4)
    inputs = torch.randn(6, 5, requires_grad=True)
    for product in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        (first,) = torch.autograd.grad(
            product(inputs.t()).square().sum(), inputs, create_graph=True
        )
        second = torch.autograd.grad(first.square().sum(), [inputs, layer.weight])
        if product is layer:
            found = first, *second
    torch.testing.assert_close(found, (first, *second))


@needs_onednn
def test_gradients_that_nobody_needs_are_not_computed():
    layer = EsvitLinear(6, 4).requires_grad_(False)
    inputs = torch.randn(3, 6, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, 6))


def test_everything_else_is_left_to_pytorch(monkeypatch):
    layer = EsvitLinear(6, 4)
    inputs = torch.randn(3, 6)
    monkeypatch.setattr(_OneDnnLinear, "apply", None)  # calling it would raise
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    assert layer.to(torch.float64)(inputs.double()).dtype == torch.float64
    layer = layer.float()
    assert layer(inputs[:0]).shape == (0, 4)
    torch.testing.assert_close(layer(inputs[0]), F.linear(inputs[0], layer.weight, layer.bias))
    with torch.backends.mkldnn.flags(enabled=False):
        layer(inputs)
    parameters = dict(layer.named_parameters())

    def loss(parameters, row):
        return functional_call(layer, parameters, (row[None],)).sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, inputs)
    torch.testing.assert_close(each["weight"][:, 0], inputs)
    meta = EsvitLinear(6, 4, device="meta")
    assert meta(inputs.to("meta")).shape == (3, 4)
