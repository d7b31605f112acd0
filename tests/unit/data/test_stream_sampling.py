"""The order of streams: each image once an epoch over all processes and workers, and exact from any
step on.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from esvit_hf.data.sampling import StreamSampler
from esvit_hf.data.streaming import open_stream

CHUNKS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def samplers(
    chunks: list[int],
    *,
    batch: int,
    ranks: int,
    workers: int,
    accumulation: int = 1,
    **settings: int,
):
    return [
        StreamSampler(
            np.array(chunks),
            batch,
            rank=rank,
            world_size=ranks,
            accumulation=accumulation,
            readers_per_process=workers,
            **({"seed": 0, "shuffle_buffer": 8, "total_steps": 7} | settings),
        )
        for rank in range(ranks)
    ]


@settings(deadline=None)
@given(
    CHUNKS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_each_image_once_an_epoch(
    chunks: list[int], batch: int, ranks: int, workers: int, accumulation: int, buffer: int
) -> None:
    total = batch * ranks * accumulation
    chunks = [*chunks, total]
    order = samplers(
        chunks,
        batch=batch,
        ranks=ranks,
        workers=workers,
        accumulation=accumulation,
        shuffle_buffer=buffer,
    )
    batches = [list(sampler) for sampler in order]
    # Every process takes the same number of steps, and no step is short.
    assert {len(own) for own in batches} == {7 * accumulation}
    assert {len(micro_batch) for own in batches for micro_batch in own} == {batch}
    per_epoch = sum(chunks) // total
    for epoch in range(7 // per_epoch):
        seen = [
            index
            for own in batches
            for micro_batch in own
            for number, index in micro_batch
            if number == epoch
        ]
        # Dropped is less than one step.
        assert len(seen) == len(set(seen)) == per_epoch * total
        assert set(seen) <= set(range(sum(chunks)))


@settings(deadline=None)
@given(
    CHUNKS,
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 12),
)
def test_a_later_start_continues_exactly(
    chunks: list[int], batch: int, ranks: int, workers: int, accumulation: int, start: int
) -> None:
    shape = {
        "batch": batch,
        "ranks": ranks,
        "workers": workers,
        "accumulation": accumulation,
        "total_steps": 12,
    }
    chunks = [*chunks, batch * ranks * accumulation]
    whole = samplers(chunks, **shape)
    rest = samplers(chunks, **shape, start_step=start)
    for one, other in zip(whole, rest, strict=True):
        assert list(other) == list(one)[start * accumulation :]


@settings(deadline=None)
@given(CHUNKS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 9))
def test_each_worker_reads_a_stretch_of_its_own(
    chunks: list[int], batch: int, workers: int, buffer: int
) -> None:
    chunks = [*chunks, 3 * batch * workers]
    (sampler,) = samplers(
        chunks, batch=batch, ranks=1, workers=workers, shuffle_buffer=buffer, total_steps=99
    )
    ends = np.cumsum(chunks)
    readers: list[list[int]] = [[] for _ in range(workers)]
    # A loader gives its workers batches in turns.
    for worker, micro_batch in zip(itertools.cycle(range(workers)), sampler, strict=False):
        if micro_batch[0][0] == 0:
            readers[worker] += [index for _, index in micro_batch]
    touched = [set(np.searchsorted(ends, own, side="right").tolist()) for own in readers]
    # Stretches that follow each other share at most the chunk in which one ends and the next
    # begins.
    assert sum(len(own) for own in touched) <= len(set().union(*touched)) + workers - 1


def test_processes_and_workers_can_be_traded() -> None:
    chunks, total = [5, 7, 40, 12], 9
    four = samplers(chunks, batch=2, ranks=4, workers=1, total_steps=total)
    one = samplers(chunks, batch=2, ranks=1, workers=4, accumulation=4, total_steps=total)[0]
    assert list(itertools.chain(*zip(*four, strict=True))) == list(one)


def test_a_block_stays_in_the_buffer() -> None:
    (sampler,) = samplers(
        [10] * 50, batch=4, ranks=1, workers=1, shuffle_buffer=40, total_steps=125
    )
    batches = [[index for _, index in micro_batch] for micro_batch in sampler]
    for start in range(0, 120, 10):
        block = np.concatenate(batches[start : start + 10])
        # 40 images of a block lie in no more chunks than 40 images in a row can.
        assert len(np.unique(block // 10)) <= 5


def test_epochs_seeds_and_readers_have_orders_of_their_own() -> None:
    def order(seed: int, start: int) -> tuple[int, ...]:
        (sampler,) = samplers(
            [5] * 8, batch=40, ranks=1, workers=1, shuffle_buffer=40, seed=seed, start_step=start
        )
        return tuple(index for _, index in next(iter(sampler)))

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(one) == list(range(40)) for one in orders)
    assert len(set(orders)) == 9
    # The blocks of one epoch are shuffled in different ways.
    (sampler,) = samplers([100], batch=10, ranks=1, workers=2, shuffle_buffer=10, total_steps=10)
    offsets = {tuple(np.array([index for _, index in batch]) % 10) for batch in sampler}
    assert len(offsets) == 10


def test_an_image_can_come_at_any_place() -> None:
    first = [
        next(iter(samplers([3, 3, 2], batch=1, ranks=1, workers=1, seed=seed, total_steps=1)[0]))[
            0
        ][1]
        for seed in range(2000)
    ]
    assert np.abs(np.bincount(first) / 2000 - 1 / 8).max() < 4 * np.sqrt(1 / 8 * 7 / 8 / 2000)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="shuffle_buffer is 0"):
        samplers([9], batch=1, ranks=1, workers=1, shuffle_buffer=0)
    with pytest.raises(ValueError, match="readers_per_process is 0"):
        samplers([9], batch=1, ranks=1, workers=0)
    with pytest.raises(ValueError, match="one step needs 20 images .* there are 9"):
        samplers([4, 5], batch=20, ranks=1, workers=1)


@pytest.mark.parametrize(("workers", "readers"), [(0, 1), (3, 3)])
def test_a_stream_gives_its_own_order(tmp_path: Path, workers: int, readers: int) -> None:
    rows = Dataset.from_dict({"image": [{"bytes": b"", "path": None}] * 30}).cast_column(
        "image", Image(decode=False)
    )
    rows.to_parquet(tmp_path / "train.parquet", batch_size=10)
    stream = open_stream(str(tmp_path / "train.parquet"), shuffle_buffer=12)
    settings = {"rank": 1, "world_size": 2, "accumulation": 1, "start_step": 1, "total_steps": 5}
    sampler = stream.sampler(4, 7, num_workers=workers, **settings)
    expected = StreamSampler(
        np.array([10, 10, 10]), 4, 7, shuffle_buffer=12, readers_per_process=readers, **settings
    )
    assert list(sampler) == list(expected)
    assert sampler.order_settings == {
        "images in the data": 30,
        "seed": 7,
        "chunks of the shards": 3,
        "batch_size": 4,
        "shuffle_buffer": 12,
        "processes x num_workers": 2 * readers,
    }
