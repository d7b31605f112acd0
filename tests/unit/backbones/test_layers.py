"""Regions of any layer of any network: which hidden state, which tokens, which grid."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    HieraConfig,
    HieraModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SamVisionConfig,
    SamVisionModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from esvit_hf import EsvitSwinConfig, EsvitSwinModel, EsvitVilConfig, EsvitVilModel
from esvit_hf.backbones.adapter import RegionBackbone

SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}


def vil() -> EsvitVilModel:
    config = EsvitVilConfig(
        image_size=32,
        patch_sizes=[4, 2],
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_heads=[1, 2],
        sparse_stages=[True, False],
        num_global_tokens=[2, 0],
        window_size=4,
    )
    return EsvitVilModel(config)


def deit(channels: int = 16) -> DeiTModel:
    config = DeiTConfig(
        hidden_size=channels,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
    )
    return DeiTModel(config)


# Network, then for each hidden state the grid and the number of tokens in front of it; None for
# maps.
NETWORKS: dict[str, tuple[Callable[[], PreTrainedModel], list[tuple[int, int | None]]]] = {
    "esvit swin": (
        lambda: EsvitSwinModel(EsvitSwinConfig(**SWIN)),
        [(8, 0), (8, 0), (4, 0), (4, 0)],
    ),
    "esvit vil": (vil, [(8, 2), (8, 2), (4, 0), (4, 0)]),
    "deit": (deit, [(4, 2), (4, 2), (4, 2)]),
    "swin": (lambda: SwinModel(SwinConfig(**SWIN, patch_size=4)), [(8, 0), (4, 0), (4, 0)]),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])),
        [(8, None), (8, None), (4, None)],
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
        [(8, None), (8, None), (4, None)],
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_regions_of_every_layer(name: str) -> None:
    build, expected = NETWORKS[name]
    backbone, pixels = RegionBackbone(build()).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = backbone.model(pixels, output_hidden_states=True).hidden_states
        assert len(states) == len(expected)
        for layer, (side, prefix) in enumerate(expected):
            rows = (
                states[layer].flatten(2).transpose(1, 2)
                if prefix is None
                else states[layer][:, prefix:]
            )
            for index in (layer, layer - len(states)):
                regions, grid = backbone.layer_regions(pixels, index)
                assert grid == (side, side)
                assert torch.equal(regions, rows)
        regions, grid = backbone.layer_regions(pixels)
        assert torch.equal(regions, backbone(pixels).regions)
        assert grid == backbone(pixels).grid
        with pytest.raises(
            ValueError, match=f"layer {len(states)} asked for.*choose 0 to {len(states) - 1}"
        ):
            backbone.layer_regions(pixels, len(states))


@pytest.mark.parametrize("embed_dim", [8, 24])
def test_maps_may_lie_otherwise_than_the_last_output(embed_dim: int) -> None:
    arguments = {
        "img_size": 32,
        "embed_dim": embed_dim,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "window_size": 4,
    }
    config = TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=arguments)
    backbone, pixels = RegionBackbone(TimmWrapperModel(config)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = backbone.model(pixels, output_hidden_states=True)
        assert output.last_hidden_state.shape == (2, 4, 4, 2 * embed_dim)
        for layer, (state, side) in enumerate(zip(output.hidden_states, (8, 4), strict=True)):
            assert state.shape[2:] == (side, side)
            regions, grid = backbone.layer_regions(pixels, layer)
            assert grid == (side, side)
            assert torch.equal(regions, state.flatten(2).transpose(1, 2))


def test_maps_with_channels_last_in_front_of_one_with_channels_first() -> None:
    sizes = {"hidden_size": 32, "mlp_dim": 64, "output_channels": 24, "window_size": 2}
    layers = {"num_hidden_layers": 4, "num_attention_heads": 2, "global_attn_indexes": [2]}
    config = SamVisionConfig(image_size=64, patch_size=16, **sizes, **layers)
    backbone, pixels = RegionBackbone(SamVisionModel(config)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states = backbone.model(pixels, output_hidden_states=True).hidden_states
        found = backbone.block_features(pixels, 4)
        assert [tuple(row.shape) for row in found] == [(2, 32)] * 3 + [(2, 24)]
        for row, state in zip(found[:-1], states[-4:-1], strict=True):
            assert torch.equal(row, state.mean(dim=(1, 2)))
        regions, grid = backbone.layer_regions(pixels, 1)
    assert grid == (4, 4)
    assert torch.equal(regions, states[1].flatten(1, 2))


def sam(hidden: int, output: int) -> SamVisionModel:
    sizes = {"hidden_size": hidden, "mlp_dim": 16, "output_channels": output, "window_size": 2}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1]}
    return SamVisionModel(SamVisionConfig(image_size=128, patch_size=16, **sizes, **layers))


def test_maps_with_as_many_channels_as_rows_are_measured_or_refused() -> None:
    # SAM takes images of one size alone.
    backbone, pixels = RegionBackbone(sam(8, 4)).eval(), torch.randn(1, 3, 128, 128)
    assert backbone(pixels).regions.shape == (1, 64, 4)
    for layer in (0, -1):
        with pytest.raises(ValueError, match=r"has the shape \(1, 8, 8, 8\), which is no map"):
            backbone.layer_regions(pixels, layer)
    with pytest.raises(ValueError, match="channels may come first or last: pass image_size"):
        RegionBackbone(sam(4, 8))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 4], depths=[1, 1])
    backbone, pixels = RegionBackbone(ResNetModel(config), image_size=32).eval(), pixels[..., :32]
    with torch.no_grad():
        output = backbone.model(pixels, output_hidden_states=True)
        for layer, state in enumerate(output.hidden_states):
            regions = backbone.layer_regions(pixels, layer)[0]
            assert torch.equal(regions, state.flatten(2).mT)
    assert torch.equal(backbone(pixels).regions, output.last_hidden_state.flatten(2).mT)


def test_tokens_of_windows_have_an_average_and_no_places() -> None:
    sizes = {"embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    model = HieraModel(HieraConfig(image_size=[128, 128], **sizes))
    backbone, pixels = RegionBackbone(model).eval(), torch.randn(1, 3, 128, 128)
    states = model(pixels, output_hidden_states=True).hidden_states
    with pytest.raises(ValueError, match="do not lie row by row"):
        backbone.layer_regions(pixels, 1)
    assert torch.equal(backbone.block_features(pixels, 4)[0], states[1].mean(dim=1))
    assert torch.equal(backbone.layer_regions(pixels, -1)[0], states[-1])


def test_tokens_in_front_that_look_like_regions_are_refused() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Dinov2WithRegistersConfig(image_size=40, patch_size=16, num_register_tokens=4, **sizes)
    with pytest.raises(ValueError, match="first one is no region: pass image_size with a multiple"):
        RegionBackbone(Dinov2WithRegistersModel(config))
    backbone = RegionBackbone(Dinov2WithRegistersModel(config), image_size=32)
    assert backbone(torch.randn(1, 3, 32, 32)).regions.shape == (1, 4, 8)


def test_hidden_states_that_are_no_grid_are_refused() -> None:
    def scrambled(module: DeiTModel, inputs: object, output: Any) -> Any:
        if output.hidden_states:
            output.hidden_states = (output.hidden_states[0].mT, *output.hidden_states[1:])
        return output

    model = deit(channels=20)
    model.register_forward_hook(scrambled)
    backbone, pixels = RegionBackbone(model).eval(), torch.randn(1, 3, 32, 32)
    assert backbone.block_features(pixels, 2)[0].shape == (1, 20)
    with pytest.raises(ValueError, match=r"hidden state 0 of DeiTModel has the shape \(1, 20, 18"):
        backbone.layer_regions(pixels, 0)


def test_images_that_are_not_square() -> None:
    backbone, pixels = (
        RegionBackbone(EsvitSwinModel(EsvitSwinConfig(**SWIN))).eval(),
        torch.randn(1, 3, 36, 50),
    )
    with torch.no_grad():
        assert backbone.layer_regions(pixels, 1)[1] == (9, 12)
        assert backbone.layer_regions(pixels, -1)[1] == (5, 6)


def test_several_maps_instead_of_one_are_refused() -> None:
    def several(module: DeiTModel, inputs: object, output: Any) -> Any:
        output.last_hidden_state = [output.last_hidden_state]
        return output

    model = deit()
    model.register_forward_hook(several)
    with pytest.raises(ValueError, match=r"no spatial tokens \(a last_hidden_state of type list"):
        RegionBackbone(model)


def test_several_hidden_maps_instead_of_one_are_refused() -> None:
    def several(module: DeiTModel, inputs: object, output: Any) -> Any:
        if output.hidden_states:
            output.hidden_states = ((output.hidden_states[0],) * 2, *output.hidden_states[1:])
        return output

    model = deit()
    model.register_forward_hook(several)
    backbone = RegionBackbone(model)
    pixels = torch.randn(1, 3, *(backbone.native_size or (224, 224)))
    with pytest.raises(ValueError, match="hidden state 0 of DeiTModel is a tuple, which is no map"):
        backbone.layer_regions(pixels, 0)


def test_a_network_that_misses_an_input_is_refused() -> None:
    def need_more(module: DeiTModel, inputs: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'device'")

    model = deit()
    model.register_forward_pre_hook(need_more)
    with pytest.raises(ValueError, match="DeiTModel cannot process an image of .* 'device'"):
        RegionBackbone(model)


def test_a_network_of_timm_is_measured_at_its_own_size() -> None:
    model = TimmWrapperModel(TimmWrapperConfig(architecture="test_convnext"))
    assert RegionBackbone(model).native_size == model.timm_model.pretrained_cfg["input_size"][1:]
    assert RegionBackbone(model).native_size == (160, 160)
