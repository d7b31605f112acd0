"""The adapter around any vision network: layout, view feature, unused parameters, loading."""

import argparse
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.features.extraction import load_image_processor

TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
}
VIT = {**TOKENS, "intermediate_size": 64, "patch_size": 8}
DINO = {**TOKENS, "mlp_ratio": 2, "patch_size": 8}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}


def esvit_swin() -> EsvitSwinModel:
    return EsvitSwinModel(EsvitSwinConfig(**SWIN))


def timm_channels_last() -> TimmWrapperModel:
    arguments = {
        "img_size": 32,
        "embed_dim": 8,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "window_size": 4,
    }
    return TimmWrapperModel(
        TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=arguments)
    )


def tokens_after(prefix: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda last: (last[:, prefix:], last[:, 0] if prefix else last.mean(dim=1))


def from_maps(last: Tensor) -> tuple[Tensor, Tensor]:
    return last.flatten(2).transpose(1, 2), last.mean(dim=(2, 3))


# Network, its own size, another size, the grid at both, and regions and view feature read off by
# hand.
NETWORKS: dict[
    str, tuple[Callable[[], PreTrainedModel], int, int, Callable[[Tensor], tuple[Tensor, Tensor]]]
] = {
    "vit": (lambda: ViTModel(ViTConfig(**VIT)), 32, 8, tokens_after(1)),
    "deit": (lambda: DeiTModel(DeiTConfig(**VIT)), 32, 8, tokens_after(2)),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**DINO)), 32, 8, tokens_after(1)),
    "registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=4)),
        32,
        8,
        tokens_after(5),
    ),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**VIT)), 32, 8, tokens_after(0)),
    "swin": (lambda: SwinModel(SwinConfig(**SWIN)), 32, 8, tokens_after(0)),
    "esvit swin": (esvit_swin, 32, 8, tokens_after(0)),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])),
        32,
        8,
        from_maps,
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
        32,
        8,
        from_maps,
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [(1, 1), (2, 3)])
def test_regions_and_view_feature_are_those_of_the_network(
    name: str, scale: tuple[int, int]
) -> None:
    build, size, stride, by_hand = NETWORKS[name]
    backbone = RegionBackbone(build()).eval()
    height, width = scale[0] * size, scale[1] * size
    pixels = torch.randn(2, 3, height, width)
    with torch.no_grad():
        features = backbone(pixels)
        interpolation = (
            {"interpolate_pos_encoding": True} if name in ("vit", "deit", "siglip", "swin") else {}
        )
        regions, pooled = by_hand(backbone.model(pixels, **interpolation).last_hidden_state)
    assert features.grid == (height // stride, width // stride)
    assert features.regions.shape == (2, features.grid[0] * features.grid[1], backbone.feature_dim)
    torch.testing.assert_close(features.regions, regions)
    torch.testing.assert_close(features.pooled, pooled)


def test_maps_with_channels_last_are_told_apart() -> None:
    backbone = RegionBackbone(timm_channels_last(), image_size=32).eval()
    with torch.no_grad():
        pixels = torch.randn(2, 3, 32, 32)
        last = backbone.model(pixels).last_hidden_state
        features = backbone(pixels)
    assert last.shape == (2, 4, 4, 16)
    assert features.grid == (4, 4)
    torch.testing.assert_close(features.regions, last.reshape(2, 16, 16))


def test_padded_remainders_count_as_regions() -> None:
    backbone = RegionBackbone(SwinModel(SwinConfig(**SWIN))).eval()
    assert backbone(torch.randn(1, 3, 36, 41)).grid == (5, 6)


def test_dropped_remainders_do_not() -> None:
    backbone = RegionBackbone(Dinov2Model(Dinov2Config(**DINO))).eval()
    assert backbone(torch.randn(1, 3, 37, 45)).grid == (4, 5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    backbone = RegionBackbone(NETWORKS[name][0]()).train()
    features = backbone(torch.randn(2, 3, 32, 32))
    (features.regions.sum() + features.pooled.sum()).backward()
    without = [
        key
        for key, value in backbone.named_parameters()
        if value.requires_grad and value.grad is None
    ]
    assert not without


def test_only_what_the_features_do_not_need_is_frozen() -> None:
    frozen = {
        name: [
            key
            for key, value in RegionBackbone(NETWORKS[name][0]()).model.named_parameters()
            if not value.requires_grad
        ]
        for name in ("vit", "dinov2", "esvit swin", "resnet")
    }
    assert frozen == {
        "vit": ["pooler.dense.weight", "pooler.dense.bias"],
        "dinov2": ["embeddings.mask_token"],
        "esvit swin": [],
        "resnet": [],
    }


def test_building_leaves_the_network_as_it_was() -> None:
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])).train()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        backbone = RegionBackbone(model)
    assert backbone.training and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(backbone.state_dict()) == {f"model.{key}" for key in before}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_copy_is_independent() -> None:
    backbone = RegionBackbone(ViTModel(ViTConfig(**VIT))).eval()
    copied = copy.deepcopy(backbone)
    nn.init.constant_(backbone.model.layernorm.weight, 3.0)
    pixels = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(backbone.pooled_blocks(pixels, 2), copied.pooled_blocks(pixels, 2))


@pytest.mark.parametrize("name", ["vit", "esvit swin"])
def test_gradient_checkpointing_passes_through(name: str) -> None:
    backbone = RegionBackbone(NETWORKS[name][0]()).train()
    pixels = torch.randn(2, 3, 32, 32)

    def gradients() -> list[Tensor]:
        backbone.zero_grad()
        backbone(pixels).pooled.square().sum().backward()
        return [value.grad.clone() for value in backbone.parameters() if value.grad is not None]

    plain = gradients()
    backbone.model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())
    torch.testing.assert_close(gradients(), plain)


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_and_half_weights(name: str) -> None:
    backbone = RegionBackbone(NETWORKS[name][0]()).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = backbone(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = backbone(pixels)
        low = backbone.to(torch.bfloat16)(pixels)
    assert low.pooled.dtype == torch.bfloat16
    for features in (mixed, low):
        torch.testing.assert_close(features.regions.float(), exact.regions, rtol=0.1, atol=0.1)


class TestPooledBlocks:
    def test_vit_takes_the_normalized_class_token_of_each_block(self) -> None:
        backbone = RegionBackbone(ViTModel(ViTConfig(**VIT))).eval()
        with torch.no_grad():
            backbone.model.layernorm.bias.uniform_()
            pixels = torch.randn(2, 3, 32, 32)
            states = backbone.model(pixels, output_hidden_states=True).hidden_states
            expected = torch.cat(
                [backbone.model.layernorm(state)[:, 0] for state in states[-2:]], dim=1
            )
            torch.testing.assert_close(backbone.pooled_blocks(pixels, 2), expected)

    def test_maps_are_averaged_whatever_their_width(self) -> None:
        backbone = RegionBackbone(NETWORKS["resnet"][0]()).eval()
        with torch.no_grad():
            pixels = torch.randn(2, 3, 32, 32)
            states = backbone.model(pixels, output_hidden_states=True).hidden_states
            expected = torch.cat([state.mean(dim=(2, 3)) for state in states[1:]], dim=1)
            torch.testing.assert_close(backbone.pooled_blocks(pixels, 2), expected)

    def test_the_final_norm_touches_its_own_width_only(self) -> None:
        backbone = RegionBackbone(
            SwinModel(
                SwinConfig(
                    **{**SWIN, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 2}
                )
            )
        ).eval()
        with torch.no_grad():
            pixels = torch.randn(2, 3, 32, 32)
            output = backbone.model(pixels, output_hidden_states=True)
            *_, first, second, last = output.hidden_states
            assert (first.shape[2], second.shape[2], last.shape[2]) == (16, 32, 32)
            expected = [first, backbone.model.layernorm(second), output.last_hidden_state]
            expected_row = torch.cat([state.mean(dim=1) for state in expected], dim=1)
            torch.testing.assert_close(backbone.pooled_blocks(pixels, 3), expected_row)

    def test_own_networks_follow_the_rule_of_their_family(self) -> None:
        backbone = RegionBackbone(esvit_swin()).eval()
        with torch.no_grad():
            pixels = torch.randn(2, 3, 32, 32)
            states = backbone.model(pixels, output_hidden_states=True).hidden_states
            expected = torch.cat(backbone.model.pool_hidden_states(states)[-3:], dim=1)
            torch.testing.assert_close(backbone.pooled_blocks(pixels, 3), expected)
        assert expected.shape[1] == 8 + 16 + 16

    @pytest.mark.parametrize("name", NETWORKS)
    def test_one_block_is_the_view_feature(self, name: str) -> None:
        backbone = RegionBackbone(NETWORKS[name][0]()).eval()
        with torch.no_grad():
            pixels = torch.randn(2, 3, 32, 32)
            torch.testing.assert_close(backbone.pooled_blocks(pixels, 1), backbone(pixels).pooled)

    @pytest.mark.parametrize("name", ["vit", "esvit swin"])
    @pytest.mark.parametrize("count", [0, 4])
    def test_too_many_or_no_blocks(self, name: str, count: int) -> None:
        with pytest.raises(ValueError, match=f"{count}.*(at least one|reports 3)"):
            RegionBackbone(NETWORKS[name][0]()).pooled_blocks(torch.randn(1, 3, 32, 32), count)


class VectorConfig(PreTrainedConfig):
    model_type = "vector"


class VectorModel(PreTrainedModel):
    """A network that keeps no positions."""

    config_class = VectorConfig
    main_input_name = "pixel_values"

    def __init__(self, config: VectorConfig):
        super().__init__(config)
        self.linear = nn.Linear(3, 4)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(
            last_hidden_state=self.linear(pixel_values.mean(dim=(2, 3)))
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: BertModel(
                BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
            ),
            "images",
        ),
        (lambda: VectorModel(VectorConfig()), "no spatial tokens"),
        (lambda: ViTMAEModel(ViTMAEConfig(**VIT)), "random"),
    ],
)
def test_networks_that_are_no_backbone_are_refused(
    build: Callable[[], PreTrainedModel], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RegionBackbone(build())


def test_image_size_that_the_network_cannot_take() -> None:
    with pytest.raises(ValueError, match="20 x 20 pixels.*image_size"):
        RegionBackbone(timm_channels_last(), image_size=20)


def vit_key(key: str) -> list[str]:
    """Names in transformers' ViTModel of one tensor of a DINO ViT."""
    for pattern, names in {
        r"cls_token": ["embeddings.cls_token"],
        r"pos_embed": ["embeddings.position_embeddings"],
        r"patch_embed\.proj\.(.*)": [r"embeddings.patch_embeddings.projection.\1"],
        r"blocks\.(\d+)\.norm1\.(.*)": [r"layers.\1.layernorm_before.\2"],
        r"blocks\.(\d+)\.norm2\.(.*)": [r"layers.\1.layernorm_after.\2"],
        r"blocks\.(\d+)\.attn\.qkv\.(.*)": [
            rf"layers.\1.attention.{part}_proj.\2" for part in "qkv"
        ],
        r"blocks\.(\d+)\.attn\.proj\.(.*)": [r"layers.\1.attention.o_proj.\2"],
        r"blocks\.(\d+)\.mlp\.(.*)": [r"layers.\1.mlp.\2"],
        r"norm\.(.*)": [r"layernorm.\1"],
    }.items():
        if match := re.fullmatch(pattern, key):
            return [match.expand(name) for name in names]
    raise AssertionError(key)


def test_vit_as_the_reference_uses_it(golden: Callable[[str], Any]) -> None:
    case = golden("vit_view_region")
    with torch.serialization.safe_globals([argparse.Namespace]):
        weights = torch.load(case.checkpoint, weights_only=True)["teacher"]
    spec = case.spec
    config = ViTConfig(
        image_size=spec["image_size"],
        patch_size=spec["patch_size"],
        hidden_size=spec["embed_dim"],
        num_hidden_layers=spec["depth"],
        num_attention_heads=spec["num_heads"],
        intermediate_size=4 * spec["embed_dim"],
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False)
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not key.startswith("head"):
            names = vit_key(key)
            state.update(zip(names, value.chunk(len(names)), strict=True))
    model.load_state_dict(state)
    backbone = RegionBackbone(model).eval()
    crop = case.tensors["crops.0"].float()
    with torch.no_grad():
        features = backbone(crop)
        torch.testing.assert_close(
            features.pooled, case.tensors["features.view"], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            features.regions, case.tensors["features.regions"], rtol=0, atol=1e-5
        )
        last4 = backbone.pooled_blocks(crop, 4)
        torch.testing.assert_close(last4, case.tensors["features.last4"], rtol=0, atol=1e-5)
        model.layernorm.bias += 1e-3
        assert (backbone.pooled_blocks(crop, 4) - last4).abs().min() > 1e-4


class TestLoadBackbone:
    def test_round_trip(self, tmp_path: Path) -> None:
        saved = ViTModel(ViTConfig(**VIT)).eval()
        saved.save_pretrained(tmp_path)
        backbone = load_backbone(str(tmp_path))
        pixels = torch.randn(1, 3, 32, 32)
        assert not backbone.training
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        torch.testing.assert_close(backbone(pixels).pooled, saved(pixels).last_hidden_state[:, 0])

    def test_linear_layers_are_fast(self, tmp_path: Path) -> None:
        esvit_swin().save_pretrained(tmp_path)
        backbone = load_backbone(str(tmp_path))
        operators = torch.utils.flop_counter.FlopCounterMode(display=False)
        with operators, torch.no_grad():
            backbone(torch.randn(1, 3, 32, 32))
        assert torch.ops.mkldnn._linear_pointwise in operators.get_flop_counts()["Global"]

    def test_configuration_fields(self, tmp_path: Path) -> None:
        esvit_swin().save_pretrained(tmp_path)
        assert load_backbone(str(tmp_path), drop_path_rate=0.25).model.config.drop_path_rate == 0.25
        with pytest.raises(ValueError, match="no field 'drop_path'"):
            load_backbone(str(tmp_path), drop_path=0.25)

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        # transformers saves ViT under its former names.
        del weights["encoder.layer.1.intermediate.dense.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"1 tensors are missing.*layers\.1\.mlp\.fc1\.weight"):
            load_backbone(str(tmp_path))

    def test_weights_of_more_layers(self, tmp_path: Path) -> None:
        ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(tmp_path)
        load_backbone(str(tmp_path))
        with pytest.raises(ValueError, match=r"ViTModel has no place for 16 of the tensors"):
            load_backbone(str(tmp_path), num_hidden_layers=2)
        with pytest.raises(
            ValueError, match=r"other shapes than .*: correct intermediate_size, or"
        ):
            load_backbone(str(tmp_path), intermediate_size=32)

    @pytest.mark.parametrize(
        "content",
        [
            *(None, "{}", "[]", "3", '{"model_type": "bert"}', '{"model_type": "no such"}'),
            *('{"model_type": 3}', '{"model_type": "esvit_swin", "embed_dim": "many"}'),
            *('{"model_type": "vit", "hidden_size": "many"}', '{"model_type": "vit"}'),
            '{"model_type": "no such", "auto_map": {"AutoConfig": "code.Config"}}',
        ],
    )
    def test_nothing_to_load(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        said = rf"^cannot load a model from '{re.escape(str(tmp_path))}'.*: (give|set) "
        with pytest.raises(ValueError, match=said):
            load_backbone(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b'{"model_type":', b"\0" * 100, b"\xff"])
    def test_damaged_configuration(self, tmp_path: Path, content: bytes) -> None:
        EsvitImageProcessor().save_pretrained(tmp_path)
        (tmp_path / "config.json").write_bytes(content)
        said = "config.json is damaged .*: download or save the folder again$"
        for load in (load_backbone, load_image_processor):
            with pytest.raises(ValueError, match=said):
                load(str(tmp_path))

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_damaged_weights(self, tmp_path: Path, name: str) -> None:
        model = esvit_swin()
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        if name.endswith(".bin"):
            torch.save(model.state_dict(), tmp_path / name)
        else:
            model.save_pretrained(tmp_path)
        whole = (tmp_path / name).read_bytes()
        for content in (b"", b"no weights", whole[: len(whole) // 2]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match="cannot load a model from"):
                load_backbone(str(tmp_path))
