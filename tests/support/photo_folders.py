"""A small network, and a folder of image files as people have them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel

PHOTOS = ("a.jpg", "b.gif", "deep/er/größe é.png", "deep/日本.jpg", "z.PNG")
"""Files of the folder that can be decoded, in the order of their names."""
BROKEN = "deep/broken.jpg"


def save_model(folder: Path) -> None:
    """A Swin of random weights for images of 32 pixels."""
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)


def noise(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """A photograph that no other one resembles."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_photos(folder: Path) -> None:
    """Images in nested folders, and files that are none."""
    for seed, name in enumerate(PHOTOS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed).save(folder / name)
    content = (folder / PHOTOS[0]).read_bytes()
    (folder / BROKEN).write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("no image")
