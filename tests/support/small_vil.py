"""Vision Longformers of three stages whose parameters all differ from where they start."""

import torch
from torch import Tensor

from esvit_hf import EsvitVilConfig, EsvitVilModel


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
