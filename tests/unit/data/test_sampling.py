"""The sampler: one order of images, however it is split over processes and wherever it starts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esvit_hf.data.sampling import EpochSampler


def by_step(sampler: EpochSampler) -> list[list[list[tuple[int, int]]]]:
    """Micro-batches, grouped by optimizer step."""
    batches = list(sampler)
    return [
        batches[start : start + sampler.accumulation]
        for start in range(0, len(batches), sampler.accumulation)
    ]


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30), st.integers(0, 5)
)
def test_processes_together_see_what_one_process_sees(
    batch: int, world_size: int, accumulation: int, spare: int, seed: int
) -> None:
    num_images = batch * world_size * accumulation + spare
    alone = by_step(
        EpochSampler(num_images, batch * world_size * accumulation, seed, total_steps=7)
    )
    ranks = [
        by_step(
            EpochSampler(
                num_images,
                batch,
                seed,
                rank=rank,
                world_size=world_size,
                accumulation=accumulation,
                total_steps=7,
            )
        )
        for rank in range(world_size)
    ]
    for step, ((together,), *parts) in enumerate(zip(alone, *ranks, strict=True)):
        micro_batches = [
            micro_batch for per_rank in zip(*parts, strict=True) for micro_batch in per_rank
        ]
        assert [len(micro_batch) for micro_batch in micro_batches] == [batch] * (
            world_size * accumulation
        )
        assert list(itertools.chain(*micro_batches)) == together, step


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 12), st.integers(1, 2))
def test_a_later_start_continues_exactly(
    spare: int, batch: int, start: int, accumulation: int
) -> None:
    num_images = batch * accumulation + spare
    settings = {
        "num_images": num_images,
        "batch_size_per_process": batch,
        "seed": 3,
        "accumulation": accumulation,
    }
    whole = EpochSampler(**settings, total_steps=12)
    rest = EpochSampler(**settings, start_step=start, total_steps=12)
    assert len(rest) == (12 - start) * accumulation
    assert list(rest) == list(whole)[start * accumulation :]
    assert list(rest) == list(rest)


def test_an_epoch_visits_no_image_twice_and_drops_the_rest() -> None:
    sampler = EpochSampler(23, 5, seed=0, total_steps=9)
    assert sampler.steps_per_epoch == 4
    keys = list(itertools.chain(*sampler))
    for epoch in range(2):
        indices = [index for number, index in keys if number == epoch]
        assert len(indices) == len(set(indices)) == 20
    assert [number for number, _ in keys][-5:] == [2] * 5


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        keys = itertools.chain(*EpochSampler(50, 50, seed, start_step=epoch, total_steps=epoch + 1))
        return [index for _, index in keys]

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 9


def test_orders_are_uniform() -> None:
    first = [next(iter(EpochSampler(4, 1, seed, total_steps=1)))[0][1] for seed in range(2000)]
    assert np.abs(np.bincount(first) / 2000 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size_per_process": 64, "world_size": 2},
            "one step needs 128 images .* there are 100; lower the batch",
        ),
        ({"accumulation": 26}, "one step needs 104 images"),
        ({"batch_size_per_process": 0}, "batch_size_per_process is 0; set it to 1 or more"),
        ({"num_images": 0}, "num_images is 0"),
        ({"accumulation": -1}, "accumulation is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2; with 2 processes it must be 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"start_step": 11}, "start_step is 11; it must be 0 to total_steps, which is 10"),
    ],
)
def test_bad_values_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(
            **(
                {"num_images": 100, "batch_size_per_process": 4, "seed": 0, "total_steps": 10}
                | changes
            )
        )
