"""Regions of any layer of any network: which hidden state, which tokens, which grid."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
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


def deit() -> DeiTModel:
    config = DeiTConfig(
        hidden_size=16,
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


def test_maps_with_channels_last() -> None:
    arguments = {
        "img_size": 32,
        "embed_dim": 8,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "window_size": 4,
    }
    config = TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=arguments)
    backbone, pixels = (
        RegionBackbone(TimmWrapperModel(config), image_size=32).eval(),
        torch.randn(2, 3, 32, 32),
    )
    with torch.no_grad():
        states = backbone.model(pixels, output_hidden_states=True).hidden_states
        regions, grid = backbone.layer_regions(pixels, 0)
    assert grid == (states[0].shape[1], states[0].shape[2]) == (8, 8)
    assert torch.equal(regions, states[0].flatten(1, 2))


def test_images_that_are_not_square() -> None:
    backbone, pixels = (
        RegionBackbone(EsvitSwinModel(EsvitSwinConfig(**SWIN))).eval(),
        torch.randn(1, 3, 36, 50),
    )
    with torch.no_grad():
        assert backbone.layer_regions(pixels, 1)[1] == (9, 12)
        assert backbone.layer_regions(pixels, -1)[1] == (5, 6)
