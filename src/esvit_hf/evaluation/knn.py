"""Weighted k-nearest-neighbor classification of frozen features, exact and in bounded memory."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_hf.acceleration.linear import multiply_transposed
from esvit_hf.evaluation import RANKED_CLASSES, load_metric
from esvit_hf.features.extraction import check_matrices

__all__ = [
    "check_neighbors",
    "knn_accuracy",
    "knn_predictions",
    "nearest_neighbors",
    "ranked_accuracy",
]

DEFAULT_BLOCK_BYTES = 512 * 2**20
_GROUP_SIZE = 16


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: Sequence[float] = (0.07,),
    block_bytes: int = DEFAULT_BLOCK_BYTES,
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
    block_bytes: int = DEFAULT_BLOCK_BYTES,
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


@torch.no_grad()
def nearest_neighbors(
    train: Tensor,
    test: Tensor,
    k: int,
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k training rows of highest cosine similarity for every test row.

    Similarities are computed in float32, block by block. Rows of equal similarity are taken from
    the lowest index up.

    Args:
        train: (N, D) features.
        test: (M, D) features.
        k: number of neighbors, at most N.
        block_bytes: bound of the memory for a block of similarities and the normalized features it
            comes from.
        device: where to compute; by default where `train` lies.

    Returns:
        Cosines (M, k), float32, in descending order, and int64 indices (M, k) into `train`, on
        `device`.

    Raises:
        ValueError: features that are no two finite matrices of one width, or k outside 1..N.
    """
    check_matrices(train, test)
    check_neighbors(k, len(train))
    device = train.device if device is None else torch.device(device)
    width = train.shape[1]
    columns = max(1, min(len(train), block_bytes // (2 * 4 * width)))
    # Sixteen bytes a similarity: the product itself, the group maxima and candidates, and the masks
    # that resolve ties.
    rows = max(1, min(len(test), block_bytes // (2 * 16 * columns)))
    best = torch.empty(len(test), k, device=device)
    best_indices = torch.empty(len(test), k, dtype=torch.int64, device=device)
    found = 0
    for start in range(0, len(train), columns):
        block = _normalized(train[start : start + columns], device)
        kept = min(k, found + len(block))
        for row_start, queries in _normalized_blocks(test, rows, device):
            values, indices = _largest(multiply_transposed(queries, block), min(k, len(block)))
            selection = slice(row_start, row_start + len(queries))
            if found:
                values = torch.cat([best[selection, :found], values], dim=1)
                indices = torch.cat([best_indices[selection, :found], indices + start], dim=1)
                # Stable: of equal values the earlier block, hence the lower index, stays in front.
                values, order = values.sort(dim=1, descending=True, stable=True)
                indices = indices.gather(1, order)
            best[selection, :kept] = values[:, :kept]
            best_indices[selection, :kept] = indices[:, :kept]
        found = kept
    return best, best_indices


def check_neighbors(k: int, images: int) -> None:
    """Check that there are k neighbors.

    Args:
        k: number of neighbors.
        images: number of training images.

    Raises:
        ValueError: k is outside 1..images.
    """
    if not 1 <= k <= images:
        raise ValueError(
            f"k is {k}, the training set has {images} rows: choose k from 1 to {images}"
        )


def _normalized(features: Tensor, device: torch.device) -> Tensor:
    return F.normalize(features.to(device, torch.float32), dim=1)


def _normalized_blocks(
    features: Tensor, rows: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(features), rows):
        yield start, _normalized(features[start : start + rows], device)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest k of each row (R, n) in descending order, of equal ones those of the lowest index."""
    if k == values.shape[1]:
        largest, indices = values.sort(dim=1, descending=True, stable=True)
        return largest, indices
    largest, indices = _top(values, k + 1)
    tied = (largest[:, 1:] == largest[:, :-1]).any(dim=1).nonzero()[:, 0]
    cut = largest[:, k - 1] == largest[:, k]
    largest, indices = largest[:, :k], indices[:, :k]
    if len(tied):
        chosen = indices[tied].sort(dim=1).values
        cut_rows = cut[tied].nonzero()[:, 0]
        if len(cut_rows):
            chosen[cut_rows] = _first_largest(
                values[tied[cut_rows]], largest[tied[cut_rows], -1:], k
            )
        ordered, order = values[tied].gather(1, chosen).sort(dim=1, descending=True, stable=True)
        largest, indices = largest.clone(), indices.clone()
        largest[tied], indices[tied] = ordered, chosen.gather(1, order)
    return largest, indices


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` in descending order, by way of group maxima where the rows are long.

    The k groups with the largest maxima hold the k largest values: a value outside them is below k
    of the maxima.
    """
    rows, length = values.shape
    groups = length // _GROUP_SIZE
    if groups < 2 * k:
        return torch.topk(values, k, dim=1)
    members = values[:, : groups * _GROUP_SIZE].view(rows, _GROUP_SIZE, groups)
    chosen = members.amax(dim=1).topk(k, dim=1, sorted=False).indices
    offsets = torch.arange(_GROUP_SIZE, device=values.device)[:, None] * groups
    indices = (chosen[:, None, :] + offsets).flatten(1)
    rest = torch.arange(groups * _GROUP_SIZE, length, device=values.device)
    indices = torch.cat([indices, rest.expand(rows, -1)], dim=1)
    largest, positions = values.gather(1, indices).topk(k, dim=1)
    return largest, indices.gather(1, positions)


def _first_largest(values: Tensor, smallest_kept: Tensor, k: int) -> Tensor:
    """Indices (R, k), ascending, of the values above the smallest kept one and of the first that
    equal it.
    """
    above = values > smallest_kept
    equal = values == smallest_kept
    missing = k - above.sum(dim=1, keepdim=True)
    kept = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= missing))
    return kept.nonzero()[:, 1].view(-1, k)


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
