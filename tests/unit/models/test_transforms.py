"""Networks that are traced, faked, transformed or hooked, and what is left of it afterwards."""

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
from tests.support.networks import build, features, gradients, images
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.func import (
    functional_call,
    functionalize,
    grad,
    jvp,
    stack_module_state,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

from esvit_hf import EsvitSwinModel
from esvit_hf.models.modeling_esvit_common import _kept

# One size whose windows are full and one whose maps are padded.
SIZES = [(32, 32), (36, 44)]


@pytest.fixture(params=SIZES, ids=str)
def pixels(request) -> Tensor:
    return images(2, 3, *request.param)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    _kept.cache_clear()


def config_of(network):
    """The fewest blocks: of those of a stage only Swin's differ."""
    return network.config(depths=[2, 1] if network.model is EsvitSwinModel else [1, 1])


def as_in_a_fresh_process(model, pixels: Tensor) -> None:
    found = features(model, pixels), gradients(model, pixels)
    _kept.cache_clear()
    assert torch.equal(features(model, pixels), found[0])
    torch.testing.assert_close(gradients(model, pixels), found[1], atol=0, rtol=0)


def on_meta(network, model, pixels: Tensor) -> None:
    with torch.device("meta"):
        empty = network.model(config_of(network)).eval()
    output = empty(pixels.to("meta"))
    assert output.pooler_output.is_meta
    assert output.last_hidden_state.shape == model(pixels).last_hidden_state.shape


def fake(network, model, pixels: Tensor) -> None:
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        fake_model = copy.deepcopy(model)
    with mode:
        output = fake_model(mode.from_tensor(pixels)).last_hidden_state
    assert isinstance(output, FakeTensor)
    assert output.shape == model(pixels).last_hidden_state.shape


def functional(network, model, pixels: Tensor) -> None:
    found = functionalize(lambda x: model(x).pooler_output)(pixels)
    torch.testing.assert_close(found, model(pixels).pooler_output)


def batched(network, model, pixels: Tensor) -> None:
    found = vmap(lambda image: model(image[None]).pooler_output[0])(pixels)
    torch.testing.assert_close(found, model(pixels).pooler_output)


def gradients_of_each_image(network, model, pixels: Tensor) -> None:
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image[None],)).pooler_output.square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, pixels)
    model.zero_grad()
    model(pixels).pooler_output.square().sum().backward()
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            torch.testing.assert_close(each[name].sum(0), parameter.grad, atol=1e-4, rtol=1e-4)


def several_networks(network, model, pixels: Tensor) -> None:
    double = copy.deepcopy(model)
    for parameter in double.parameters():
        parameter.data.mul_(1.1)
    state = stack_module_state([model, double])
    found = vmap(lambda state: functional_call(model, state, (pixels,)).pooler_output)(state)
    torch.testing.assert_close(found[0], model(pixels).pooler_output)
    torch.testing.assert_close(found[1], double(pixels).pooler_output, atol=1e-4, rtol=1e-4)


def second_derivative(network, model, pixels: Tensor) -> None:
    def slope(x: Tensor) -> Tensor:
        return grad(lambda x: model(x).pooler_output.square().sum())(x)

    image, direction = pixels[:1], images(1, *pixels.shape[1:], seed=2)
    _, found = jvp(slope, (image,), (direction,))
    step = 1e-2 * direction
    expected = (slope(image + step) - slope(image - step)) / 2e-2
    assert (found - expected).norm() < 0.05 * expected.norm()


def traced(network, model, pixels: Tensor) -> None:
    model.config.return_dict = False
    graph = torch.jit.trace(model, pixels, strict=False, check_trace=False)
    model.config.return_dict = True
    other = images(*pixels.shape, seed=2)
    torch.testing.assert_close(graph(other)[1], model(other).pooler_output)


def as_a_graph(network, model, pixels: Tensor) -> None:
    graph = make_fx(lambda x: model(x).pooler_output)(pixels)
    torch.testing.assert_close(graph(pixels), model(pixels).pooler_output)


@pytest.mark.parametrize(
    "transform",
    [
        on_meta,
        fake,
        functional,
        batched,
        gradients_of_each_image,
        several_networks,
        second_derivative,
        traced,
        as_a_graph,
    ],
)
def test_transformed_networks_compute_the_same_and_leave_nothing_behind(network, transform, pixels):
    model = build(network.model, config_of(network))
    transform(network, model, pixels)
    as_in_a_fresh_process(model, pixels)
    transform(network, model, pixels)
    as_in_a_fresh_process(model, pixels)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_derivatives_in_forward_mode(network, implementation, pixels):
    model = build(network.model, config_of(network)).double().requires_grad_(False)
    model.set_attn_implementation(implementation)
    pixels, direction = pixels.double(), images(*pixels.shape, seed=2).double()
    step = 1e-5 * direction
    expected = (model(pixels + step).pooler_output - model(pixels - step).pooler_output) / 2e-5
    _, found = jvp(lambda x: model(x).pooler_output, (pixels,), (direction,))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    with forward_mode.dual_level():
        moved = model(forward_mode.make_dual(pixels, direction)).pooler_output
        found = forward_mode.unpack_dual(moved).tangent
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_network_that_was_made_without_memory_needs_its_weights_alone(network, pixels):
    model = build(network.model, config_of(network))
    with torch.device("meta"):
        other = network.model(model.config)
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(features(other.eval(), pixels), features(model, pixels))


def tensors_or_sizes(output) -> bool:
    if isinstance(output, tuple | list):
        return all(tensors_or_sizes(part) for part in output)
    return output is None or isinstance(output, Tensor | int)


def test_modules_hand_on_what_hooks_can_read(network):
    model = build(network.model, config_of(network))
    unreadable = []

    def look(name: str):
        def hook(module, inputs, output) -> None:
            if not tensors_or_sizes(inputs) or not tensors_or_sizes(output):
                unreadable.append(name)

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(look(name))
    features(model, images(1, 3, 32, 32))
    assert unreadable == []
