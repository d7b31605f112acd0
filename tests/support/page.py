"""A network for the page, small enough for tests."""

from pathlib import Path

import torch

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel


def save_small_network(folder: Path, seed: int = 1) -> None:
    """Write a network of two stages whose regions have 8 x 8 pixels, made for 32 x 32."""
    torch.manual_seed(seed)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    processor = EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder)
