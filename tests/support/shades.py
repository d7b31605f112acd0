"""A small network, and images of overlapping brightness that it can tell apart a little."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel

CLASS_NAMES = ("dark", "middle", "light")


def save_small_swin(folder: Path) -> None:
    """A Swin of random weights with its image processor."""
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    save_processor(folder)


def save_processor(folder: Path) -> None:
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)


def shades(count: int, *, classes: int = 3, seed: int = 0) -> Dataset:
    """Images labeled by the name of their class."""
    random = np.random.default_rng(seed)
    labels = [index % classes for index in range(count)]
    pixels = [
        random.integers(60 * label, 60 * label + 130, (32, 32, 3), dtype=np.uint8)
        for label in labels
    ]
    rows = {
        "image": [PILImage.fromarray(image) for image in pixels],
        "label": [CLASS_NAMES[label] for label in labels],
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("string")}))


def write_shades(folder: Path, split: str, count: int, *, classes: int = 3, seed: int = 0) -> None:
    """The same images as a split of a folder."""
    folder.mkdir(exist_ok=True)
    shades(count, classes=classes, seed=seed).to_parquet(folder / f"{split}-00000-of-00001.parquet")
