"""Attention by block: geometry of windows, chunks and padding against loops, entropy, and networks
without it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SegformerConfig,
    SegformerModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTModel,
)

from esvit_hf import (
    EsvitCvtConfig,
    EsvitCvtModel,
    EsvitImageProcessor,
    EsvitSwinConfig,
    EsvitSwinModel,
    EsvitVilConfig,
    EsvitVilModel,
)
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.models.modeling_esvit_common import AttentionLayout, full_attention_layout
from esvit_hf.regions.attention import (
    attention_entropy,
    measure_attention_entropy,
    query_attention,
)

# 11 x 9 and 6 x 5 tokens in windows of 4: both sides are padded, and odd blocks of Swin shift by 2.
SIZE = (44, 36)
PATCH = (4, 8)
WINDOW = 4


def swin() -> EsvitSwinModel:
    config = EsvitSwinConfig(
        image_size=SIZE, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=WINDOW
    )
    return EsvitSwinModel(config)


def vil() -> EsvitVilModel:
    config = EsvitVilConfig(
        image_size=SIZE,
        patch_sizes=[4, 2],
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_heads=[2, 2],
        sparse_stages=[True, False],
        num_global_tokens=[2, 1],
        window_size=2,
    )
    return EsvitVilModel(config)


def cvt() -> EsvitCvtModel:
    config = EsvitCvtConfig(
        image_size=SIZE,
        patch_sizes=[7, 3],
        patch_strides=[4, 2],
        patch_padding=[2, 1],
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=[WINDOW, 7],
        mlp_ratio=[4.0, 4.0],
        qkv_kernel_sizes=[3, 3],
        qkv_bias=[True, True],
        relative_position_bias=True,
    )
    return EsvitCvtModel(config)


def vit() -> ViTModel:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    return ViTModel(config)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomized(model: PreTrainedModel) -> RegionBackbone:
    """A network whose attention is far from uniform."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return RegionBackbone(model).eval()


def read_inputs(modules: list[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    inputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
        for module in modules
    ]
    run()
    for hook in hooks:
        hook.remove()
    return inputs


# A place is (row, column), or (-1, g) for global token g; an oracle gives each query of the grid
# its keys, scores and whether a key is part of the image.
Place = tuple[int, int]
Oracle = Iterator[tuple[Place, list[Place], Tensor]]


def swin_oracle(attention: Any, tokens: Tensor, grid: tuple[int, int]) -> Oracle:
    window, shift, heads = attention.window, attention.shift, attention.num_heads
    padded = tuple(math.ceil(side / window) * window for side in grid)
    token_map = torch.zeros(*padded, tokens.shape[-1])
    token_map[: grid[0], : grid[1]] = tokens[0].unflatten(0, grid)
    query, key, _ = attention.qkv(token_map).unflatten(-1, (3, heads, -1)).unbind(2)

    def rolled(place: Place) -> Place:
        return (place[0] - shift) % padded[0], (place[1] - shift) % padded[1]

    places = [(row, column) for row in range(padded[0]) for column in range(padded[1])]
    for place in places:
        if place[0] >= grid[0] or place[1] >= grid[1]:
            continue
        row, column = rolled(place)
        keys, scores = [], []
        for other in places:
            other_row, other_column = rolled(other)
            if (row // window, column // window) != (other_row // window, other_column // window):
                continue
            if [side < shift for side in place] != [side < shift for side in other]:
                continue
            entry = (
                (row - other_row + window - 1) * (2 * window - 1)
                + column
                - other_column
                + window
                - 1
            )
            bias = attention.relative_position_bias_table[entry]
            keys.append(other)
            scores.append((query[place] * key[other]).sum(-1) * attention.scaling + bias)
        yield place, keys, torch.stack(scores, dim=1)


def cvt_oracle(attention: Any, tokens: Tensor, grid: tuple[int, int]) -> Oracle:
    window, heads = min(attention.window, *grid), attention.num_heads
    padded = tuple(math.ceil(side / window) * window for side in grid)
    token_map = torch.zeros(*padded, tokens.shape[-1])
    token_map[: grid[0], : grid[1]] = tokens[0].unflatten(0, grid)
    mixed = attention.batch_norm(attention.depthwise(token_map.permute(2, 0, 1)[None]))[0].permute(
        1, 2, 0
    )
    query, key, _ = attention.qkv(mixed).unflatten(-1, (3, heads, -1)).unbind(2)
    table = 2 * attention.window - 1
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, left = row // window * window, column // window * window
            keys = [(top + down, left + along) for down in range(window) for along in range(window)]
            scores = []
            for other in keys:
                entry = (
                    (row - other[0] + attention.window - 1) * table
                    + column
                    - other[1]
                    + attention.window
                    - 1
                )
                bias = attention.relative_position_bias_table[entry]
                scores.append((query[row, column] * key[other]).sum(-1) * attention.scaling + bias)
            yield (row, column), keys, torch.stack(scores, dim=1)


def vil_oracle(attention: Any, tokens: Tensor, grid: tuple[int, int]) -> Oracle:
    heads, count = attention.num_heads, attention.num_global_tokens
    sparse = hasattr(attention, "window")
    if sparse:
        query, (key, _) = attention.query(tokens), attention.key_value(tokens).chunk(2, dim=-1)
    else:
        query, key, _ = attention.qkv(tokens).chunk(3, dim=-1)
    query, key = (rows[0].unflatten(-1, (heads, -1)) for rows in (query, key))
    scaling = query.shape[-1] ** -0.5
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for number, (row, column) in enumerate(places):
        keys, scores = [], []
        for token in range(count):
            keys.append((-1, token))
            bias = attention.global_to_grid_bias[1][:, token]
            scores.append((query[count + number] * key[token]).sum(-1) * scaling + bias)
        for other_number, (other_row, other_column) in enumerate(places):
            if sparse:
                window, reach = attention.window, 2 * attention.window - 1
                if (
                    max(
                        abs(row // window - other_row // window),
                        abs(column // window - other_column // window),
                    )
                    > 1
                ):
                    continue
                entry = (row - other_row + reach) * (4 * window - 1) + column - other_column + reach
            else:
                entry = (
                    (row - other_row + grid[0] - 1) * (2 * grid[1] - 1)
                    + column
                    - other_column
                    + grid[1]
                    - 1
                )
            bias = attention.relative_position_bias_table[entry]
            keys.append((other_row, other_column))
            scores.append(
                (query[count + number] * key[count + other_number]).sum(-1) * scaling + bias
            )
        yield (row, column), keys, torch.stack(scores, dim=1)


NETWORKS: dict[
    str, tuple[Callable[[], PreTrainedModel], Callable[[Any, Tensor, tuple[int, int]], Oracle]]
] = {
    "swin": (swin, swin_oracle),
    "cvt": (cvt, cvt_oracle),
    "vil": (vil, vil_oracle),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_shifts_chunks_and_padding_are_undone(name: str) -> None:
    build, oracle = NETWORKS[name]
    backbone, pixels = randomized(build()), torch.randn(2, 3, *SIZE)
    modules = [block.attention for stage in backbone.model.stages for block in stage.blocks]
    with torch.no_grad():
        inputs = read_inputs(modules, lambda: backbone(pixels[:1]))
        maps = backbone.attention_maps(pixels)
        for layer, (module, tokens) in enumerate(zip(modules, inputs, strict=True)):
            stage = layer * 2 // len(modules)
            grid, stride = ((11, 9), (6, 5) if name != "vil" else (5, 4))[stage], PATCH[stage]
            assert maps[layer][1].grid == grid
            assert maps[layer][1].stride == (stride, stride)
            for window in maps[layer][1].keys:
                assert window[window >= 0].unique().numel() == (window >= 0).sum(), (
                    "padding must name no token"
                )
            entropies, largest = [], []
            for (row, column), keys, scores in oracle(module, tokens, grid):
                probabilities = scores.softmax(dim=1)
                entropies.append(-(probabilities * probabilities.log2()).nan_to_num().sum(dim=1))
                largest.append(math.log2(len(keys)))
                # Every second region is enough to meet every window, border and corner.
                if (row + column) % 2:
                    continue
                expected = torch.zeros(len(scores), *grid)
                for place, attention in zip(keys, probabilities.T, strict=True):
                    if 0 <= place[0] < grid[0] and place[1] < grid[1]:
                        expected[:, place[0], place[1]] = attention
                point = (
                    min(column * stride + 1.5, SIZE[1] - 0.5),
                    min(row * stride + 2.5, SIZE[0] - 0.5),
                )
                found = query_attention(backbone, pixels[:1], point, layer)
                assert found.region == (row, column)
                assert (found.maps.sum(dim=(1, 2)) <= 1 + 1e-5).all()
                torch.testing.assert_close(found.maps, expected, atol=2e-5, rtol=1e-3)
                assert torch.equal(found.maps == 0, expected == 0)
            found_entropies, found_largest = attention_entropy(*maps[layer], batch=2)
            torch.testing.assert_close(
                found_entropies[0],
                torch.stack(entropies).mean(dim=0).double(),
                atol=1e-4,
                rtol=1e-4,
            )
            assert float(found_largest) == pytest.approx(sum(largest) / len(largest))


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_a_vision_transformer_without_its_class_token(size: tuple[int, int]) -> None:
    backbone, pixels = randomized(vit()), torch.randn(1, 3, *size)
    assert backbone.model.config._attn_implementation == "sdpa"
    found = query_attention(backbone, pixels, (17, 9), layer=0)
    assert backbone.model.config._attn_implementation == "sdpa"
    columns = size[1] // 8
    assert found.region == (1, 2)
    backbone.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = backbone.model(
            pixels, output_attentions=True, interpolate_pos_encoding=size != (32, 32)
        )
    expected = output.attentions[0][0, :, 1 + columns + 2]
    torch.testing.assert_close(found.maps.flatten(1), expected[:, 1:])
    rest = 1 - found.maps.sum(dim=(1, 2))
    torch.testing.assert_close(rest, expected[:, 0], atol=1e-6, rtol=0)


def test_entropy_by_hand() -> None:
    """Two regions behind a class token: 1 bit and 2/3 log2(3/2) + 1/3 log2 3 bits; the class token
    does not count.
    """
    probabilities = torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [2 / 3, 1 / 3, 0.0]]]])
    entropies, largest = attention_entropy(
        probabilities, full_attention_layout((1, 2), (4, 4), 1), batch=1
    )
    assert entropies.tolist() == [[pytest.approx((1 + math.log2(3) - 2 / 3) / 2)]]
    assert float(largest) == pytest.approx(math.log2(3))


def test_masked_keys_and_rows_of_padding_do_not_count() -> None:
    probabilities = torch.tensor([[[[0.25, 0.75, 0.0], [0.1, 0.2, 0.7]]]])
    layout = AttentionLayout(
        grid=(1, 2),
        stride=(4, 4),
        num_global_tokens=0,
        queries=torch.tensor([[1, -1]]),
        keys=torch.tensor([[0, 1, -1]]),
        allowed=torch.tensor([[[True, True, False], [True, True, True]]]),
    )
    entropies, largest = attention_entropy(probabilities, layout, batch=1)
    assert entropies.tolist() == [[pytest.approx(0.5 + 0.75 * math.log2(4 / 3))]]
    assert float(largest) == 1


def source(count: int) -> ImageSource:
    images = [
        PILImage.effect_mandelbrot((40 + index, 50), (-2 + 0.1 * index, -1, 1, 1), 20).convert(
            "RGB"
        )
        for index in range(count)
    ]
    return ImageSource(Dataset.from_dict({"image": images}, features=Features({"image": Image()})))


@pytest.mark.parametrize("build", [swin, cvt, vil, vit])
def test_uniform_attention_has_the_largest_entropy(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    for name, parameter in model.named_parameters():
        if any(
            word in name for word in ("query", "q_proj", "qkv", "bias_table", "global_to_grid_bias")
        ):
            nn.init.zeros_(parameter)
    size = (32, 32) if build is vit else SIZE
    processor = EsvitImageProcessor(
        size={"shortest_edge": 50}, crop_size={"height": size[0], "width": size[1]}
    )
    records = measure_attention_entropy(RegionBackbone(model), source(3), processor, batch_size=2)
    assert len({(record.layer, record.head) for record in records}) == len(records) > 2
    for record in records:
        assert record.entropy == pytest.approx(record.largest, abs=1e-5)
    if build is vit:
        assert records[0].largest == pytest.approx(math.log2(17))


def test_entropy_is_the_mean_over_images_and_the_mode_comes_back() -> None:
    backbone = randomized(swin()).train()
    processor = EsvitImageProcessor(
        size={"shortest_edge": 50}, crop_size={"height": SIZE[0], "width": SIZE[1]}
    )
    images = source(3)
    records = measure_attention_entropy(backbone, images, processor, batch_size=2)
    assert backbone.training
    backbone.eval()
    with torch.no_grad():
        rows = []
        for image in images.read(range(3)):
            maps = backbone.attention_maps(processor(image, return_tensors="pt")["pixel_values"])
            rows.append(torch.cat([attention_entropy(*block, batch=1)[0][0] for block in maps]))
    expected = torch.stack(rows).mean(dim=0)
    assert [record.entropy for record in records] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])),
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
        lambda: SwinModel(
            SwinConfig(
                image_size=32,
                embed_dim=8,
                depths=[1, 2],
                num_heads=[1, 2],
                window_size=4,
                patch_size=4,
            )
        ),
        lambda: SegformerModel(
            SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 1],
                hidden_sizes=[8, 16],
                num_attention_heads=[1, 2],
                sr_ratios=[2, 1],
                patch_sizes=[7, 3],
                strides=[4, 2],
                mlp_ratios=[2, 2],
            )
        ),
        lambda: TimmWrapperModel(
            TimmWrapperConfig(
                architecture="vit_tiny_patch16_224",
                model_args={
                    "img_size": 32,
                    "patch_size": 8,
                    "embed_dim": 16,
                    "depth": 1,
                    "num_heads": 2,
                },
            )
        ),
    ],
    ids=["resnet", "convnext", "swin of transformers", "segformer", "timm"],
)
def test_networks_without_understood_attention(build: Callable[[], PreTrainedModel]) -> None:
    backbone = RegionBackbone(build(), image_size=32).eval()
    with pytest.raises(
        ValueError, match="attention.*: choose a network of this project or a plain"
    ) as caught:
        query_attention(backbone, torch.randn(1, 3, 32, 32), (1, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("point", [(36, 3), (3, 44), (-0.1, 3), (3, float("nan"))])
def test_points_outside(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="outside the 36 x 44 pixels"):
        query_attention(randomized(swin()), torch.randn(1, 3, *SIZE), point)


@pytest.mark.parametrize("layer", [4, -5])
def test_blocks_that_are_not_there(layer: int) -> None:
    backbone, pixels = randomized(swin()), torch.randn(1, 3, *SIZE)
    with pytest.raises(ValueError, match="has 4 blocks with attention: choose 0 to 3"):
        query_attention(backbone, pixels, (1, 1), layer)
    assert torch.equal(
        query_attention(backbone, pixels, (1, 1)).maps,
        query_attention(backbone, pixels, (1, 1), 3).maps,
    )


def test_several_images() -> None:
    with pytest.raises(ValueError, match="holds 2 images"):
        query_attention(randomized(swin()), torch.randn(2, 3, *SIZE), (1, 1))
