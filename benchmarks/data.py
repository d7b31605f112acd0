"""From encoded photographs to crops, against torchvision's transforms on Pillow images composed as
in the reference.
"""

import io
import random
from pathlib import Path

import sklearn.datasets
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.measure import Row, Run, compare, interleave
from esvit_hf.data.color import IMAGENET_MEAN, IMAGENET_STD, augment
from esvit_hf.data.multicrop import MultiCropDataset
from esvit_hf.data.sources import load_image_source
from esvit_hf.data.views import dino_views

BATCH = 16
SAMPLE_PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"
"""Two photographs of 640 x 427 pixels that come with scikit-learn."""


class PillowBlur:
    """Pillow's blur with a random radius, at a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def pillow_view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
    """One view of the recipe: crop, flip, jitter, gray, blur, solarize, normalize."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            PillowBlur(blur),
            v2.RandomSolarize(128, p=solarize),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def prepare_pillow(encoded: list[bytes]) -> Run:
    views = [pillow_view(224, (0.4, 1.0), 1.0, 0.0), pillow_view(224, (0.4, 1.0), 0.1, 0.2)]
    views += [pillow_view(96, (0.05, 0.4), 0.5, 0.0)] * 8

    def run() -> list[Tensor]:
        samples = []
        for data in encoded:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            samples.append([view(image) for view in views])
        return [torch.stack(view) for view in zip(*samples, strict=True)]

    return run


def prepare_ours(dataset: MultiCropDataset, indices: list[int], *, with_augmentation: bool) -> Run:
    epochs = iter(range(10**6))

    def run() -> list[Tensor]:
        epoch = next(epochs)
        batch = dataset.__getitems__([(epoch, index) for index in indices])
        if not with_augmentation:
            return batch.crops
        return [
            augment(crop, parameters)
            for crop, parameters in zip(batch.crops, batch.parameters, strict=True)
        ]

    return run


def measure(photographs: Path = SAMPLE_PHOTOGRAPHS, rounds: int = 7) -> list[Row]:
    """Return the rows of this topic.

    A worker has one thread, as in a DataLoader, and both pipelines are measured with one.

    Args:
        photographs: folder of JPEG files.
        rounds: runs of each case.
    """
    source = load_image_source(str(photographs))
    indices = [index % len(source) for index in range(BATCH)]
    files = sorted(
        path for path in photographs.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")
    )
    encoded = [files[index].read_bytes() for index in indices]
    dataset = MultiCropDataset(source, dino_views(), seed=0)
    pillow = "torchvision on Pillow images"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    try:
        seconds = interleave(
            {
                "worker": prepare_ours(dataset, indices, with_augmentation=False),
                "all": prepare_ours(dataset, indices, with_augmentation=True),
                pillow: prepare_pillow(encoded),
            },
            rounds=rounds,
        )
    finally:
        torch.set_num_threads(threads)
    against = {pillow: seconds[pillow]}
    scale = 1e3 / BATCH
    unit = "ms a photograph"
    return [
        compare(
            "data worker, 2 x 224 and 8 x 96 crops",
            seconds["worker"],
            against,
            reach=0.4,
            unit=unit,
            scale=scale,
        ),
        compare(
            "whole data path on CPU, crops to normalized tensors",
            seconds["all"],
            against,
            reach=0.7,
            unit=unit,
            scale=scale,
        ),
    ]
