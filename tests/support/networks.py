"""One small network of every family, and what tests of all of them need."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import esvit_hf

SIZE = 32


@dataclass(frozen=True)
class Network:
    """One family, small: grids of 8 x 8 and 4 x 4 at 32 pixels.

    `idle`: parameters that the outputs do not depend on.
    """

    config: Callable[..., Any]
    model: type
    classifier: type
    backbone: type
    idle: tuple[str, ...] = ()


def swin_config(**fields):
    shape = {
        "image_size": SIZE,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 4],
    }
    return esvit_hf.EsvitSwinConfig(**{**shape, "window_size": 4, "drop_path_rate": 0.0, **fields})


def cvt_config(**fields):
    shape = {
        "image_size": SIZE,
        "hidden_sizes": [8, 16],
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": [3, 4],
    }
    patches = {
        "patch_sizes": [7, 3],
        "patch_strides": [4, 2],
        "patch_padding": [2, 1],
        "mlp_ratio": [4.0, 4.0],
    }
    attention = {
        "qkv_kernel_sizes": [3, 3],
        "qkv_bias": [True, True],
        "relative_position_bias": True,
    }
    return esvit_hf.EsvitCvtConfig(
        **{**shape, **patches, **attention, "drop_path_rate": 0.0, **fields}
    )


def vil_config(**fields):
    shape = {
        "image_size": SIZE,
        "patch_sizes": [4, 2],
        "hidden_sizes": [8, 16],
        "depths": [2, 1],
        "num_heads": [2, 4],
    }
    stages = {"sparse_stages": [True, False], "num_global_tokens": [1, 0]}
    return esvit_hf.EsvitVilConfig(
        **{**shape, **stages, "window_size": 3, "drop_path_rate": 0.0, **fields}
    )


NETWORKS = {
    "Swin": Network(
        swin_config,
        esvit_hf.EsvitSwinModel,
        esvit_hf.EsvitSwinForImageClassification,
        esvit_hf.EsvitSwinBackbone,
    ),
    "CvT": Network(
        cvt_config,
        esvit_hf.EsvitCvtModel,
        esvit_hf.EsvitCvtForImageClassification,
        esvit_hf.EsvitCvtBackbone,
    ),
    "ViL": Network(
        vil_config,
        esvit_hf.EsvitVilModel,
        esvit_hf.EsvitVilForImageClassification,
        esvit_hf.EsvitVilBackbone,
        # The last sparse stage drops its global token behind this block.
        idle=("stages.0.blocks.1.attention.global_to_global_bias",),
    ),
}

# Also the parts that the networks above do without.
NETWORKS_AND_OPTIONS = NETWORKS | {
    "CvT, deep stem": replace(NETWORKS["CvT"], config=partial(cvt_config, deep_stem=True)),
    "ViL, global tokens": replace(
        NETWORKS["ViL"], config=partial(vil_config, num_global_tokens=[2, 1])
    ),
}


def build(network_class, config, seed: int = 0):
    """A model in eval mode whose parameters and statistics all sit away from their start values."""
    torch.manual_seed(seed)
    model = network_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.2
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(model, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(pixels)
    return torch.cat([output.last_hidden_state, output.pooler_output[:, None]], dim=1)


def gradients(model, pixels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(pixels)
    (output.last_hidden_state.square().mean() + output.pooler_output.sin().sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
