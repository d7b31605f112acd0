"""Swin weights of transformers and timm in our Swin."""

from pathlib import Path

import pytest
import torch
from transformers import (
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

from esvit_hf import EsvitSwinModel
from esvit_hf.backbones.foreign_swin import own_swin
from esvit_hf.backbones.loading import load_backbone

SHAPE = {"embed_dim": 8, "depths": [2, 3, 1], "num_heads": [1, 2, 4], "window_size": 3}


def of_transformers(model_class: type = SwinModel, **fields: object) -> PreTrainedModel:
    config = {"image_size": 48, "drop_path_rate": 0.3, "num_labels": 5, **SHAPE, **fields}
    return model_class(SwinConfig(**config))


def of_timm(model_class: type = TimmWrapperModel, **arguments: object) -> PreTrainedModel:
    arguments = {"img_size": 48, "drop_path_rate": 0.3, **SHAPE, **arguments}
    name = "swin_tiny_patch4_window7_224"
    config = TimmWrapperConfig(architecture=name, model_args=arguments, num_labels=5)
    return model_class(config)


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Move every tensor from where it starts: biases and norms would show no mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


NETWORKS = {
    "transformers": lambda: of_transformers(),
    "transformers, classifier": lambda: of_transformers(SwinForImageClassification),
    "transformers, position embeddings": lambda: of_transformers(use_absolute_embeddings=True),
    "transformers, no biases": lambda: of_transformers(qkv_bias=False, mlp_ratio=2.0),
    "transformers, odd grids": lambda: of_transformers(image_size=56, hidden_act="relu"),
    "transformers, one channel": lambda: of_transformers(num_channels=1),
    "timm": lambda: of_timm(),
    "timm, classifier": lambda: of_timm(TimmWrapperForImageClassification),
    "timm, clipped windows": lambda: of_timm(window_size=6),
    "timm, no biases": lambda: of_timm(qkv_bias=False, mlp_ratio=2.0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_folders_load_as_our_network(name: str, tmp_path: Path) -> None:
    saved = spread(NETWORKS[name]())
    saved.save_pretrained(tmp_path)
    base = getattr(saved, "swin", saved)
    channels = getattr(saved.config, "num_channels", None) or 3
    size = 56 if "odd" in name else 48
    pixels = torch.randn(2, channels, size, size)
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone.model, EsvitSwinModel)
    assert backbone.model.config.drop_path_rate == pytest.approx(0.3)
    with torch.no_grad():
        if hasattr(saved, "timm_model"):
            expected = saved.timm_model.forward_features(pixels).flatten(1, 2)
        else:
            expected = base(pixels).last_hidden_state
        features = backbone(pixels)
        torch.testing.assert_close(features.regions, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(features.pooled, expected.mean(dim=1), atol=1e-4, rtol=1e-4)
        assert backbone(torch.randn(1, channels, 37, 90)).grid == (3, 6)
        assert len(backbone.block_features(pixels, 6)) == 6


def test_a_swin_is_run_once_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread(of_transformers()).save_pretrained(tmp_path)
    runs = []
    forward = SwinModel.forward
    monkeypatch.setattr(
        SwinModel,
        "forward",
        lambda *words, **options: (runs.append(1), forward(*words, **options))[1],
    )
    assert isinstance(load_backbone(tmp_path).model, EsvitSwinModel)
    assert len(runs) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    spread(of_transformers()).to(dtype).save_pretrained(tmp_path)
    model = load_backbone(tmp_path).model
    assert isinstance(model, EsvitSwinModel)
    assert model.dtype == dtype


def test_networks_that_differ_stay_what_they_are() -> None:
    second = Swinv2Model(Swinv2Config(image_size=48, **SHAPE))
    for model in (
        second,
        of_timm(always_partition=True, window_size=6),
        of_timm(window_size=(3, 6)),
        of_timm(window_size=7),  # padded behind the roll, not in front of it
    ):
        assert own_swin(spread(model)) is None
