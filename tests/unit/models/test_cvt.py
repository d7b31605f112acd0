"""CvT: batch norm in training, the contract of every network, and wrong input."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.support.networks import build, cvt_config
from tests.support.small_cvt import images, small_config, small_model
from torch import Tensor, nn

from esvit_hf import EsvitCvtConfig, EsvitCvtModel

# Batch norm in training


def statistics(model) -> dict[str, Tensor]:
    kept = {
        name: buffer.clone() for name, buffer in model.named_buffers() if "relative" not in name
    }
    assert len(kept) % 3 == 0 and kept
    return kept


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_gradients_nor_statistics(reentrant):
    pixels = images(3, 3, 40, 32)

    def step(model) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
        torch.manual_seed(0)
        output = model(pixels.clone().requires_grad_())
        (output.last_hidden_state.square().mean() + output.pooler_output[:, 0].sum()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}, statistics(
            model
        )

    model = small_model(deep_stem=True, relative_position_bias=True, drop_path_rate=0.3).train()
    checkpointed = copy.deepcopy(model)
    before = statistics(model)
    gradients, after = step(model)
    assert [
        name
        for name, gradient in gradients.items()
        if gradient is None or not gradient.abs().sum() > 0
    ] == []
    for name, buffer in after.items():
        assert (
            buffer.equal(before[name] + 1)
            if name.endswith("tracked")
            else not buffer.equal(before[name])
        ), name

    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for expected, ours in zip((gradients, after), step(checkpointed), strict=True):
        torch.testing.assert_close(ours, expected)
    # The settings that recomputing changes for a moment are back.
    assert {
        module.momentum for module in checkpointed.modules() if isinstance(module, nn.BatchNorm2d)
    } == {0.1}
    for (name, first), second in zip(
        step(model)[1].items(), step(checkpointed)[1].values(), strict=True
    ):
        torch.testing.assert_close(second, first, msg=name)


def test_batch_norms_can_be_synchronized():
    model = small_model(deep_stem=True)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules()) == 3 + 4
    assert synchronized.state_dict().keys() == model.state_dict().keys()
    pixels = images(2, 3, 32, 32)
    torch.testing.assert_close(synchronized(pixels).pooler_output, model(pixels).pooler_output)


# The contract of every network


@pytest.mark.parametrize("size", [(32, 32), (48, 24), (3, 5), (53, 39)])
@pytest.mark.parametrize("optional", [False, True])
def test_any_size_and_both_implementations(size, optional):
    model = small_model(deep_stem=optional, relative_position_bias=optional)
    pixels = images(2, 3, *size)
    with torch.no_grad():
        sdpa = model(pixels, output_hidden_states=True)
        model.set_attn_implementation("eager")
        eager = model(pixels, output_hidden_states=True, output_attentions=True)
        single = model(pixels[1:])
    torch.testing.assert_close(sdpa.last_hidden_state, eager.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(single.pooler_output, sdpa.pooler_output[1:], atol=1e-5, rtol=0)

    first = tuple(math.ceil(side / 4) if optional else (side - 3) // 4 + 1 for side in size)
    grids = [tuple(math.ceil(side / stride) for side in first) for stride in (1, 2, 4)]
    assert model.region_grid(*size) == grids[2]
    shapes = [
        (2, math.prod(grids[stage]), channels)
        for stage, channels in ((0, 8), (0, 8), (0, 8), (1, 16), (2, 24))
    ]
    assert [tuple(state.shape) for state in sdpa.hidden_states] == shapes
    assert sdpa.last_hidden_state.shape == shapes[-1]

    expected = []
    for stage, heads in ((0, 1), (0, 1), (1, 2), (2, 3)):
        window = min(model.config.window_size[stage], *grids[stage])
        windows = math.prod(math.ceil(side / window) for side in grids[stage])
        expected.append((2 * windows, heads, window**2, window**2))
    assert [tuple(attention.shape) for attention in eager.attentions] == expected
    for attention in eager.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))

    pooled = model.pool_hidden_states(sdpa.hidden_states)
    torch.testing.assert_close(pooled[0], sdpa.hidden_states[1].mean(dim=1))
    torch.testing.assert_close(pooled[-1], sdpa.pooler_output)
    torch.testing.assert_close(sdpa.pooler_output, model.norm(sdpa.hidden_states[-1]).mean(dim=1))


def test_layer_norm_computes_in_float32():
    norm = small_model(layer_norm_eps=1e-5).bfloat16().norm
    tokens = (images(64, 24) + 30).bfloat16()
    expected = F.layer_norm(
        tokens.float(), (24,), norm.weight.float(), norm.bias.float(), eps=1e-5
    ).bfloat16()
    torch.testing.assert_close(norm(tokens), expected, atol=4e-3, rtol=2**-7)


def test_compiles_into_one_graph():
    # Windows that are padded, and windows that are not.
    model = build(EsvitCvtModel, cvt_config(depths=[1, 1]))
    pixels = images(2, 3, 32, 48)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(pixels).pooler_output, model(pixels).pooler_output, atol=1e-5, rtol=0
    )
    eager = copy.deepcopy(model).train()
    model.train()
    results = []
    for network, parameters in ((compiled, model), (eager, eager)):
        network(pixels).pooler_output.square().sum().backward()
        results.append(
            (statistics(parameters), [parameter.grad for parameter in parameters.parameters()])
        )
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


# Wrong input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": [3, 2, 3]}, r"num_heads\[0\]=3 does not divide hidden_sizes\[0\]=8"),
        ({"window_size": [7, 7]}, r"window_size=\[7, 7\] has 2 entries; the network has 3 stages"),
        ({"window_size": [7, 7, 0]}, r"window_size=\[7, 7, 0\] must hold one positive number"),
        ({"qkv_bias": [True]}, r"qkv_bias=\[True\] has 1 entries; the network has 3 stages"),
        (
            {"mlp_ratio": [4.0, 0.01, 4.0]},
            r"mlp_ratio\[1\]=0.01 leaves no hidden channel .* at least 0.0625",
        ),
        ({"qkv_kernel_sizes": [3, 4, 3]}, r"qkv_kernel_sizes\[1\]=4 must be odd"),
        (
            {"patch_padding": [2, 3, 1]},
            r"patch_padding\[1\]=3 must be at least 0 and below patch_sizes\[1\]=3",
        ),
        ({"image_size": (0, 224)}, r"image_size=\(0, 224\) is not a size"),
        ({"num_channels": 0}, r"num_channels=0 must be at least 1"),
        ({"window_sizes": [7, 7, 7]}, r"did you mean 'window_size'"),
        ({"embed_dim": 64}, r"no field 'embed_dim': here it is 'hidden_sizes'"),
    ],
)
def test_wrong_configurations_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


@pytest.mark.parametrize("shape", [(1, 3, 2, 32), (1, 3, 32, 2), (1, 1, 32, 32), (3, 32, 32)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match="needs 3 x 3|expected \\(B, 3, H, W\\)"):
        small_model()(torch.zeros(shape))


@given(
    stages=st.lists(
        st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=3
    )
)
def test_smallest_image_has_a_region_and_smaller_ones_have_not(stages):
    sizes, strides, padding = zip(*stages, strict=True)
    padding = [min(pad, size - 1) for pad, size in zip(padding, sizes, strict=True)]
    ones = [1] * len(stages)
    config = EsvitCvtConfig(
        **dict.fromkeys(("hidden_sizes", "depths", "num_heads", "window_size", "mlp_ratio"), ones),
        **{"qkv_kernel_sizes": ones, "qkv_bias": [True] * len(stages)},
        **{"patch_sizes": sizes, "patch_strides": strides, "patch_padding": padding},
    )
    smallest = config.smallest_image
    assert min(config.token_grids(smallest, smallest)[-1]) >= 1
    assert (
        smallest == 1 or min(min(grid) for grid in config.token_grids(smallest - 1, smallest)) < 1
    )


def test_unknown_preset():
    with pytest.raises(ValueError, match="presets: tiny"):
        EsvitCvtConfig.from_preset("huge")
