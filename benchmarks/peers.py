"""Swin-T of this project and of the other libraries, each as images in, view features out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from esvit_hf import EsvitSwinConfig, EsvitSwinModel

OURS = "esvit-hf"


@dataclass(frozen=True)
class Network:
    """A network and how to call it.

    Attributes:
        module: the network.
        features: turns images (B, 3, H, W) into view features (B, C).
    """

    module: nn.Module
    features: Callable[[Tensor], Tensor]


def build_ours(drop_path_rate: float = 0.0) -> Network:
    model = EsvitSwinModel(EsvitSwinConfig.from_preset("tiny", drop_path_rate=drop_path_rate))
    return Network(model, lambda pixels: model(pixels).pooler_output)


def build_transformers(drop_path_rate: float = 0.0, attention: str = "sdpa") -> Network:
    config = SwinConfig(drop_path_rate=drop_path_rate)
    model = SwinModel._from_config(config, attn_implementation=attention)
    # Small crops are padded to whole windows in every stage, as in the reference; the model cannot
    # take them otherwise.
    return Network(
        model, lambda pixels: model(pixels, always_partition=pixels.shape[-1] < 224).pooler_output
    )


def build_timm(drop_path_rate: float = 0.0) -> Network:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=0,
        drop_path_rate=drop_path_rate,
        strict_img_size=False,
    )
    return Network(model, model)


def build_torchvision() -> Network:
    model = torchvision.models.swin_t()
    model.head = nn.Identity()
    return Network(model, model)


BUILDERS: dict[str, Callable[[], Network]] = {
    OURS: build_ours,
    "transformers": build_transformers,
    "timm": build_timm,
    "torchvision": build_torchvision,
}


def multi_crop_features(network: Network, groups: Sequence[Tensor]) -> Tensor:
    """View features of all crops, one batch for each size."""
    return torch.cat([network.features(group) for group in groups])
