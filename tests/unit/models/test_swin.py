"""Swin: its configuration, its windows against a definition spelled out token by token, and its
shortcuts.
"""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from esvit_hf import EsvitSwinConfig, EsvitSwinModel
from esvit_hf.models.modeling_esvit_swin import EsvitSwinAttention, EsvitSwinDownsample
from esvit_hf.models.modeling_esvit_windows import plan_windows

GRIDS = st.tuples(st.integers(1, 11), st.integers(1, 11))


def small_model(**fields) -> EsvitSwinModel:
    shape = {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    torch.manual_seed(0)
    return EsvitSwinModel(EsvitSwinConfig(**{**shape, **fields})).eval()


def features(model: EsvitSwinModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixels).last_hidden_state


# Configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_size": 30},
            "image_size=30 is not divisible by patch_size=4: a height of 28 or 32 pixels works",
        ),
        ({"image_size": (32, 3)}, "a width of 4 pixels works"),
        (
            {"image_size": (32, 4)},
            "leaves the last of 2 stages no token: give a width of at least 8 pixels",
        ),
        ({"image_size": [32, 32, 32]}, "image_size=[32, 32, 32] is not a size"),
        ({"patch_size": 0}, "patch_size=0 is not a size"),
        ({"depths": []}, "depths=[]"),
        ({"depths": [2, 0]}, "depths=[2, 0]"),
        ({"num_heads": [2]}, "num_heads=[2] has 1 entries; the network has 2 stages"),
        ({"num_heads": [3, 4]}, "num_heads[0]=3 does not divide the 8 channels of stage 1"),
        ({"window_size": 0}, "window_size=0 must be at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1"),
        ({"windows_size": 7}, "has no field 'windows_size'; did you mean 'window_size'?"),
        ({"encoder_stride": 32}, "has no field 'encoder_stride'"),
        ({"out_features": ["stage9"]}, "stage9"),
    ],
)
def test_wrong_fields_are_named_with_what_works(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EsvitSwinConfig(
            **{"image_size": 32, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], **fields}
        )


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="tiny, small, base, large"):
        EsvitSwinConfig.from_preset("huge")


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("tiny", 27_519_354), ("small", 48_837_258), ("base", 86_743_224), ("large", 194_995_476)],
)
def test_sizes_of_the_presets(size, parameters):
    with torch.device("meta"):
        model = EsvitSwinModel(EsvitSwinConfig.from_preset(size, drop_path_rate=0.0))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.drop_path_rate == 0.0


@pytest.mark.parametrize(
    ("fields", "windows", "shifts"),
    [
        ({}, [7, 7, 7, 7], [3, 3, 3, 0]),
        ({"window_size": 14}, [14, 14, 14, 7], [7, 7, 0, 0]),
        ({"image_size": 96}, [7, 7, 6, 3], [3, 3, 0, 0]),
        ({"image_size": (224, 112)}, [7, 7, 7, 3], [3, 3, 0, 0]),
        # Sides are rounded down for the choice of the windows: 9 becomes 4, then 2 and 1.
        ({"image_size": 36}, [7, 4, 2, 1], [3, 0, 0, 0]),
        ({"image_size": 72}, [7, 7, 4, 2], [3, 3, 0, 0]),
        ({"image_size": 232}, [7, 7, 7, 7], [3, 3, 3, 0]),
        ({"image_size": 240}, [7, 7, 7, 7], [3, 3, 3, 0]),
    ],
)
def test_image_size_fixes_windows_and_shifts(fields, windows, shifts):
    with torch.device("meta"):
        model = EsvitSwinModel(EsvitSwinConfig(**fields))
    assert [stage.blocks[0].attention.window for stage in model.stages] == windows
    assert [stage.blocks[1].attention.shift for stage in model.stages] == shifts
    assert {block.attention.shift for stage in model.stages for block in stage.blocks[::2]} == {0}


def test_fields_changed_after_the_configuration_was_made_are_checked(tmp_path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_heads"):
        EsvitSwinModel.from_pretrained(tmp_path, depths=[1, 1, 1])


# Windows


def attention_token_by_token(
    module: EsvitSwinAttention, tokens: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Window attention of one image, from its definition."""
    window, shift, heads = module.window, module.shift, module.num_heads
    height, width = grid
    padded_height, padded_width = (-(-size // window) * window for size in grid)
    channels = tokens.shape[1]
    places = [(y, x) for y in range(padded_height) for x in range(padded_width)]
    zero = torch.zeros(channels)
    inputs = [tokens[y * width + x] if y < height and x < width else zero for y, x in places]
    query, key, value = module.qkv(torch.stack(inputs)).view(len(places), 3, heads, -1).unbind(1)
    rolled = [((y - shift) % padded_height, (x - shift) % padded_width) for y, x in places]
    outputs = []
    for y, x in ((y, x) for y in range(height) for x in range(width)):
        here = places.index((y, x))
        row, column = rolled[here]
        neighbors, biases = [], []
        for other, (other_row, other_column) in enumerate(rolled):
            if (other_row // window, other_column // window) != (row // window, column // window):
                continue
            offset = (
                (row - other_row + window - 1) * (2 * window - 1)
                + column
                - other_column
                + window
                - 1
            )
            bias = module.relative_position_bias_table[offset]
            # The roll brought the first `shift` rows and columns behind the last ones.
            same_side = (y < shift, x < shift) == (
                places[other][0] < shift,
                places[other][1] < shift,
            )
            neighbors.append(other)
            biases.append(bias if same_side else bias - 100)
        scores = torch.einsum(
            "hd,nhd->nh", query[here], key[neighbors]
        ) * module.scaling + torch.stack(biases)
        mixed = torch.einsum("nh,nhd->hd", scores.softmax(dim=0), value[neighbors])
        outputs.append(module.projection(mixed.flatten()))
    return torch.stack(outputs)


@given(grid=GRIDS, window=st.integers(1, 4), data=st.data())
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_attention_equals_its_definition(grid, window, data):
    shift = data.draw(st.integers(0, window - 1))
    implementation = data.draw(st.sampled_from(["sdpa", "eager"]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    config = EsvitSwinConfig()
    config._attn_implementation = implementation
    module = EsvitSwinAttention(config, 8, 2, window, shift)
    torch.nn.init.normal_(module.relative_position_bias_table)
    tokens = torch.randn(2, grid[0] * grid[1], 8)
    mixed, _ = module(tokens, grid)
    expected = torch.stack([attention_token_by_token(module, image, grid) for image in tokens])
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("grid", "shift"), [((3, 2), 0), ((3, 2), 1), ((4, 1), 2)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_one_slot_for_all_padded_tokens_changes_no_value_and_no_gradient(
    grid, shift, implementation
):
    config = EsvitSwinConfig()
    config._attn_implementation = implementation
    torch.manual_seed(0)
    module = EsvitSwinAttention(config, 8, 2, 4, shift).double()
    torch.nn.init.normal_(module.relative_position_bias_table)
    tokens = torch.randn(2, grid[0] * grid[1], 8, dtype=torch.double, requires_grad=True)
    assert plan_windows(tokens, grid, 4, shift).window_tokens == tokens.shape[1] + 1
    inputs = [tokens, *module.parameters()]
    found, expected = (
        [mixed, *torch.autograd.grad(mixed.square().sum(), inputs)]
        for mixed in (module(tokens, grid, output_attentions=whole)[0] for whole in (False, True))
    )
    torch.testing.assert_close(found, expected)


def test_another_registered_attention_function_is_used():
    calls = []

    def recorded(module, *arguments, **options):
        calls.append(module)
        return sdpa_attention_forward(module, *arguments, **options)

    AttentionInterface.register("recorded", recorded)
    model = small_model()
    pixels = torch.randn(2, 3, 40, 52)
    expected = features(model, pixels)
    model.set_attn_implementation("recorded")
    torch.testing.assert_close(features(model, pixels), expected)
    assert len(calls) == 3


def test_downsampling_pads_odd_sides_and_keeps_the_order_of_the_reference():
    module = EsvitSwinDownsample(1, eps=0.0)
    module.norm = torch.nn.Identity()
    with torch.no_grad():
        module.reduction.weight.copy_(torch.eye(2, 4) + torch.eye(2, 4).roll(2, dims=1) * 10)
    tokens = torch.arange(1.0, 16.0).view(1, 15, 1)
    merged = module(tokens, (3, 5))
    # Top left + 10 top right, bottom left + 10 bottom right of each 2 x 2 neighborhood.
    expected = [[1 + 20, 6 + 70], [3 + 40, 8 + 90], [5, 10], [11 + 120, 0], [13 + 140, 0], [15, 0]]
    torch.testing.assert_close(merged, torch.tensor([expected], dtype=torch.float))


# Inputs


def test_pixels_that_fill_no_patch_are_left_out():
    model = small_model()
    pixels = torch.randn(1, 3, 35, 42)
    assert torch.equal(
        features(model, pixels), features(model, pixels[:, :, :32, :40].contiguous())
    )
    assert model.region_grid(35, 42) == (4, 5)


def test_position_embeddings_fit_every_size():
    model = small_model(use_absolute_embeddings=True, depths=[1], num_heads=[2])
    plain = small_model(depths=[1], num_heads=[2])
    plain.load_state_dict(
        {name: value for name, value in model.state_dict().items() if "position_emb" not in name}
    )
    with torch.no_grad():
        model.embeddings.position_embeddings.fill_(2.0)
        for size in (32, 48):
            pixels = torch.randn(1, 3, size, 32)
            shifted, unshifted = model.embeddings(pixels).tokens, plain.embeddings(pixels).tokens
            torch.testing.assert_close(shifted, unshifted + 2.0)


def test_stochastic_depth_grows_linearly_and_keeps_the_mean():
    model = small_model(depths=[2, 2], drop_path_rate=0.3)
    modules = [block.stochastic_depth for stage in model.stages for block in stage.blocks]
    assert [module.rate for module in modules] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    branch = torch.ones(4000, 3, 2)
    torch.manual_seed(0)
    dropped = modules[-1].train()(branch)
    torch.testing.assert_close(dropped.mean(), torch.tensor(1.0), atol=0.05, rtol=0)
    assert dropped.flatten(1).std(dim=1).max() == 0
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.7]))
