"""Nearest neighbors among features by cosine similarity, exact and in bounded memory."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_hf.acceleration.linear import multiply_transposed
from esvit_hf.features.extraction import check_matrices

__all__ = ["check_neighbors", "default_block_bytes", "nearest_neighbors"]

_GROUP_SIZE = 16


def default_block_bytes(device: torch.device | str) -> int:
    """Return the bytes that a block may take.

    Args:
        device: where it is computed.
    """
    # A C library keeps small blocks for the next one. It gives large ones back, and getting their
    # pages again takes as long as the products of narrow features.
    return (128 if torch.device(device).type == "cpu" else 512) * 2**20


@torch.no_grad()
def nearest_neighbors(
    train: Tensor,
    test: Tensor,
    k: int,
    *,
    block_bytes: int | None = None,
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
            comes from; by default `default_block_bytes`.
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
    block_bytes = default_block_bytes(device) if block_bytes is None else block_bytes
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
