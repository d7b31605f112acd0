"""Vision Longformer: the contract of every network, and wrong input."""

import math

import pytest
import torch
from tests.support.small_vil import images, small_config, small_model
from torch import Tensor

from esvit_hf import EsvitVilConfig

# The contract of every network


@pytest.mark.parametrize("size", [(32, 32), (48, 24), (8, 8), (53, 39)])
@pytest.mark.parametrize("last_global", [0, 2])
def test_any_size_and_both_implementations(size, last_global):
    model = small_model(num_global_tokens=[2, 1, last_global])
    pixels = images(2, 3, *size)
    with torch.no_grad():
        sdpa = model(pixels, output_hidden_states=True)
        model.set_attn_implementation("eager")
        eager = model(pixels, output_hidden_states=True, output_attentions=True)
        single = model(pixels[1:])
    torch.testing.assert_close(sdpa.last_hidden_state, eager.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(single.pooler_output, sdpa.pooler_output[1:], atol=1e-5, rtol=0)

    grids = [(size[0] // stride, size[1] // stride) for stride in (2, 4, 8)]
    assert model.region_grid(*size) == grids[2]
    assert sdpa.last_hidden_state.shape == (2, math.prod(grids[2]), 24)
    tokens = [
        count + math.prod(grid) for count, grid in zip((2, 1, last_global), grids, strict=True)
    ]
    shapes = [
        (2, tokens[stage], channels)
        for stage, channels in ((0, 8), (0, 8), (0, 8), (1, 16), (2, 24))
    ]
    assert [tuple(state.shape) for state in sdpa.hidden_states] == shapes

    chunks = math.prod(math.ceil(side / 6) for side in grids[0])
    assert [tuple(attention.shape) for attention in eager.attentions] == [
        (2 * chunks, 2, 36, 2 + 9 * 36),
        (2 * chunks, 2, 36, 2 + 9 * 36),
        (2, 2, tokens[1], tokens[1]),
        (2, 3, tokens[2], tokens[2]),
    ]
    for attention in eager.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))

    pooled = model.pool_hidden_states(sdpa.hidden_states)
    torch.testing.assert_close(pooled[0], sdpa.hidden_states[1][:, 0])
    torch.testing.assert_close(pooled[-1], sdpa.pooler_output)
    normalized = model.norm(sdpa.hidden_states[-1])
    expected = normalized[:, 0] if last_global else normalized.mean(dim=1)
    torch.testing.assert_close(sdpa.pooler_output, expected)


def test_attention_outside_the_image_is_zero():
    model = small_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(images(1, 3, 32, 32), output_attentions=True).attentions[0]
    # 16 x 16 tokens, 3 x 3 chunks of 6: of the last chunk's neighborhood only its upper left part
    # is in the image.
    keys = (
        attention[8, :, :, 2:]
        .unflatten(-1, (3, 3, 6, 6))
        .transpose(-3, -2)
        .flatten(-4, -3)
        .flatten(-2)
    )
    assert keys[..., :10, :10].gt(0).all()
    assert keys[..., 10:, :].eq(0).all() and keys[..., 10:].eq(0).all()


@pytest.mark.parametrize("mode", ["all", "random_neighbor"])
def test_gradients_reach_every_parameter_and_survive_checkpointing(mode):
    model = small_model(sparse_training_mode=mode, drop_path_rate=0.3).train()
    pixels = images(3, 3, 40, 32)

    def gradients(network) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        output = network(pixels)
        (output.last_hidden_state.square().mean() + output.pooler_output[:, 0].sum()).backward()
        return {name: parameter.grad for name, parameter in network.named_parameters()}

    plain = gradients(model)
    dead = [
        name for name, gradient in plain.items() if gradient is None or not gradient.abs().sum() > 0
    ]
    # The last block of a stage passes its global tokens on to nothing; their gradient is zero, but
    # it is there.
    assert dead == [
        "stages.0.blocks.1.attention.global_to_global_bias",
        "stages.1.blocks.0.attention.global_to_global_bias",
    ]
    assert all(gradient is not None for gradient in plain.values())

    model.zero_grad()
    model.gradient_checkpointing_enable()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


@pytest.mark.parametrize("window", [2, 6])
def test_first_seen_in_inference_mode_then_trained(window):
    model = small_model(window_size=window, drop_path_rate=0.0)
    pixels = images(1, 3, 24, 56)
    with torch.inference_mode():
        expected = model(pixels).pooler_output
    output = model.train()(pixels).pooler_output
    torch.testing.assert_close(output, expected.clone())
    output.sum().backward()


def test_compiles_into_one_graph():
    model = small_model(
        depths=[1, 1, 1], sparse_training_mode="random_neighbor", drop_path_rate=0.0
    )
    pixels = images(2, 3, 32, 48)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(pixels).pooler_output, model(pixels).pooler_output, atol=1e-5, rtol=0
    )
    model.train()
    outputs = []
    for network in (compiled, model, model):
        torch.manual_seed(len(outputs) // 2)
        outputs.append(network(pixels).pooler_output)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-5, rtol=0)


# Wrong input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 33}, r"image_size=33 .*32 or 34 pixels works"),
        ({"image_size": 4}, r"image_size=4 .*stride of 8 pixels: a height of 8 pixels works"),
        ({"num_heads": [3, 2, 3]}, r"num_heads\[0\]=3 does not divide hidden_sizes\[0\]=8"),
        (
            {"sparse_stages": [True]},
            r"sparse_stages=\[True\] has 1 entries; the network has 3 stages",
        ),
        ({"num_global_tokens": [1, -1, 0]}, r"num_global_tokens=\[1, -1, 0\] must not be negative"),
        ({"window_size": 0}, r"window_size=0 must be at least 1"),
        ({"depths": [2, 1]}, r"hidden_sizes=\[8, 16, 24\] has 3 entries; the network has 2 stages"),
        ({"window_sizes": 7}, r"did you mean 'window_size'"),
        ({"embed_dim": 96}, r"no field 'embed_dim': here it is 'hidden_sizes'"),
        (
            {"hidden_sizes": [9, 16, 24], "num_heads": [3, 2, 3], "position_embedding": "absolute"},
            r"=9 must be even",
        ),
    ],
)
def test_wrong_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


@pytest.mark.parametrize("shape", [(1, 3, 7, 32), (1, 3, 32, 7), (1, 1, 32, 32), (3, 32, 32)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match="needs .*8 x 8|expected \\(B, 3, H, W\\)"):
        small_model()(torch.zeros(shape))


def test_unknown_preset():
    with pytest.raises(ValueError, match="presets: tiny"):
        EsvitVilConfig.from_preset("huge")
