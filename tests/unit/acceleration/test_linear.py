"""Linear layers that multiply with oneDNN stay `nn.Linear`, wherever their network goes."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from esvit_hf.acceleration import linear
from esvit_hf.acceleration.linear import _OneDnnLinear, use_fast_linear

pytestmark = pytest.mark.skipif(not linear._HAS_ONEDNN, reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def fast_layer(inputs: int, outputs: int, **options) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, **options)
    use_fast_linear(layer)
    return layer


def fast_network() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    use_fast_linear(network)
    return network


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN was given."""
    shapes = []
    product = linear._onednn_product

    def record(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(left.shape))
        return product(left, right, bias)

    monkeypatch.setattr(linear, "_onednn_product", record)
    return shapes


# The product


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (2, 3, 4, 12)])
def test_outputs_and_gradients_equal_those_of_pytorch(shape, bias, calls):
    layer = fast_layer(12, 9, bias=bias)
    inputs = torch.randn(shape, requires_grad=True)
    outputs = layer(inputs)
    expected = F.linear(inputs, layer.weight, layer.bias)
    torch.testing.assert_close(outputs, expected)
    weights = torch.randn_like(outputs)
    variables = [inputs, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((outputs * weights).sum(), variables),
        torch.autograd.grad((expected * weights).sum(), variables),
    )
    assert len(calls) == 3


def test_strided_inputs_and_second_derivatives():
    layer = fast_layer(6, 4)
    inputs = torch.randn(6, 5, requires_grad=True)
    found = []
    for product in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        (first,) = torch.autograd.grad(
            product(inputs.t()).square().sum(), inputs, create_graph=True
        )
        found.append((first, *torch.autograd.grad(first.square().sum(), [inputs, layer.weight])))
    torch.testing.assert_close(found[0], found[1])


def test_gradients_that_nobody_needs_are_not_computed(calls):
    layer = fast_layer(6, 4).requires_grad_(False)
    inputs = torch.randn(3, 6, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, 6))
    assert len(calls) == 2


@pytest.mark.parametrize("moving", ["inputs", "weight", "bias", "all"])
def test_derivatives_in_forward_mode(moving, calls):
    layer, inputs = fast_layer(6, 4), torch.randn(2, 3, 6)
    variables = {"inputs": inputs, "weight": layer.weight, "bias": layer.bias}
    tangents = {name: torch.randn_like(variable) for name, variable in variables.items()}

    def derivative(product: Callable[..., Tensor]) -> Tensor | None:
        with forward_mode.dual_level():
            moved = [
                forward_mode.make_dual(variable, tangents[name])
                if moving in (name, "all")
                else variable
                for name, variable in variables.items()
            ]
            return forward_mode.unpack_dual(product(*moved)).tangent

    torch.testing.assert_close(derivative(_OneDnnLinear.apply), derivative(F.linear))
    assert calls
    through_layer = jvp(layer, (inputs,), (tangents["inputs"],))[1]
    torch.testing.assert_close(through_layer, tangents["inputs"] @ layer.weight.t())


def test_everything_else_is_left_to_pytorch(calls):
    layer = fast_layer(6, 4)
    inputs = torch.randn(3, 6)
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
    meta = fast_layer(6, 4, device="meta")
    assert meta(inputs.to("meta")).shape == (3, 4)
    traced = torch.jit.trace(layer, inputs, check_trace=False)
    torch.testing.assert_close(traced(inputs), F.linear(inputs, layer.weight, layer.bias))
    assert not calls


# The network


def test_only_plain_linear_layers_change_and_nothing_is_seen_of_it():
    class OwnLinear(nn.Linear):
        pass

    network = nn.ModuleList([nn.Linear(6, 4), OwnLinear(6, 4)])
    names = list(network.state_dict())
    use_fast_linear(network)
    assert [type(layer) for layer in network] == [nn.Linear, OwnLinear]
    assert ["forward" in vars(layer) for layer in network] == [True, False]
    assert list(network.state_dict()) == names
    assert len(list(network.modules())) == 3


def test_it_can_be_undone(calls):
    network, inputs = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), torch.randn(3, 6)
    with use_fast_linear(network):
        network(inputs)
        # Undoes its own alone: here nothing is left to change.
        use_fast_linear(network).remove()
        network(inputs)
        assert len(calls) == 4
    network(inputs)
    assert len(calls) == 4
    assert not any("forward" in vars(layer) for layer in network)


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_are_fast_networks_of_their_own(remake, calls):
    network, inputs = fast_network(), torch.randn(3, 6)
    other = remake(network)
    assert other.state_dict().keys() == network.state_dict().keys()
    expected = network(inputs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(other(inputs), expected)
    assert len(calls) == 4
    other(inputs).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_compiled_and_exported_it_is_the_product_of_pytorch(calls):
    network, inputs = fast_network(), torch.randn(3, 6)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")(inputs)
    exported = torch.export.export(network, (inputs,))
    assert "linear" in str(exported.graph) and "mkldnn" not in str(exported.graph)
    assert not calls
    torch.testing.assert_close(compiled, network(inputs))
    torch.testing.assert_close(exported.module()(inputs), network(inputs))


def test_quantized_layers_are_found_before_and_after(calls):
    network, inputs = fast_network(), torch.randn(3, 6)
    quantized = torch.ao.quantization.quantize_dynamic(network)
    use_fast_linear(quantized)
    kinds = [type(layer).__module__ for layer in quantized if not isinstance(layer, nn.GELU)]
    assert all("quantized" in kind for kind in kinds)
    assert (quantized(inputs) - network(inputs)).abs().max() < 0.05


def test_operations_are_counted():
    network, inputs = fast_network(), torch.randn(2, 3, 6)
    counts = []
    for fast in (True, False):
        if not fast:
            for layer in network:
                vars(layer).pop("forward", None)
        counter = FlopCounterMode(display=False)
        with counter:
            network(inputs).sum().backward()
        counts.append(counter.get_total_flops())
    # Two products forward; backward the gradients of both weights and of the hidden layer.
    assert counts == [2 * 6 * (6 * 8 + 8 * 4) + 2 * 6 * (6 * 8 + 2 * 8 * 4)] * 2
