"""The tasks of an evaluation that look at regions: they run the network on views made for them."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.tasks import Score, TaskResult, percent
from esvit_hf.features.input_format import apply_processor
from esvit_hf.features.store import FeatureStore
from esvit_hf.figures.report import draw_attention_entropy, draw_correspondence
from esvit_hf.regions.attention import measure_attention_entropy
from esvit_hf.regions.correspondence import CorrespondenceResult, measure_correspondence

__all__ = ["check_regions", "run_attention", "run_correspondence"]


@torch.no_grad()
def check_regions(store: FeatureStore, source: ImageSource, tasks: Sequence[str]) -> None:
    """Run the network on one image, to refuse tasks that it cannot do before anything long is
    computed.

    Args:
        store: holds the network and its image processor.
        source: the images.
        tasks: names of the tasks.

    Raises:
        ValueError: correspondence of a network with a single region, or attention of one without
            attention.
    """
    if not {"correspondence", "attention"} & set(tasks):
        return
    image = source.read([0])[0]
    # The measurement itself names every broken image.
    if isinstance(image, BrokenImage):
        return
    pixel_values = apply_processor(store.processor, [image]).to(store.accelerator.device)
    if "correspondence" in tasks:
        grid = store.backbone(pixel_values).grid
        if grid == (1, 1):
            height, width = pixel_values.shape[-2:]
            raise ValueError(
                f"{store.model!r} turns {height} x {width} pixels into a single region, which "
                f"leaves nothing to match: name an image processor of a larger size with "
                f"--processor, or leave correspondence out of --tasks"
            )
    if "attention" in tasks:
        try:
            store.backbone.attention_maps(pixel_values)
        except ValueError as error:
            raise ValueError(f"{error}, or leave attention out of --tasks") from error


def run_correspondence(
    store: FeatureStore, source: ImageSource, seed: int, num_workers: int
) -> TaskResult:
    """Measure whether regions find their places in another view; every process must call this.

    Args:
        store: holds the network, its image processor and the processes.
        source: the images.
        seed: of the views.
        num_workers: processes that make views, for each device.

    Returns:
        Accuracies, errors and chance of both protocols.
    """
    results = [
        measure_correspondence(
            store.backbone,
            source,
            store.processor,
            protocol=protocol,
            seed=seed,
            num_workers=num_workers,
            accelerator=store.accelerator,
        )
        for protocol in ("crops", "mirror")
    ]
    return TaskResult(
        title="correspondence",
        protocol=(
            "Share of regions whose most similar region of another view (cosine of the last "
            "regions) is the same place of the image. `crops`: two random crops of known geometry "
            "on a 7 x 7 grid, all regions that both show. `mirror`, the paper's: an image and its "
            "mirrored, color-changed copy on the network's own grid, the 10 most similar pairs of "
            "an image. Errors are in pixels of the input; chance is a uniformly drawn cell."
        ),
        numbers={"protocols": [_row(result) for result in results]},
        scores=[
            Score(
                f"accuracy_{result.protocol}",
                percent(result.accuracy),
                f"protocol {result.protocol}, {result.grid[0]} x {result.grid[1]} regions, chance "
                f"{100 * result.chance_accuracy:.2f}",
            )
            for result in results
        ],
        pictures={"correspondence": draw_correspondence(results)},
    )


def run_attention(store: FeatureStore, source: ImageSource, num_workers: int) -> TaskResult:
    """Measure how widely the heads attend; every process must call this.

    Args:
        store: holds the network, its image processor and the processes.
        source: the images.
        num_workers: processes that decode images, for each device.

    Returns:
        Entropy of every head.
    """
    heads = measure_attention_entropy(
        store.backbone,
        source,
        store.processor,
        num_workers=num_workers,
        accelerator=store.accelerator,
    )
    blocks: list[dict[str, Any]] = []
    for block in sorted({head.layer for head in heads}):
        entropies = [head.entropy for head in heads if head.layer == block]
        largest = next(head.largest for head in heads if head.layer == block)
        blocks.append(
            {
                "block": block,
                "mean": round(fmean(entropies), 4),
                "largest_possible": round(largest, 4),
                "heads": [round(entropy, 4) for entropy in entropies],
            }
        )
    return TaskResult(
        title="attention",
        protocol=(
            "Base-2 entropy of the attention of a region, in bits, averaged over regions and "
            "images: 0 where a head looks at one region, the largest possible where it looks at "
            "all it can see alike. Blocks count from 0."
        ),
        numbers={"blocks": blocks},
        scores=[
            Score(
                "entropy_last_block",
                blocks[-1]["mean"],
                f"mean over the heads of the last block, in bits; at most "
                f"{blocks[-1]['largest_possible']}",
            )
        ],
        pictures={"attention_entropy": draw_attention_entropy(heads)},
    )


def _row(result: CorrespondenceResult) -> dict[str, str | int | float]:
    return {
        "protocol": result.protocol,
        "grid": f"{result.grid[0]} x {result.grid[1]}",
        "matches": result.matches,
        "accuracy": percent(result.accuracy),
        "accuracy_within_one": percent(result.accuracy_within_one),
        "error": round(result.error, 3),
        "chance_accuracy": percent(result.chance_accuracy),
        "chance_accuracy_within_one": percent(result.chance_accuracy_within_one),
        "chance_error": round(result.chance_error, 3),
        "smallest_error": round(result.smallest_error, 3),
    }
