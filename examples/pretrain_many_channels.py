"""Pretrain on images of six channels and 16 bits, and see what the features know.

Usage: python examples/pretrain_many_channels.py FOLDER
FOLDER gets made-up satellite pictures of four kinds of land, the pretrained network, and a report.
It needs tifffile: pip install 'esvit-hf[tiff]'.
"""

from pathlib import Path

import numpy as np
import tifffile

from esvit_hf.commands.command_line import run
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.features.files import extract_features
from esvit_hf.pretraining.loop import pretrain

BRIGHTEST = 10000
"""The sensor's value of full reflection; 16-bit files hold up to 65535."""

LANDS = {
    "water": (600, 500, 400, 200, 100, 50),
    "forest": (300, 600, 400, 3500, 1800, 800),
    "field": (800, 1200, 1000, 4500, 2800, 1600),
    "town": (2000, 2100, 2300, 2600, 3000, 2800),
}
"""Usual value of each channel, from blue to the far infrared."""


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Write `count` TIFF files of each kind of land for training, and half as many for testing."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("test", count // 2)):
        for land, values in LANDS.items():
            place = folder / split / land
            place.mkdir(parents=True, exist_ok=True)
            for picture in range(number):
                coarse = random.normal(1, 0.3, (size // 4, size // 4, 1)).repeat(4, 0).repeat(4, 1)
                noise = random.normal(1, 0.1, (size, size, len(values)))
                pixels = (np.array(values) * coarse * noise).clip(0, BRIGHTEST).astype(np.uint16)
                tifffile.imwrite(
                    place / f"{picture:03d}.tif",
                    pixels,
                    photometric="minisblack",
                    planarconfig="contig",
                )


def main(folder: Path, *, count: int = 40, size: int = 32, num_epochs: int = 10) -> None:
    """Pretrain, extract features and classify.

    Args:
        folder: where everything is written.
        count: pictures of each kind of land.
        size: side of a picture in pixels.
        num_epochs: passes over the pictures.
    """
    pictures, network = folder / "pictures", folder / "network"
    write_pictures(pictures, count, size)
    shares = np.array(list(LANDS.values())) / BRIGHTEST
    view = {"size": size, "scale": [0.4, 1.0], "teacher": True}
    recipe = {
        "data": {
            "dataset": str(pictures),
            "value_range": [0, BRIGHTEST],
            "image_mean": shares.mean(0).round(4).tolist(),
            "image_std": shares.std(0).round(4).tolist(),
            "views": [{"count": 2, **view}],
            "num_workers": 0,
        },
        "model": {
            "config": {
                "num_channels": 6,
                "image_size": size,
                "patch_size": 2,
                "embed_dim": 24,
                "depths": [1, 1],
                "num_heads": [2, 4],
                "window_size": 4,
            }
        },
        "heads": {"num_prototypes": 256, "hidden_dim": 128, "bottleneck_dim": 32},
        "optimizer": {"warmup_epochs": min(2, num_epochs)},
        "schedule": {"num_epochs": num_epochs, "freeze_last_layer_epochs": 0},
        "run": {"output_dir": str(network), "batch_size": 32, "trackers": []},
    }
    pretrain(recipe)
    extract_features(network, pictures, output=folder / "features.parquet", num_workers=0)
    report = evaluate(
        network, pictures, tasks="knn", report=folder / "report", knn={"k": [5]}, num_workers=0
    )
    assert report is not None
    print(f"k-NN on the test pictures: {report['tasks']['knn']['accuracies'][0]['top1']} %")


if __name__ == "__main__":
    run(main)
