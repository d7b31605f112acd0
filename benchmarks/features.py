"""From a folder of JPEG files to features on disk, against the pipeline of transformers, a loop
with timm's loader, and `embed` of lightly-train.

`python -m benchmarks.features` prints images in a second. All run one Swin network of transformers,
of random weights, and resize whole images to its input; the features are compared first. On a CPU,
`--network small` leaves most of the time to decoding, and `--long_side 2560` makes photographs as
large as those of cameras. lightly-train takes part where it is installed: with the resizing of the
others, and with its own, which has no filter against aliases and gives other features.
"""

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import timm.data
import torch
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel, ViTImageProcessor, pipeline

import esvit_hf
from benchmarks.data import SAMPLE_PHOTOGRAPHS
from benchmarks.measure import Row, Run, compare, interleave
from esvit_hf.data.color import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224
NETWORKS: dict[str, dict[str, Any]] = {
    "swin_tiny": {},
    "small": {"embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2]},
}
"""Fields of the configuration of each network."""
REACH = {"whole files": 1.0, "reduced files": 0.5, "whole files, bf16": 1.0}
OWN_RESIZING = "lightly-train, own resizing"
"""A peer with other features: its time is shown, and no ratio is against it."""
SIMILAR = 0.99
"""Least cosine of the features of two libraries, whose resizing differs by rounding."""

NetworkName = Literal["swin_tiny", "small"]


@contextmanager
def prepare_files(
    photographs: Path, images: int, network: NetworkName, long_side: int | None
) -> Iterator[Path]:
    """Make a folder with a model, and copies of the photographs beside each other."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        SwinModel(SwinConfig(image_size=SIDE, **NETWORKS[network])).save_pretrained(
            folder / "model"
        )
        ViTImageProcessor(
            size={"height": SIDE, "width": SIDE},
            resample=3,
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
        ).save_pretrained(folder / "model")
        (folder / "photos").mkdir()
        files = sorted(
            path for path in photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
        )
        if long_side is not None:
            files = [resize_file(path, long_side, folder) for path in files]
        for number in range(images):
            shutil.copy(files[number % len(files)], folder / "photos" / f"{number:05d}.jpg")
        yield folder


def resize_file(path: Path, long_side: int, folder: Path) -> Path:
    """Save a photograph with another number of pixels on its longer side."""
    resized = folder / path.name
    with Image.open(path) as image:
        scale = long_side / max(image.size)
        size = (round(scale * image.width), round(scale * image.height))
        image.convert("RGB").resize(size).save(resized, "JPEG", quality=90)
    return resized


def prepare_ours(
    folder: Path,
    batch_size: int,
    workers: int,
    *,
    reduce_jpegs: bool = False,
    mixed_precision: Literal["no", "bf16"] = "no",
) -> Run:
    def run() -> np.ndarray:
        esvit_hf.extract_features(
            folder / "model",
            folder / "photos",
            output=folder / "ours.npy",
            batch_size=batch_size,
            num_workers=workers,
            reduce_jpegs=reduce_jpegs,
            mixed_precision=mixed_precision,
            overwrite=True,
        )
        return np.load(folder / "ours.npy")

    return run


def prepare_pipeline(folder: Path, batch_size: int, workers: int, device: str) -> Run:
    def run() -> np.ndarray:
        extract = pipeline(
            "image-feature-extraction",
            model=str(folder / "model"),
            device=device,
            batch_size=batch_size,
            num_workers=workers,
        )
        files = [str(path) for path in sorted((folder / "photos").iterdir())]
        features = [output[0] for output in extract(files, pool=True)]
        np.save(folder / "pipeline.npy", np.array(features, dtype=np.float32))
        return np.load(folder / "pipeline.npy")

    return run


def prepare_timm(folder: Path, batch_size: int, workers: int, device: str) -> Run:
    def run() -> np.ndarray:
        network = SwinModel.from_pretrained(folder / "model").eval()
        network.to(device)
        loader = timm.data.create_loader(
            timm.data.create_dataset("", str(folder / "photos")),
            (3, SIDE, SIDE),
            batch_size,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            num_workers=workers,
            crop_pct=1.0,
            crop_mode="squash",
            use_prefetcher=False,
            persistent_workers=False,
            device=torch.device(device),
        )
        with torch.inference_mode():
            features = [network(images.to(device)).pooler_output.cpu() for images, _ in loader]
        np.save(folder / "timm.npy", torch.cat(features).numpy())
        return np.load(folder / "timm.npy")

    return run


class PooledSwin(nn.Module):
    """The network in a checkpoint of lightly-train, which calls it and wants one tensor."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = SwinModel.from_pretrained(folder)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pooled: Tensor = self.network(pixel_values).pooler_output
        return pooled


def resize_bicubic(_: object, image: np.ndarray, **__: object) -> np.ndarray:
    """Resize as the others do, in place of the method of `albumentations.Resize`.

    Args:
        image: (H, W, 3) pixels.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def prepare_lightly(
    folder: Path, batch_size: int, workers: int, device: str, *, own_resizing: bool
) -> Run:
    lightly_train = importlib.import_module("lightly_train")
    checkpoint, output = folder / "lightly.ckpt", folder / "lightly.pt"
    network = PooledSwin(folder / "model")
    contents = {
        "version": lightly_train.__version__,
        "date": datetime.now().isoformat(),
        "models": {"model": network, "wrapped_model": network, "embedding_model": network},
        "normalize_args": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    }
    torch.save({"state_dict": {}, "lightly_train": contents}, checkpoint)
    resizing: AbstractContextManager[object] = nullcontext()
    if not own_resizing:
        # It has no option for that.
        resizing = patch("albumentations.Resize.apply", resize_bicubic)
    settings = {
        "LIGHTLY_TRAIN_CACHE_DIR": str(folder),
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "LIGHTLY_TRAIN_LOG_LEVEL": "ERROR",
    }

    def run() -> np.ndarray:
        with patch.dict(os.environ, settings), resizing:
            lightly_train.embed(
                out=output,
                data=folder / "photos",
                checkpoint=checkpoint,
                image_size=SIDE,
                batch_size=batch_size,
                num_workers=workers,
                accelerator="gpu" if device == "cuda" else "cpu",
                overwrite=True,
            )
        saved = torch.load(output)
        rows: Tensor = saved["embeddings"]
        # It reads files in the order of the folder.
        return rows[np.argsort(saved["filenames"])].numpy()

    return run


def measure(
    photographs: Path = SAMPLE_PHOTOGRAPHS,
    images: int = 512,
    network: NetworkName = "swin_tiny",
    long_side: int | None = None,
    batch_size: int = 32,
    num_workers: int = 2,
    rounds: int = 5,
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu",
) -> tuple[list[Row], dict[str, float]]:
    """Time all ways in turns.

    Args:
        photographs: folder of JPEG files.
        images: copies of them.
        network: Swin-T, or one that computes little.
        long_side: pixels that the photographs are resized to; as they are if None.
        batch_size: images at once.
        num_workers: processes that decode.
        rounds: runs of each way that count.
        device: of the pipeline and of timm's loop; ours takes a GPU where there is one.

    Returns:
        Seconds for all images, with JPEG files decoded as they are, at a part of their size, and
        in bf16; and the least cosine of the features of each way with ours of whole files.
    """
    with prepare_files(photographs, images, network, long_side) as folder:
        shared = (folder, batch_size, num_workers)
        others = {
            "pipeline of transformers": prepare_pipeline(*shared, device),
            "timm's loader": prepare_timm(*shared, device),
        }
        if importlib.util.find_spec("lightly_train") is not None:
            others |= {
                "lightly-train, same resizing": prepare_lightly(
                    *shared, device, own_resizing=False
                ),
                OWN_RESIZING: prepare_lightly(*shared, device, own_resizing=True),
            }
        ours = {
            "whole files": prepare_ours(*shared),
            "reduced files": prepare_ours(*shared, reduce_jpegs=True),
            "whole files, bf16": prepare_ours(*shared, mixed_precision="bf16"),
        }
        expected = torch.from_numpy(ours["whole files"]())
        cosines = {}
        for name, run in {**ours, **others}.items():
            found = torch.from_numpy(run())
            cosines[name] = float(F.cosine_similarity(found, expected, dim=1).min())
            if name != OWN_RESIZING:
                assert cosines[name] > SIMILAR, (
                    f"features of {name} differ: cosine {cosines[name]:.4f}"
                )
        seconds = interleave({**ours, **others}, rounds=rounds, warmup=0)
    peers = {name: seconds[name] for name in others}
    rows = [
        compare(
            f"{images} photographs to features, {name}",
            seconds[name],
            peers,
            reach=REACH[name],
            against=min(peers.keys() - {OWN_RESIZING}, key=peers.__getitem__),
        )
        for name in ours
    ]
    return rows, cosines


def main(
    photographs: Path = SAMPLE_PHOTOGRAPHS,
    images: int = 512,
    network: NetworkName = "swin_tiny",
    long_side: int | None = None,
    batch_size: int = 32,
    num_workers: int = 2,
    rounds: int = 5,
) -> None:
    """Print images in a second.

    Args:
        photographs: folder of JPEG files.
        images: copies of them.
        network: Swin-T, or one that computes little.
        long_side: pixels that the photographs are resized to; as they are if None.
        batch_size: images at once.
        num_workers: processes that decode.
        rounds: runs of each way that count.
    """
    rows, cosines = measure(
        photographs, images, network, long_side, batch_size, num_workers, rounds
    )
    for row in rows:
        print(f"{images / row.ours:8.1f} images/s  {row.ratio:5.2f} of the time  {row.name}")
    for name, seconds in rows[0].peers.items():
        print(f"{images / seconds:8.1f} images/s  {name}")
    for name, cosine in cosines.items():
        print(f"{cosine:8.5f} least cosine  {name}")


if __name__ == "__main__":
    auto_cli(main)
