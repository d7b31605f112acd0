"""CvT: the reference's numbers, a window-by-window oracle for the attention, and conversion."""

import math
import re
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_cvt import images, randomized, small_config, small_model
from torch import Tensor, nn

from esvit_hf import EsvitCvtConfig, EsvitCvtModel
from esvit_hf.models.modeling_esvit_cvt import EsvitCvtAttention
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.reference.from_reference import (
    load_reference_model,
    read_reference_checkpoint,
    split_reference_state_dict,
)

CASE = "cvt_view_region"
HEADS = [1, 2, 3, 6]
GOLDEN_FIELDS = {"num_heads": HEADS, "window_size": [7, 7, 7, 7]}


# Numbers of the reference


def golden_model(case, **arguments) -> EsvitCvtModel:
    return load_reference_model(case.checkpoint, **arguments, **GOLDEN_FIELDS)


def golden_numbers(model: EsvitCvtModel, case) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(case.tensors["crops.0"].float(), output_hidden_states=True)
    return {
        "features.view": output.pooler_output,
        "features.regions": output.last_hidden_state,
        "features.last4": torch.cat(model.pool_hidden_states(output.hidden_states)[-4:], dim=1),
    }


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_features_equal_reference(golden, implementation, device):
    case = golden(CASE).to(device)
    model = golden_model(case).to(device)
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    for name, ours in golden_numbers(model, case).items():
        torch.testing.assert_close(ours, case.tensors[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("weights", "sizes"), [("teacher", [(0, 1)]), ("student", [(0, 1), (2, 3)])]
)
def test_all_crops_and_heads_equal_reference(golden, weights, sizes):
    case = golden(CASE)
    model = golden_model(case, weights=weights)
    states = split_reference_state_dict(read_reference_checkpoint(case.checkpoint)[weights])
    heads = []
    for state in states[1:]:
        heads.append(ProjectionHead(48, 64, hidden_dim=48, bottleneck_dim=16).requires_grad_(False))
        heads[-1].load_state_dict(state)
    views, regions, counts = [], [], []
    for crops in sizes:
        pixels = torch.cat([case.tensors[f"crops.{crop}"] for crop in crops]).float()
        with torch.no_grad():
            output = model(pixels)
        assert math.prod(model.region_grid(*pixels.shape[-2:])) == output.last_hidden_state.shape[1]
        views.append(output.pooler_output)
        regions.append(output.last_hidden_state.flatten(0, 1))
        counts.append(output.last_hidden_state.shape[1])
    view, region = torch.cat(views), torch.cat(regions)
    ours = {
        "view_logits": heads[0](view) @ heads[0].prototypes().T,
        "region_logits": heads[1](region) @ heads[1].prototypes().T,
        "region_features": region,
        "num_regions": torch.tensor(counts),
    }
    assert {f"{weights}.{name}" for name in ours} == {
        name for name in case.tensors if name.startswith(weights)
    }
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, case.tensors[f"{weights}.{name}"], atol=1e-5, rtol=0, msg=name
        )


def test_every_weight_and_statistic_matters_to_the_numbers(golden):
    case = golden(CASE)
    model = golden_model(case)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(tensors) == 18 + 6 * 17

    def unnoticed(step: float, names: Iterable[str]) -> list[str]:
        quiet = []
        for name in names:
            original = tensors[name].clone()
            tensors[name].add_(
                step * torch.randint(0, 2, original.shape, generator=generator).mul(2).sub(1)
            )
            numbers = golden_numbers(model, case)
            if all((ours - case.tensors[key]).abs().max() <= 1e-5 for key, ours in numbers.items()):
                quiet.append(name)
            tensors[name].copy_(original)
        return quiet

    # Attention averages what scales single tokens: it shows less.
    small = unnoticed(1e-3, tensors)
    assert all(
        re.search(r"attention_norm\.weight|batch_norm\.(weight|running_var)", name)
        for name in small
    )
    assert unnoticed(5e-3, small) == []


# Conversion


def test_preset_has_the_parameters_of_the_reference(manifest, tmp_path):
    facts = manifest("cvt_tiny_w7")
    with torch.device("meta"):
        model = EsvitCvtModel(EsvitCvtConfig.from_preset("tiny"))
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == facts["backbone_parameters"]
    )
    reference = {
        name: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
        for name, (shape, dtype) in facts["teacher"].items()
    }
    backbone, view_head, region_head = split_reference_state_dict(reference)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in backbone.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()
    }
    assert view_head and region_head

    # The shape of the paper is recognized without any field.
    torch.save(
        {"teacher": {name: tensor for name, tensor in reference.items() if ".head" not in name}},
        tmp_path / "x",
    )
    assert load_reference_model(tmp_path / "x").config.to_dict() == model.config.to_dict()


def test_starts_like_the_reference():
    torch.manual_seed(0)
    model = EsvitCvtModel(
        EsvitCvtConfig.from_preset("tiny", depths=[1, 1, 1, 1], relative_position_bias=True)
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
        else:
            assert parameter.eq(1 if "norm.weight" in name else 0).all(), name


def test_other_shapes_do_not_show_heads(golden):
    with pytest.raises(ValueError, match="do not show num_heads: pass"):
        load_reference_model(golden(CASE).checkpoint)
    model = load_reference_model(golden(CASE).checkpoint, num_heads=[1, 2, 3, 6])
    assert list(model.config.window_size) == [7, 7, 7, 7]


REFERENCE_BLOCK = {
    "attention_norm": "0.norm",
    "attention.depthwise": "0.fn.qkv.dw",
    "attention.batch_norm": "0.fn.qkv.bn",
    "attention.qkv": "0.fn.qkv.pw",
    "attention.projection": "0.fn.proj_out",
    "mlp_norm": "1.norm",
    "mlp.expand": "1.fn.net.0",
    "mlp.contract": "1.fn.net.2",
}


def as_reference(model: EsvitCvtModel) -> dict[str, Tensor]:
    """The state of a model under the names and shapes of the reference."""
    state = {}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        match module.split("."):
            case ["stages", stage, "embeddings", "convolutions" | "norms" as part, layer]:
                module = f"stage{stage}.0.stem.{int(layer) * 3 + (part == 'norms')}"
            case ["stages", stage, "embeddings", "projection" | "norm" as part]:
                module = f"stage{stage}.0.{part.replace('projection', 'proj')}"
            case ["stages", stage, "blocks", block, *rest] if (
                kind == "relative_position_bias_table"
            ):
                module, kind = f"stage{stage}.1.layers.{block}.0.fn", "rel_pos_bias_table"
                window = model.config.window_size[int(stage)]
                row, column = (
                    axis.flatten()
                    for axis in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")
                )
                down, right = (axis[:, None] - axis + window - 1 for axis in (row, column))
                state[f"module.{module}.rel_pos_idx"] = down * (2 * window - 1) + right
            case ["stages", stage, "blocks", block, *rest]:
                module = f"stage{stage}.1.layers.{block}.{REFERENCE_BLOCK['.'.join(rest)]}"
                if kind == "weight" and module.endswith(("pw", "proj_out", "net.0", "net.2")):
                    tensor = tensor[:, :, None, None]
        state[f"module.{module}.{kind}"] = tensor
    return state


def test_optional_parts_are_converted(tmp_path):
    model = small_model(deep_stem=True, relative_position_bias=True)
    torch.save({"student": as_reference(model)}, tmp_path / "optional.pth")
    geometry = {"patch_strides": [4, 2, 2], "patch_padding": [2, 1, 1]}
    with pytest.raises(ValueError, match="do not show patch_strides and patch_padding"):
        load_reference_model(tmp_path / "optional.pth", weights="student")
    converted = load_reference_model(
        tmp_path / "optional.pth", weights="student", **geometry, image_size=32
    )
    assert converted.config.to_dict() == model.config.to_dict()
    pixels = images(2, 3, 40, 32)
    torch.testing.assert_close(
        converted(pixels).pooler_output, model(pixels).pooler_output, atol=0, rtol=0
    )

    state = as_reference(model)
    state["module.stage1.1.layers.0.0.fn.rel_pos_idx"] += 1
    torch.save({"student": state}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"stages\.1\.blocks\.0\.attention\.relative_position_index.*differs"
    ):
        load_reference_model(tmp_path / "other.pth", weights="student", **geometry)


# Attention against a loop over windows and heads


def window_oracle(module: EsvitCvtAttention, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    window = min(module.window, *grid)
    heads, channels = module.num_heads, tokens.shape[2]
    feature_map = tokens.transpose(1, 2).unflatten(2, grid)
    height, width = (math.ceil(side / window) * window for side in grid)
    padded = torch.zeros(len(tokens), channels, height, width)
    padded[:, :, : grid[0], : grid[1]] = feature_map
    maps = F.conv2d(
        padded, module.depthwise.weight, padding=module.depthwise.padding, groups=channels
    )
    norm = module.batch_norm
    mean, variance = norm.running_mean, norm.running_var
    if module.training:
        mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), unbiased=False)
    maps = (maps - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    maps = maps * norm.weight[:, None, None] + norm.bias[:, None, None]
    query, key, value = F.conv2d(maps, module.qkv.weight[:, :, None, None], module.qkv.bias).chunk(
        3, dim=1
    )
    mixed = torch.zeros_like(padded)
    for top in range(0, height, window):
        for left in range(0, width, window):
            place = (..., slice(top, top + window), slice(left, left + window))
            for head in torch.arange(channels).chunk(heads):
                q, k, v = (tensor[place][:, head].flatten(2) for tensor in (query, key, value))
                scores = q.transpose(1, 2) @ k / math.sqrt(channels)
                if module.relative:
                    y, x = torch.arange(window**2) // window, torch.arange(window**2) % window
                    span = 2 * module.window - 1
                    row = (
                        (y[:, None] - y + module.window - 1) * span
                        + x[:, None]
                        - x
                        + module.window
                        - 1
                    )
                    scores = (
                        scores
                        + module.relative_position_bias_table[row][
                            ..., int(head[0]) * heads // channels
                        ]
                    )
                mixed[place][:, head] = (v @ scores.softmax(-1).transpose(1, 2)).unflatten(
                    2, (window, window)
                )
    output = F.conv2d(mixed, module.projection.weight[:, :, None, None], module.projection.bias)
    return output[:, :, : grid[0], : grid[1]].flatten(2).transpose(1, 2)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.integers(1, 4),
    implementation=st.sampled_from(["sdpa", "eager"]),
    relative=st.booleans(),
    training=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_attention_is_a_loop_over_windows_and_heads(
    grid, window, implementation, relative, training
):
    config = small_config(window_size=[4, window, 4], relative_position_bias=relative)
    config._attn_implementation = implementation
    module = (
        randomized(EsvitCvtModel(config))
        .stages[1]
        .blocks[0]
        .attention.requires_grad_(False)
        .train(training)
    )
    tokens = images(2, math.prod(grid), 16)
    torch.testing.assert_close(
        module(tokens, grid)[0], window_oracle(module, tokens, grid), atol=1e-5, rtol=1e-5
    )


def test_deep_stem_is_the_convolutions_one_after_the_other():
    model = small_model(deep_stem=True)
    stem = model.stages[0].embeddings
    assert model.get_input_embeddings() is stem.convolutions[0]
    pixels = images(2, 3, 33, 50)
    layers = []
    for convolution, norm, stride in zip(stem.convolutions, stem.norms, (2, 1, 2), strict=True):
        layers.append(
            nn.Conv2d(*convolution.weight.shape[1::-1], 3, stride=stride, padding=1, bias=False)
        )
        layers[-1].weight = convolution.weight
        layers += [norm, nn.ReLU()]
    expected = nn.Sequential(*layers)(pixels)
    output = stem(pixels)
    assert output.grid == (9, 13) == tuple(expected.shape[2:])
    torch.testing.assert_close(output.tokens.transpose(1, 2), expected.flatten(2))
