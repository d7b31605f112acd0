"""Vision Longformer: the reference's numbers, a dense oracle for the sparse attention, and its own
behavior.
"""

import copy
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification

from esvit_hf import EsvitVilBackbone, EsvitVilConfig, EsvitVilForImageClassification, EsvitVilModel
from esvit_hf.models.modeling_esvit_vil import EsvitVilFullAttention, EsvitVilSparseAttention
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.reference.from_reference import (
    load_reference_model,
    read_reference_checkpoint,
    split_reference_state_dict,
)
from esvit_hf.reference.to_reference import convert_to_reference

CASE = "vil_view_region"


def small_config(**fields) -> EsvitVilConfig:
    """Three stages, 32 pixels, 3 x 3 chunks in the sparse one."""
    defaults = {
        "image_size": 32,
        "patch_sizes": [2, 2, 2],
        "hidden_sizes": [8, 16, 24],
        "depths": [2, 1, 1],
        "num_heads": [2, 2, 3],
        "window_size": 6,
        "sparse_stages": [True, False, False],
        "num_global_tokens": [2, 1, 0],
    }
    return EsvitVilConfig(**{**defaults, **fields})


def randomized(model):
    """Spread all parameters, so that none sits at a trivial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1))
    return model


def small_model(**fields) -> EsvitVilModel:
    torch.manual_seed(0)
    return randomized(EsvitVilModel(small_config(**fields))).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


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


def test_saved_and_loaded_by_the_auto_classes(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "esvit_vil" and config["architectures"] == ["EsvitVilModel"]
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, EsvitVilModel)
    pixels = images(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(pixels).last_hidden_state, model(pixels).last_hidden_state, atol=0, rtol=0
        )
        classifier, facts = AutoModelForImageClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
        assert isinstance(classifier, EsvitVilForImageClassification)
        assert facts["missing_keys"] == {"classifier.weight", "classifier.bias"}
        torch.testing.assert_close(
            classifier.network(pixels).pooler_output, model(pixels).pooler_output
        )
        assert classifier(pixels, labels=torch.tensor([0, 4])).loss.isfinite()
        backbone = EsvitVilBackbone.from_pretrained(
            tmp_path, out_features=["stem", "stage1", "stage3"]
        )
        maps = backbone(pixels).feature_maps
    assert [tuple(feature_map.shape) for feature_map in maps] == [
        (2, 8, 16, 16),
        (2, 8, 16, 16),
        (2, 24, 4, 4),
    ]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), model(pixels).last_hidden_state)
    assert isinstance(AutoBackbone.from_config(backbone.config), EsvitVilBackbone)


def test_bfloat16_stays_close():
    model = small_model()
    pixels = images(2, 3, 40, 24)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
        half = copy.deepcopy(model).bfloat16()(pixels.bfloat16()).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(pixels).last_hidden_state
    assert half.dtype == torch.bfloat16
    for output in (half, mixed):
        assert F.cosine_similarity(output.float(), expected, dim=-1).min() > 0.99


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


def test_exports_with_a_dynamic_batch():
    model = small_model(depths=[1, 1, 1])
    dynamic = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=16)}}
    program = torch.export.export(model, (images(2, 3, 32, 32),), dynamic_shapes=dynamic)
    pixels = images(5, 3, 32, 32)
    torch.testing.assert_close(
        program.module()(pixels).last_hidden_state,
        model(pixels).last_hidden_state,
        atol=1e-5,
        rtol=0,
    )


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
