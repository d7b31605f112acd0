"""Small local copies of transfer data sets, one for each metric and layout, and a network to try
them with.
"""

from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel

CLASSES = 3


def save_model(folder: Path, seed: int = 0, width: int = 8) -> str:
    torch.manual_seed(seed)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=width, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return str(folder)


def picture(classes: list[int], random: np.random.Generator) -> PILImage.Image:
    """Noise with a brighter stripe for each class, faint enough to be mistaken."""
    pixels = random.integers(0, 200, (32, 32, 3))
    for label in classes:
        pixels[8 * label : 8 * label + 8, :, label % 3] += 40
    return PILImage.fromarray(pixels.astype(np.uint8))


def single_label(
    count: int, seed: int, classes: int = CLASSES, image: str = "image", label: str = "label"
) -> Dataset:
    random = np.random.default_rng(seed)
    labels = [index % classes if index % 5 else 0 for index in range(count)]
    features = Features(
        {image: Image(), label: ClassLabel(names=[f"class {index}" for index in range(classes)])}
    )
    return Dataset.from_dict(
        {image: [picture([each], random) for each in labels], label: labels}, features=features
    )


def multi_label(count: int, seed: int) -> Dataset:
    """Indicators of three classes, some of them not to be counted."""
    random = np.random.default_rng(seed)
    present = random.random((count, CLASSES)) < 0.4
    images = [picture(np.flatnonzero(row).tolist(), random) for row in present]
    rows = np.where(random.random((count, CLASSES)) < 0.1, -1, present.astype(int)).tolist()
    features = Features({"webp": Image(), "npy": List(Value("int64"))})
    return Dataset.from_dict({"webp": images, "npy": rows}, features=features)


def save_parquet(folder: Path, **splits: Dataset) -> str:
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return str(folder)


def save_copies(folder: Path) -> dict[str, str]:
    """A folder for each metric: with and without validation images, in the Hub's layout and in the
    usual one.
    """
    saved = {
        "train": single_label(60, 4),
        "publicTest": single_label(30, 5),
        "privateTest": single_label(30, 6),
    }
    DatasetDict(saved).save_to_disk(folder / "fer")
    return {
        "CIFAR-10": save_parquet(
            folder / "cifar",
            train=single_label(90, 0, image="img"),
            test=single_label(45, 1, image="img"),
        ),
        "DTD": save_parquet(
            folder / "dtd",
            train=single_label(60, 1),
            validation=single_label(30, 2),
            test=single_label(30, 3),
        ),
        "FER 2013": str(folder / "fer"),
        "Oxford-IIIT Pets": save_parquet(
            folder / "pets", train=single_label(60, 7), test=single_label(31, 8)
        ),
        "Hateful Memes": save_parquet(
            folder / "memes", train=single_label(60, 9, 2), validation=single_label(30, 10, 2)
        ),
        "VOC 2007": save_parquet(
            folder / "voc", train=multi_label(80, 11), test=multi_label(40, 12)
        ),
    }


def with_broken_image(rows: Dataset, index: int) -> Dataset:
    """The same rows, one of them without a readable image."""
    encoded = rows.cast_column("image", Image(decode=False))
    changed = encoded.map(
        lambda row, at: {
            "image": {"bytes": b"broken", "path": None} if at == index else row["image"]
        },
        with_indices=True,
    )
    return changed.cast(encoded.features)
