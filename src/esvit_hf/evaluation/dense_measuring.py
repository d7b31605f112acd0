"""Segmentation by frozen region features: by retrieval, and by a linear classifier."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.evaluation.dense_regions import (
    VOID,
    MaskedImage,
    RegionMaps,
    class_shares,
    prepare_masked_images,
    upsampled_classes,
)
from esvit_hf.evaluation.task import EvaluationData
from esvit_hf.features.input_format import read_input_format
from esvit_hf.features.search import check_neighbors, nearest_neighbors
from esvit_hf.figures.dense import Segmentation
from esvit_hf.regions.per_image import measure_images
from esvit_hf.regions.whole_images import WholeImages

if TYPE_CHECKING:
    from esvit_hf.evaluation.dense import DenseTask

__all__ = [
    "Bank",
    "DenseResult",
    "SegmentationScores",
    "check_layers",
    "measure_segmentation",
    "retrieved_votes",
    "score_confusion",
    "train_linear",
]

MOMENTUM = 0.9
REFERENCE_BATCH = 256
_SHOWN_IMAGES = 4
# Bounds the class shares of all neighbors of the regions that vote at once.
_VOTES_AT_ONCE = 2**25


@dataclass(frozen=True)
class SegmentationScores:
    """How well pixels are classified; all in [0, 1].

    Attributes:
        mean_iou: intersection over union, averaged over the classes that have one.
        pixel_accuracy: share of pixels that have their class.
        class_iou: of each class; None if neither masks nor predictions hold it.
    """

    mean_iou: float
    pixel_accuracy: float
    class_iou: list[float | None]


@dataclass(frozen=True)
class DenseResult:
    """What the task found.

    Attributes:
        scores: of "retrieval" and "linear".
        class_shares: share of each class among the test pixels that count.
        bank_regions: training regions that were learned from.
        learning_rate: the chosen rate.
        validation: mean IoU of each rate on the held-out regions.
        validation_share: share of the training images that these come from.
        shown: some test images for the figure.
    """

    scores: dict[str, SegmentationScores]
    class_shares: list[float]
    bank_regions: int
    learning_rate: float
    validation: dict[float, float]
    validation_share: float
    shown: list[Segmentation]


@dataclass(frozen=True)
class Bank:
    """Training regions to learn from.

    Attributes:
        features: (N, D) float32.
        shares: (N, C) share of each class among the pixels of a region.
        images: (N,) int64 image that a region comes from.
    """

    features: Tensor
    shares: Tensor
    images: Tensor


@torch.no_grad()
def check_layers(backbone: RegionBackbone, layers: Sequence[int] | None, side: int) -> None:
    """Run the network on one gray image, to refuse layers that it does not have.

    Args:
        backbone: in evaluation mode.
        layers: indices into its hidden states, or None.
        side: height and width of the image.

    Raises:
        ValueError: there is no such layer.
    """
    pixel_values = torch.zeros(1, 3, side, side, device=backbone.model.device)
    for layer in layers or (None,):
        backbone.layer_regions(pixel_values, layer)


def measure_segmentation(data: EvaluationData, task: "DenseTask", classes: int) -> DenseResult:
    """Segment the test images by both protocols; every process must call this.

    Args:
        data: with masks.
        task: the options.
        classes: number of classes C.

    Returns:
        The scores, the same on every process.

    Raises:
        ValueError: a mask does not fit its image, the network does not take the images, or a
            setting does not fit the number of regions.
    """
    assert data.train_masks is not None and data.test_masks is not None
    store, accelerator = data.store, data.store.accelerator
    maps = RegionMaps(store.backbone, read_input_format(store.processor), task.layers, accelerator)
    prepare = functools.partial(
        prepare_masked_images,
        void=task.void,
        side=task.image_size,
        stride=WholeImages(store.backbone, store.processor).stride,
    )
    bank = _collect_bank(
        data,
        functools.partial(prepare, masks=data.train_masks),
        maps,
        classes,
        max(1, task.bank_size // len(data.splits.train)),
    )
    check_neighbors(task.k, len(bank.features))
    weight, bias, rate, validation = _choose_linear(bank, task, data.seed, accelerator)
    images = len(bank.images.unique())

    def measure(images: Sequence[MaskedImage]) -> list[Segmentation | None]:
        regions = maps.compute(images)
        votes = retrieved_votes(
            bank,
            torch.cat([region.flatten(0, 1) for region in regions]),
            k=task.k,
            temperature=task.temperature,
        ).split([region.shape[0] * region.shape[1] for region in regions])
        kept = []
        for image, region, voted in zip(images, regions, votes, strict=True):
            size = (image.classes.shape[0], image.classes.shape[1])
            predicted = {
                "retrieval": upsampled_classes(voted.unflatten(0, region.shape[:2]), size),
                "linear": upsampled_classes(region @ weight + bias, size),
            }
            for name, found in predicted.items():
                confusions[name] += _confusion(image.classes, found, classes)
            is_shown = image.index % every == 0
            kept.append(Segmentation(image.pixels, image.classes, predicted) if is_shown else None)
        return kept

    every = -(-len(data.splits.test) // _SHOWN_IMAGES)
    confusions = {
        name: torch.zeros(classes, classes, dtype=torch.int64) for name in ("retrieval", "linear")
    }
    rows = measure_images(
        data.splits.test,
        functools.partial(prepare, masks=data.test_masks),
        measure,
        description="segmentation",
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        accelerator=accelerator,
    )
    if accelerator.num_processes > 1:
        parts = gather_object([confusions])
        confusions = {name: sum(part[name] for part in parts) for name in confusions}
    pixels = confusions["linear"].sum(dim=1)
    if not int(pixels.sum()):
        raise ValueError(
            f"all pixels of the test masks are void: correct --dense.void, which is "
            f"{list(task.void)}, or choose another test split"
        )
    return DenseResult(
        {name: score_confusion(confusion) for name, confusion in confusions.items()},
        (pixels / pixels.sum()).tolist(),
        len(bank.features),
        rate,
        validation,
        _held_out_images(task, images) / images,
        [row for row in rows if row is not None],
    )


def _collect_bank(
    data: EvaluationData,
    prepare: "functools.partial[tuple[MaskedImage, ...]]",
    maps: RegionMaps,
    classes: int,
    quota: int,
) -> Bank:
    """Draw regions of every training image that are not void alone, at most `quota` of each; the
    draw depends on the seed and the image's index alone.
    """

    def measure(images: Sequence[MaskedImage]) -> list[tuple[Tensor, Tensor]]:
        rows = []
        for image, regions in zip(images, maps.compute(images), strict=True):
            shares = class_shares(image.classes, (regions.shape[0], regions.shape[1]), classes)
            usable = shares.sum(dim=1).nonzero()[:, 0]
            order = np.random.default_rng([data.seed, image.index]).permutation(len(usable))
            chosen = usable[torch.from_numpy(order[:quota])]
            rows.append((regions.flatten(0, 1)[chosen.to(regions.device)].cpu(), shares[chosen]))
        return rows

    rows = measure_images(
        data.splits.train,
        prepare,
        measure,
        description="training regions",
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        accelerator=maps.accelerator,
    )
    counts = torch.tensor([len(features) for features, _ in rows])
    device = maps.accelerator.device
    features = torch.cat([features for features, _ in rows]).to(device)
    if not torch.isfinite(features).all():
        raise ValueError(
            "regions are not finite: check the weights, and try mixed precision 'no' or 'bf16'"
        )
    return Bank(
        features,
        torch.cat([shares for _, shares in rows]).to(device),
        torch.arange(len(rows)).repeat_interleave(counts).to(device),
    )


def retrieved_votes(bank: Bank, regions: Tensor, *, k: int, temperature: float) -> Tensor:
    """Let the most similar regions of a bank vote for classes.

    Args:
        bank: of N regions, on the device of `regions`.
        regions: (M, D).
        k: number of neighbors, at most N.
        temperature: T of the weights exp(cos / T).

    Returns:
        (M, C) votes; each neighbor shares its weight among the classes of its pixels.

    Source:
        Retrieval of labels for regions as in Balazevic et al. (arXiv 2306.01667), section 3, with
        the weights of the k-NN protocol of DINO (arXiv 2104.14294).
    """
    cosines, neighbors = nearest_neighbors(bank.features, regions, k)
    weights = torch.exp((cosines - cosines[:, :1]) / temperature)
    weights /= weights.sum(dim=1, keepdim=True)
    block = max(1, _VOTES_AT_ONCE // (k * bank.shares.shape[1]))
    return torch.cat(
        [
            torch.einsum("mk,mkc->mc", part, bank.shares[chosen])
            for part, chosen in zip(weights.split(block), neighbors.split(block), strict=True)
        ]
    )


def train_linear(
    features: Tensor,
    shares: Tensor,
    *,
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Train one linear classifier for each learning rate, all on the same batches.

    The loss is the cross-entropy of every pixel that counts, with the logits of its region. SGD
    with momentum 0.9 and rate * batch / 256 on a cosine; classifiers start at 0.

    Args:
        features: (N, D).
        shares: (N, C) share of each class among the pixels of a region.
        rates: R learning rates for a batch of 256 regions.
        epochs: passes over the regions.
        batch_size: regions a step.
        seed: of the order.

    Returns:
        Weights (R, D, C) and biases (R, C).
    """
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation, 0.0)
    size = (len(rates), features.shape[1], shares.shape[1])
    weight = torch.zeros(size, device=features.device)
    bias = torch.zeros(size[0], size[2], device=features.device)
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    peaks = torch.tensor(rates, device=features.device) * batch_size / REFERENCE_BATCH
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / epochs))).item()
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for batch in order.split(batch_size):
            rows = (features[batch] - mean) * scale
            targets = shares[batch] / shares[batch].sum()
            logits = rows @ weight + bias[:, None]
            gradient = F.softmax(logits, dim=2) * targets.sum(dim=1)[:, None] - targets
            for value, momentum, slope in zip(
                (weight, bias),
                momenta,
                (rows.T @ gradient, gradient.sum(dim=1)),
                strict=True,
            ):
                momentum.mul_(MOMENTUM).add_(slope)
                value -= (peaks * factor).view(-1, *[1] * (value.ndim - 1)) * momentum
    # Classifiers of features as they are, not standardized.
    weight = weight * scale[:, None]
    return weight, bias - mean @ weight


def _held_out_images(task: "DenseTask", images: int) -> int:
    return min(max(1, round(task.validation_fraction * images)), images - 1)


def _choose_linear(
    bank: Bank, task: "DenseTask", seed: int, accelerator: Accelerator
) -> tuple[Tensor, Tensor, float, dict[float, float]]:
    """Weight (D, C) and bias (C,) at the rate that is best on held-out images, that rate, and the
    mean IoU of each.
    """
    images = bank.images.unique().cpu()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    count = _held_out_images(task, len(images))
    held_out = torch.isin(bank.images, images[order[:count]].to(bank.images.device))
    if held_out.all() or not held_out.any():
        raise ValueError(
            "all pixels of all training masks but one are void: correct --dense.void, which is "
            f"{list(task.void)}, or use a larger training split"
        )
    train = functools.partial(
        train_linear, epochs=task.epochs, batch_size=task.batch_size, seed=seed
    )
    rates = sorted(set(task.learning_rates))
    weights, biases = train(bank.features[~held_out], bank.shares[~held_out], rates=rates)
    validation = {}
    for rate, weight, bias in zip(rates, weights, biases, strict=True):
        logits = bank.features[held_out] @ weight + bias
        confusion = torch.zeros(len(bias), len(bias), dtype=torch.float64, device=bias.device)
        confusion.index_add_(0, logits.argmax(dim=1), bank.shares[held_out].double())
        is_finite = bool(logits.isfinite().all())
        validation[rate] = score_confusion(confusion.T).mean_iou if is_finite else 0.0
    best = max(rates, key=lambda rate: validation[rate])
    weights, biases = train(bank.features, bank.shares, rates=[best])
    weight, bias = weights[0], biases[0]
    if accelerator.num_processes > 1:
        # Processes on different hardware could differ in the last digits.
        found: list[Any] = [weight.cpu(), bias.cpu(), best, validation]
        weight, bias, best, validation = broadcast_object_list(found)
    if not bool(weight.isfinite().all()):
        raise ValueError(
            f"the linear classifier diverges at rate {best:g}: lower --dense.learning_rates"
        )
    return weight.to(accelerator.device), bias.to(accelerator.device), best, validation


def _confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(C, C) int64 pixels of each true class, by predicted class."""
    counted = truth != VOID
    places = truth[counted] * classes + predicted[counted]
    return torch.bincount(places, minlength=classes**2).view(classes, classes)


def score_confusion(confusion: Tensor) -> SegmentationScores:
    """Score a segmentation.

    Args:
        confusion: (C, C) pixels of each true class (row), by predicted class (column); not all 0.

    Returns:
        The scores.
    """
    confusion = confusion.double().cpu()
    hits = confusion.diagonal()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
    class_iou = [
        float(hit / total) if total > 0 else None for hit, total in zip(hits, union, strict=True)
    ]
    known = [iou for iou in class_iou if iou is not None]
    return SegmentationScores(
        sum(known) / len(known), float(hits.sum() / confusion.sum()), class_iou
    )
