"""Weighted k-nearest-neighbor classification of frozen features, exact and in bounded memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esvit_hf.evaluation.metrics import RANKED_CLASSES, load_metric
from esvit_hf.features.search import default_block_bytes, nearest_neighbors

__all__ = ["knn_accuracy", "knn_predictions", "ranked_accuracy"]


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int],
    temperature: Sequence[float] = (0.07,),
    block_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> dict[tuple[int, float], tuple[float, float]]:
    """Accuracy of the weighted k-NN classifier over every test image.

    Args:
        train: (N, D) features; they are L2-normalized here.
        train_labels: (N,) integer classes.
        test: (M, D) features.
        test_labels: (M,) integer classes; a class that `train` lacks counts as an error.
        k: numbers of neighbors.
        temperature: temperatures T of the weights exp(cos / T).
        block_bytes: bound of the memory for similarities, beside the features and M * (max(k) + 1)
            neighbors.
        device: where to compute; by default where `train` lies. Blocks of features are moved there.

    Returns:
        For each (k, T) top-1 and top-5 accuracy in [0, 1]. A class that no neighbor voted for is
        never counted as predicted, so top-5 has its natural meaning with fewer than 5 classes or
        neighbors.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k larger than N, a
            temperature not above 0.

    Source:
        DINO (arXiv 2104.14294) section 4.1; EsViT section 4.1.
    """
    if test_labels.shape != test.shape[:1]:
        raise ValueError(
            f"{len(test)} test features have labels of shape {tuple(test_labels.shape)}: pass one "
            f"each"
        )
    ranked = knn_predictions(
        train,
        train_labels,
        test,
        k=k,
        temperature=temperature,
        block_bytes=block_bytes,
        device=device,
    )
    return {
        setting: ranked_accuracy(predictions, test_labels)
        for setting, predictions in ranked.items()
    }


def ranked_accuracy(predictions: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy of ranked classes.

    Args:
        predictions: (M, 5) classes from the most to the least likely, -1 where no class is left.
        labels: (M,) integer classes.

    Returns:
        Both, in [0, 1].
    """
    metric, inputs = (
        load_metric("top_k_accuracy"),
        {"predictions": predictions.tolist(), "references": labels.tolist()},
    )
    top1, top5 = (
        metric.compute(**inputs, k=count)["top_k_accuracy"] for count in (1, RANKED_CLASSES)
    )
    return top1, top5


def knn_predictions(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    k: Sequence[int],
    temperature: Sequence[float],
    block_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> dict[tuple[int, float], Tensor]:
    """Rank the classes of each test image by the votes of its k nearest neighbors, weighted by
    exp(cos / T).

    Equal votes go to the lower class.

    Args:
        train: (N, D) features.
        train_labels: (N,) integer classes.
        test: (M, D) features.
        k: numbers of neighbors.
        temperature: temperatures T.
        block_bytes: bound of the memory for similarities and votes.
        device: where to compute; by default where `train` lies.

    Returns:
        For each (k, T) int64 (M, 5) on the CPU: classes from the most votes to the fewest, -1 where
        no class is left.

    Raises:
        ValueError: as `knn_accuracy`.
    """
    if (
        train_labels.shape != train.shape[:1]
        or train_labels.is_floating_point()
        or train_labels.is_complex()
    ):
        raise ValueError(
            f"{len(train)} training features come with labels of shape {tuple(train_labels.shape)} "
            f"and type {train_labels.dtype}: pass one integer each"
        )
    if not k or min(k) < 1 or not temperature or not min(temperature) > 0:
        raise ValueError(
            f"k is {list(k)} and temperature {list(temperature)}: give at least one of each, all "
            f"above 0"
        )
    if len(train_labels) and int(train_labels.min()) < 0:
        raise ValueError(
            f"the lowest training label is {int(train_labels.min())}: number the classes from 0"
        )
    device = train.device if device is None else device
    block_bytes = default_block_bytes(device) if block_bytes is None else block_bytes
    counts = sorted(set(k))
    similarities, neighbors = nearest_neighbors(
        train, test, counts[-1], block_bytes=block_bytes, device=device
    )
    classes = int(train_labels.max()) + 1
    neighbor_labels = train_labels.to(neighbors.device, torch.int64)
    ranked = {
        (count, value): torch.empty(len(test), RANKED_CLASSES, dtype=torch.int64)
        for count in k
        for value in temperature
    }
    # The votes are float64: at low temperatures exp() spans more than float32 holds.
    rows = max(1, block_bytes // (16 * (classes + counts[-1])))
    for start in range(0, len(test), rows):
        block = slice(start, start + rows)
        cosines = similarities[block].double()
        labels = neighbor_labels[neighbors[block]]
        for value in temperature:
            # Scaling all votes of an image by one factor changes no rank and keeps the largest at
            # 1.
            weights = torch.exp((cosines - cosines[:, :1]) / value)
            votes = weights.new_zeros(len(weights), classes)
            counted = 0
            for count in counts:
                votes.scatter_add_(1, labels[:, counted:count], weights[:, counted:count])
                counted = count
                ranked[count, value][block] = _rank_classes(votes).cpu()
    return ranked


def _rank_classes(votes: Tensor) -> Tensor:
    """Classes (R, 5) by votes (R, C), the lowest class first among equals; -1 where no votes are
    left.
    """
    votes = votes.clone()
    ranked = []
    for _ in range(RANKED_CLASSES):
        # argmax returns the first of equal maxima; topk promises no order.
        best = votes.argmax(dim=1, keepdim=True)
        voted = votes.gather(1, best) > 0
        ranked.append(torch.where(voted, best, -1))
        votes.scatter_(1, best, 0.0)
    return torch.cat(ranked, dim=1)
