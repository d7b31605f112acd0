"""CvTs of three stages whose parameters and statistics all differ from where they start."""

import torch
from torch import Tensor

from esvit_hf import EsvitCvtConfig, EsvitCvtModel


def small_config(**fields) -> EsvitCvtConfig:
    """Three stages; at 32 pixels the grids are 8, 4 and 2 tokens wide: padded, cut exactly,
    shrunk.
    """
    defaults = {
        "image_size": 32,
        "hidden_sizes": [8, 16, 24],
        "depths": [2, 1, 1],
        "num_heads": [1, 2, 3],
        "patch_sizes": [7, 3, 3],
        "patch_strides": [4, 2, 2],
        "patch_padding": [2, 1, 1],
        "window_size": [3, 4, 4],
        "mlp_ratio": [2.0, 4.0, 4],
        "qkv_kernel_sizes": [3, 5, 3],
        "qkv_bias": [True, False, True],
    }
    return EsvitCvtConfig(**{**defaults, **fields})


def randomized(model):
    """Spread all parameters and running statistics, so that none sits at a trivial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model


def small_model(**fields) -> EsvitCvtModel:
    torch.manual_seed(0)
    return randomized(EsvitCvtModel(small_config(**fields))).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
