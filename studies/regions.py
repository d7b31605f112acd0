"""What the regions of the compared networks tell apart: places, images, or what is at a place of an
image.
"""

import statistics
from pathlib import Path

import torch
from torch import Tensor

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.features.extraction import load_image_processor
from esvit_hf.pretraining.objectives.region_signals import (
    effective_dimensions,
    image_share,
    place_share,
)
from studies.table import by_variant, read_results

BATCH = 200
COLUMNS = ("image", "place", "content", "dimensions")


def split_variance(regions: Tensor) -> dict[str, float]:
    """Split the variance of regions (B, N, C), and count the dimensions it fills.

    Returns:
        Percent explained by the mean of the image, by the mean of the place, and by neither; and
        the dimensions.
    """
    regions = regions.double()
    image, place = 100 * float(image_share(regions)), 100 * float(place_share(regions))
    return {
        "image": image,
        "place": place,
        "content": 100 - image - place,
        "dimensions": float(effective_dimensions(regions)),
    }


@torch.no_grad()
def network_regions(folder: Path, dataset: str, split: str, images: int) -> Tensor:
    """Return the regions (B, N, C) of the first images of a split."""
    backbone, processor = load_backbone(str(folder)).eval(), load_image_processor(str(folder))
    source = load_image_source(dataset, split=split)
    count = min(images, len(source))
    batches = [
        source.read(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)
    ]
    pixels = [processor(batch, return_tensors="pt").pixel_values for batch in batches]
    return torch.cat([backbone(batch).regions for batch in pixels])


def regions(
    dataset: str,
    *,
    test_split: str = "validation",
    images: int = 1000,
    output: Path = Path("outputs/reproduction"),
) -> None:
    """Print what explains the variance of the regions of all finished runs, in means over the
    seeds.

    Args:
        dataset: Hub name or path of the images.
        test_split: split that images are taken from.
        images: number of images.
        output: folder of the runs.
    """
    print(
        "| variant | seeds | image (%) | place (%) | neither (%) | dimensions "
        "|\n|---|---:|---:|---:|---:|---:|"
    )
    for variant, members in by_variant(read_results(output)).items():
        splits = [
            split_variance(network_regions(result["folder"], dataset, test_split, images))
            for result in members
        ]
        cells = [f"{statistics.mean(split[column] for split in splits):.1f}" for column in COLUMNS]
        print(f"| {variant} | {len(members)} | " + " | ".join(cells) + " |", flush=True)
