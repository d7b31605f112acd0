"""Batches come whole and in order, from workers that keep their memory."""

import platform

import pytest
from tests.support.new_pages import pages_of_a_photograph
from torch.utils.data import Dataset

from esvit_hf.data.batch_loading import load_batches


class Indices(Dataset[list[int]]):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


class NewPages(Dataset[int]):
    def __getitems__(self, indices: list[int]) -> int:
        return pages_of_a_photograph()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_dataset_in_their_order(num_workers):
    batches = [[3, 1], [0], [2, 4, 5]]
    assert list(load_batches(Indices(), batches, num_workers)) == batches


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_a_worker_keeps_the_memory_of_an_image(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    # It is 12,000 each time otherwise. A fork also gets copies of what it shares and writes.
    assert min(load_batches(NewPages(), [[index] for index in range(6)], 1)) < 1000
