"""Batches of images that worker processes make as a whole."""

from collections.abc import Iterable
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from esvit_hf.common.freed_memory import keep_freed_memory

__all__ = ["load_batches"]

Batch = TypeVar("Batch")


def load_batches(
    dataset: Dataset[Batch],
    batches: Iterable[list[int]],
    num_workers: int,
    *,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Let workers make one batch after the other; each keeps the memory of an image for the next.

    Args:
        dataset: its `__getitems__` makes a batch of the indices of its images.
        batches: the indices of each batch.
        num_workers: worker processes; none at 0.
        pin_memory: page-lock the batches, for a copy to a GPU.

    Returns:
        A loader of the batches, in their order.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_unchanged,
        num_workers=num_workers,
        worker_init_fn=keep_freed_memory,
        pin_memory=pin_memory,
    )


def _unchanged(batch: Any) -> Any:
    return batch
