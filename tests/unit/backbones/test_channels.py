"""Weights for three channels in networks for another number of them."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from esvit_hf.backbones.channels import inflate_channels

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}


def network(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "vit":
        return ViTModel(ViTConfig(**TINY, patch_size=8), add_pooling_layer=False).eval()
    if kind == "swin":
        config = SwinConfig(
            image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
        )
        return SwinModel(config, add_pooling_layer=False).eval()
    if kind == "resnet":
        return ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        ).eval()
    small = {"esvit_swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}}
    return AutoModel.from_config(AutoConfig.for_model(kind, **small.get(kind, {}))).eval()


@pytest.mark.parametrize("kind", ["esvit_swin", "vit", "swin", "resnet"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 13])
def test_repeated_channels_give_what_the_image_gave(kind: str, channels: int) -> None:
    model = network(kind)
    inflated = inflate_channels(model, channels)
    assert inflated.config.num_channels == channels and model.config.num_channels == 3
    image = torch.randn(2, 3, 32, 32)
    if channels < 3:
        image = image[:, :1].expand(-1, 3, -1, -1)
    repeated = image[:, torch.arange(channels) % 3]
    with torch.no_grad():
        expected, found = (
            net(pixels).last_hidden_state for net, pixels in ((model, image), (inflated, repeated))
        )
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    if channels > 3:
        other = repeated.clone()
        other[:, -1] += 1
        with torch.no_grad():
            assert not torch.allclose(inflated(other).last_hidden_state, expected, atol=1e-3)


def test_what_cannot_be_inflated_is_said() -> None:
    model = network("vit")
    with pytest.raises(ValueError, match="cannot be made into a network for 0 channels"):
        inflate_channels(model, 0)
    model = ViTModel(ViTConfig(**TINY, patch_size=8))
    object.__setattr__(model.config, "num_channels", None)
    with pytest.raises(ValueError, match="with num_channels None in its configuration"):
        inflate_channels(model, 4)
