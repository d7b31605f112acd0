"""Vision Longformer: the reference's numbers, a dense oracle for the sparse attention, and what is
resized for another grid.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.small_vil import images, randomized, small_config, small_model
from torch import Tensor

from esvit_hf import EsvitVilConfig, EsvitVilModel
from esvit_hf.models.modeling_esvit_vil import EsvitVilFullAttention, EsvitVilSparseAttention
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.reference.from_reference import (
    load_reference_model,
    read_reference_checkpoint,
    split_reference_state_dict,
)
from esvit_hf.reference.to_reference import convert_to_reference

CASE = "vil_view_region"


# Numbers of the reference


def golden_numbers(model: EsvitVilModel, case) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(case.tensors["crops.0"].float(), output_hidden_states=True)
    return {
        "features.view": output.pooler_output,
        "features.regions": output.last_hidden_state,
        "features.last4": torch.cat(model.pool_hidden_states(output.hidden_states)[-4:], dim=1),
    }


def largest_difference(model: EsvitVilModel, case) -> float:
    return max(
        float((ours - case.tensors[name]).abs().max())
        for name, ours in golden_numbers(model, case).items()
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_features_equal_reference(golden, implementation, device):
    case = golden(CASE).to(device)
    model = load_reference_model(case.checkpoint).to(device)
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    for name, ours in golden_numbers(model, case).items():
        torch.testing.assert_close(ours, case.tensors[name], atol=1e-5, rtol=0, msg=name)


def test_stages_that_differ_in_everything_equal_reference(golden):
    case = golden("vil_mixed_stages")
    # The architecture is in the command line that the checkpoint keeps.
    model = load_reference_model(case.checkpoint)
    assert model.config.stage_windows == [4, 3, 5, 7]
    assert list(model.config.sparse_stages) == [True, True, False, False]
    assert list(model.config.num_global_tokens) == [1, 2, 0, 1]
    assert model.config.stage_positions == ["absolute", "relative", "absolute", "relative"]
    assert model.config.sparse_training_mode == "random_neighbor"
    for name, ours in golden_numbers(model, case).items():
        torch.testing.assert_close(ours, case.tensors[name], atol=1e-5, rtol=0, msg=name)


def test_what_absolute_positions_do_not_show_is_asked_for(golden, tmp_path):
    case = golden("vil_mixed_stages")
    weights = read_reference_checkpoint(case.checkpoint)["teacher"]
    torch.save({"teacher": weights}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="do not show num_heads and window_size: pass"):
        load_reference_model(tmp_path / "bare.pth")
    model = load_reference_model(
        tmp_path / "bare.pth", num_heads=[1, 2, 4, 2], window_size=[4, 3, 7, 7]
    )
    with torch.no_grad():
        assert largest_difference(model, case) <= 1e-5
    model.save_pretrained(tmp_path / "model")
    again = convert_to_reference(str(tmp_path / "model"))["teacher"]
    assert again.keys() == {name for name, tensor in weights.items() if tensor.numel()}
    assert all(torch.equal(again[name], weights[name]) for name in again)


@pytest.mark.parametrize(
    ("weights", "sizes"), [("teacher", [(0, 1)]), ("student", [(0, 1), (2, 3)])]
)
def test_all_crops_and_heads_equal_reference(golden, weights, sizes):
    case = golden(CASE)
    model = load_reference_model(case.checkpoint, weights=weights)
    states = split_reference_state_dict(read_reference_checkpoint(case.checkpoint)[weights])
    heads = []
    for state in states[1:]:
        heads.append(ProjectionHead(64, 64, hidden_dim=48, bottleneck_dim=16).requires_grad_(False))
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
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, case.tensors[f"{weights}.{name}"], atol=1e-5, rtol=0, msg=name
        )


def test_every_parameter_matters_to_the_numbers(golden):
    case = golden(CASE)
    model = load_reference_model(case.checkpoint)
    generator = torch.Generator().manual_seed(3)

    def unnoticed(step: float, names: list[str]) -> list[str]:
        quiet = []
        for name in names:
            parameter = model.get_parameter(name)
            original = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(
                    step * torch.randint(0, 2, parameter.shape, generator=generator).mul(2).sub(1)
                )
                if largest_difference(model, case) <= 1e-5:
                    quiet.append(name)
                parameter.copy_(original)
        return quiet

    small = unnoticed(1e-3, [name for name, _ in model.named_parameters()])
    # What is added to the scores of one key among hundreds shows less.
    assert all(
        re.search(r"global_to_\w+_bias|position_bias_table|query\.bias|global_tokens", name)
        for name in small
    )
    # The first stage's only block passes its global token on to nothing.
    assert unnoticed(0.5, small) == ["stages.0.blocks.0.attention.global_to_global_bias"]


def test_preset_has_the_parameters_of_the_reference(manifest):
    facts = manifest("vil_2262_w7")
    with torch.device("meta"):
        model = EsvitVilModel(EsvitVilConfig.from_preset("tiny"))
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == facts["backbone_parameters"]
    )
    reference = {
        name: torch.zeros(1).expand(shape) for name, (shape, _) in facts["teacher"].items()
    }
    backbone, view_head, region_head = split_reference_state_dict(reference)
    assert {name: tuple(tensor.shape) for name, tensor in backbone.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    assert view_head and region_head


def test_conversion_refuses_own_projections_of_global_tokens(golden, tmp_path):
    checkpoint = read_reference_checkpoint(golden(CASE).checkpoint)
    name = "layer2.1.attn.kv_global.weight"
    checkpoint["teacher"][name] = checkpoint["teacher"][name] + 1
    torch.save({"teacher": checkpoint["teacher"]}, tmp_path / "unshared.pth")
    with pytest.raises(
        ValueError, match=r"stages\.1\.blocks\.0\.attention\.key_value\.weight.*global tokens"
    ):
        load_reference_model(tmp_path / "unshared.pth")


# Sparse attention against attention of everything to everything with a mask


def dense_oracle(
    module: EsvitVilSparseAttention, tokens: Tensor, grid: tuple[int, int], chunks: set
) -> Tensor:
    """Attention with a score for every pair of tokens; `chunks` are the (rows, columns) away that
    may be seen.
    """
    heads, count, window = module.num_heads, module.num_global_tokens, module.window
    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    )
    down, right = y[:, None] - y[None, :], x[:, None] - x[None, :]
    limit = 2 * window - 1
    rows = (
        (down.clamp(-limit, limit) + limit) * (2 * limit + 1) + right.clamp(-limit, limit) + limit
    )
    far = torch.ones(len(y), len(y), dtype=torch.bool)
    for chunk_rows, chunk_columns in chunks:
        seen = (y[None, :] // window - y[:, None] // window == chunk_rows) & (
            x[None, :] // window - x[:, None] // window == chunk_columns
        )
        far &= ~seen
    bias = torch.zeros(heads, len(y) + count, len(y) + count)
    if module.relative:
        bias[:, count:, count:] = module.relative_position_bias_table[rows].permute(2, 0, 1)
        if count:
            bias[:, :count, :count] = module.global_to_global_bias
            bias[:, :count, count:] = module.global_to_grid_bias[0][:, :, None]
            bias[:, count:, :count] = module.global_to_grid_bias[1][:, None, :]
    bias[:, count:, count:].masked_fill_(far, float("-inf"))
    query = module.query(tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
    key, value = module.key_value(tokens).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return module.projection((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


ALL_CHUNKS = {(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)}


def sparse_attention(
    window: int, count: int, implementation: str = "sdpa", **fields
) -> EsvitVilSparseAttention:
    config = small_config(window_size=window, num_global_tokens=[count, 0, 0], **fields)
    config._attn_implementation = implementation
    model = randomized(EsvitVilModel(config))
    return model.stages[0].blocks[0].attention.requires_grad_(False)


@given(
    grid=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    window=st.integers(1, 4),
    count=st.integers(0, 2),
    implementation=st.sampled_from(["sdpa", "eager"]),
    position=st.sampled_from(["relative", "absolute"]),
)
@settings(max_examples=40, deadline=None)
def test_sparse_attention_is_masked_dense_attention(grid, window, count, implementation, position):
    module = sparse_attention(window, count, implementation, position_embedding=position).eval()
    tokens = images(2, count + math.prod(grid), 8)
    expected = dense_oracle(module, tokens, grid, ALL_CHUNKS)
    torch.testing.assert_close(module(tokens, grid)[0], expected, atol=1e-5, rtol=0)


def test_training_with_a_random_neighbor():
    module = sparse_attention(3, 1, sparse_training_mode="random_neighbor")
    grid = (8, 9)
    tokens = images(1, 1 + math.prod(grid), 8)
    expected = {
        neighbor: dense_oracle(module, tokens, grid, {(0, 0), neighbor})
        for neighbor in ALL_CHUNKS - {(0, 0)}
    }
    module.train()
    torch.manual_seed(0)
    drawn = []
    for _ in range(48):
        output = module(tokens, grid)[0]
        close = [
            key
            for key, value in expected.items()
            if torch.allclose(output, value, atol=1e-5, rtol=0)
        ]
        assert len(close) == 1
        drawn += close
    assert set(drawn) == set(expected)
    torch.manual_seed(0)
    torch.testing.assert_close(module(tokens, grid)[0], expected[drawn[0]], atol=1e-5, rtol=0)

    module.eval()
    torch.testing.assert_close(
        module(tokens, grid)[0], dense_oracle(module, tokens, grid, ALL_CHUNKS)
    )


def test_random_neighbor_of_the_only_chunk_is_masked():
    module = sparse_attention(4, 1, sparse_training_mode="random_neighbor").train()
    tokens = images(2, 1 + 4 * 3, 8)
    torch.testing.assert_close(
        module(tokens, (4, 3))[0], dense_oracle(module, tokens, (4, 3), ALL_CHUNKS)
    )


# Full attention away from its own grid


def full_attention(image_size) -> EsvitVilFullAttention:
    model = randomized(EsvitVilModel(small_config(image_size=image_size)))
    return model.stages[1].blocks[0].attention.requires_grad_(False)


@pytest.mark.parametrize(
    ("image_size", "own", "grid"), [(32, (8, 8), (3, 3)), ((32, 48), (8, 12), (10, 15))]
)
def test_bias_of_the_same_proportions_is_resized_like_an_image(image_size, own, grid):
    module = full_attention(image_size)
    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(own[0]), torch.arange(own[1]), indexing="ij")
    )
    rows = (y[:, None] - y + own[0] - 1) * (2 * own[1] - 1) + x[:, None] - x + own[1] - 1
    matrix = module.relative_position_bias_table[rows].permute(2, 0, 1)
    torch.testing.assert_close(module.relative_position_bias(own), matrix, atol=0, rtol=0)
    scale = math.prod(grid) / math.prod(own)
    expected = F.interpolate(matrix[None], scale_factor=scale, mode="bicubic")[0]
    torch.testing.assert_close(module.relative_position_bias(grid), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [(4, 16), (1, 5), (11, 8)])
def test_bias_of_other_proportions_depends_on_relative_positions(grid):
    module = full_attention(32)
    # A table that grows linearly with the offsets stays linear, with its zero in the middle.
    offset = torch.arange(15) - 7.0
    table = offset[:, None] * 10 + offset
    module.relative_position_bias_table.copy_(table.flatten()[:, None].expand(-1, 2))
    bias = module.relative_position_bias(grid)[0].unflatten(1, grid).unflatten(0, grid)
    token = (grid[0] // 2, grid[1] // 2)
    assert bias[token][token] == pytest.approx(0, abs=1e-4)
    for axis, slope in ((0, 10), (1, 1)):
        if token[axis] + 1 < grid[axis]:
            step = (15 / (2 * grid[axis] - 1)) * slope
            other = tuple(place + (direction == axis) for direction, place in enumerate(token))
            assert float(bias[other][token]) == pytest.approx(step, abs=0.05 * slope)
            assert float(bias[token][other]) == pytest.approx(-step, abs=0.05 * slope)


def test_absolute_positions_mark_rows_and_columns():
    model = small_model(position_embedding="absolute", num_global_tokens=[0, 1, 0])
    embeddings = model.stages[0].embeddings
    blank = embeddings.norm(embeddings.projection(torch.zeros(1, 3, 2, 2)).flatten())
    tokens, grid = embeddings(torch.zeros(1, 3, 32, 32))
    assert grid == (16, 16)
    for row, column in ((0, 0), (3, 14), (15, 2)):
        position = torch.cat(
            [embeddings.row_positions[0, row], embeddings.column_positions[0, column]]
        )
        torch.testing.assert_close(tokens[0, row * 16 + column], blank + position)

    both = [embeddings.row_positions[:, :, None].expand(-1, -1, 16, -1)]
    both.append(embeddings.column_positions[:, None].expand(-1, 16, -1, -1))
    resized = F.interpolate(torch.cat(both, -1).permute(0, 3, 1, 2), size=(9, 21), mode="bicubic")
    tokens, _ = embeddings(torch.zeros(1, 3, 18, 42))
    torch.testing.assert_close(
        tokens - blank, resized.flatten(2).transpose(1, 2), atol=1e-5, rtol=0
    )
    model(images(1, 3, 18, 42))


@pytest.mark.parametrize("size", [32, 18])
def test_global_tokens_stretch_absolute_positions_as_in_the_reference(size):
    embeddings = small_model(position_embedding="absolute").stages[0].embeddings
    blank = embeddings.norm(embeddings.projection(torch.zeros(1, 3, 2, 2)).flatten())
    tokens, grid = embeddings(torch.zeros(1, 3, size, size))
    torch.testing.assert_close(
        tokens[:, :2], embeddings.global_tokens + embeddings.global_positions
    )
    both = [embeddings.row_positions[:, :, None].expand(-1, -1, 16, -1)]
    both.append(embeddings.column_positions[:, None].expand(-1, 16, -1, -1))
    resized = F.interpolate(
        torch.cat(both, -1).permute(0, 3, 1, 2),
        scale_factor=math.sqrt((grid[0] * grid[1] + 2) / 256),
        mode="bicubic",
    )
    torch.testing.assert_close(
        tokens[:, 2:] - blank, resized.flatten(2).transpose(1, 2), atol=1e-5, rtol=0
    )
