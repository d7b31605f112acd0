"""Classification from a few labeled images a class: nearest class mean of frozen features."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from esvit_hf.evaluation.metrics import load_metric
from esvit_hf.evaluation.splits import check_classes, check_images_per_class
from esvit_hf.features.extraction import check_matrices

__all__ = ["FewShotResult", "few_shot_accuracy"]

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class FewShotResult:
    """Top-1 accuracy in [0, 1] with a number of images a class.

    Attributes:
        shots: images a class.
        mean: over the draws.
        spread: sample standard deviation over the draws; 0 of a single one.
        draws: accuracy of each draw.
    """

    shots: int
    mean: float
    spread: float
    draws: tuple[float, ...]


def few_shot_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    shots: Sequence[int],
    draws: int,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[FewShotResult]:
    """Accuracy of the nearest class mean, learned from a few images a class, over every test image.

    The classifier has no setting that would have to be chosen on images that are not there: the
    mean of the labeled images is subtracted, features are L2-normalized, a class is the mean of its
    images, and a test image belongs to the class of highest cosine similarity, the lower class
    among equals. A draw takes images in one random order, so that 5 shots contain the image of 1
    shot.

    Args:
        train: (N, D) features.
        train_labels: (N,) integer classes.
        test: (M, D) features.
        test_labels: (M,) integer classes.
        shots: images a class.
        draws: how many random choices of training images.
        seed: of the choices.
        device: where to compute; by default where `train` lies.

    Returns:
        One result for each number of shots, in ascending order.

    Raises:
        ValueError: features that are no two finite matrices of one width, fewer than two classes,
            test classes without a training image, classes with fewer images than shots, or a
            setting below 1.

    Source:
        SimpleShot (arXiv 1911.04623), CL2N, with the mean of the labeled images in place of that of
        other classes.
    """
    check_matrices(train, test)
    counts = sorted(set(shots))
    if not counts or counts[0] < 1 or draws < 1:
        raise ValueError(
            f"shots are {list(shots)} and draws {draws}: give at least one number of shots, all "
            f"above 0"
        )
    check_classes(train_labels, test_labels)
    check_images_per_class(train_labels, counts[-1])
    device = train.device if device is None else torch.device(device)
    classes = train_labels.unique().cpu()
    metric = load_metric("top_k_accuracy")
    accuracies: dict[int, list[float]] = {count: [] for count in counts}
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(draws), desc="few-shot", unit="draw", leave=False):
        chosen = _sample_training_images(train_labels.cpu(), classes, counts[-1], generator)
        sampled = (
            train[chosen.flatten().to(train.device)]
            .to(device, torch.float32)
            .unflatten(0, chosen.shape)
        )
        for count in counts:
            center = sampled[:, :count].mean(dim=(0, 1))
            means = F.normalize(F.normalize(sampled[:, :count] - center, dim=2).mean(dim=1), dim=1)
            predicted = torch.cat(
                [
                    # A test image's own length changes no rank.
                    ((rows.to(device, torch.float32) - center) @ means.T).argmax(dim=1).cpu()
                    for rows in test.split(_ROWS_AT_ONCE)
                ]
            )
            inputs = {
                "predictions": classes[predicted][:, None].tolist(),
                "references": test_labels.tolist(),
            }
            accuracies[count].append(metric.compute(**inputs)["top_k_accuracy"])
    return [
        FewShotResult(
            count,
            statistics.fmean(shares),
            statistics.stdev(shares) if len(shares) > 1 else 0.0,
            tuple(shares),
        )
        for count, shares in accuracies.items()
    ]


def _sample_training_images(
    labels: Tensor, classes: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Places (C, count) of random images of each class."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    starts = torch.searchsorted(labels[order], classes)
    return order[starts[:, None] + torch.arange(count)]
