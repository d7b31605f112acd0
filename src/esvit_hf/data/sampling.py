"""Which images each process sees at which step: a pure function of the seed, so that runs split and
resume exactly.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys for one process.

    Every epoch is one permutation of the images, cut into optimizer steps of
    `batch_size_per_process` x `world_size` x `accumulation` images; what does not fill a step is
    dropped. Micro-batch `a` of rank `r` is the r-th part of the a-th part of a step. So any number
    of processes together sees the images that one process would, and a run that starts at a later
    step continues exactly, at once.

    Args:
        num_images: size of the data set.
        batch_size_per_process: images in one micro-batch of one process.
        seed: of the permutations.
        rank: of this process.
        world_size: number of processes.
        accumulation: micro-batches in one optimizer step.
        start_step: optimizer steps that are done already.
        total_steps: optimizer steps of the whole run, those done included.

    Raises:
        ValueError: a value is out of range, or one step needs more images than there are.
    """

    def __init__(
        self,
        num_images: int,
        batch_size_per_process: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
        total_steps: int,
    ) -> None:
        counts = {
            "num_images": num_images,
            "batch_size_per_process": batch_size_per_process,
            "world_size": world_size,
            "accumulation": accumulation,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; set it to 1 or more")
        if seed < 0:
            raise ValueError(f"seed is {seed}; set it to 0 or more")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}; with {world_size} processes it must be 0 to {world_size - 1}"
            )
        if not 0 <= start_step <= total_steps:
            raise ValueError(
                f"start_step is {start_step}; it must be 0 to total_steps, which is {total_steps}"
            )
        total_batch = batch_size_per_process * world_size * accumulation
        if total_batch > num_images:
            raise ValueError(
                f"one step needs {total_batch} images (batches of {batch_size_per_process} x "
                f"{world_size} processes x {accumulation} accumulated), but there are "
                f"{num_images}; lower the batch size or the accumulation"
            )
        self.num_images = num_images
        self.batch_size_per_process = batch_size_per_process
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.start_step = start_step
        self.total_steps = total_steps
        self.steps_per_epoch = num_images // total_batch

    @property
    def order_settings(self) -> dict[str, int]:
        """What the order of the images depends on, for comparison with an earlier run's."""
        return {"images in the data": self.num_images, "seed": self.seed}

    def __len__(self) -> int:
        """Micro-batches of this process from `start_step` to the end of the run."""
        return (self.total_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.steps_per_epoch * self.accumulation
        number, end = self.start_step * self.accumulation, self.total_steps * self.accumulation
        while number < end:
            epoch, first = divmod(number, per_epoch)
            last = min(per_epoch, first + end - number)
            for indices in self._micro_batches(epoch, first, last):
                yield [(epoch, index) for index in indices.tolist()]
            number += last - first

    def _micro_batches(self, epoch: int, first: int, last: int) -> Iterable[np.ndarray]:
        """Indices of this process's micro-batches `first` to `last` - 1 of an epoch, each
        (batch_size_per_process,).
        """
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        micro_batches = self.steps_per_epoch * self.accumulation
        used = permutation[: micro_batches * self.world_size * self.batch_size_per_process]
        return used.reshape(micro_batches, self.world_size, self.batch_size_per_process)[
            first:last, self.rank
        ]


class StreamSampler(EpochSampler):
    """The same for images in shards, in an order in which every worker of a loader reads a part of
    the data of its own.

    Every epoch permutes the chunks of the shards (row groups of parquet files) and puts them one
    after the other. Each reader - there are `world_size` x `readers_per_process` - takes one
    stretch of this sequence, the same number of images for all up to one micro-batch. It reads its
    stretch in blocks of about `shuffle_buffer` images and shuffles each. Readers make micro-batches
    in turns, as the workers of a loader do, so that each worker is one reader. The order is
    computed from the sizes of the chunks alone: a run that starts at a later step continues
    exactly, at once, and reads one block again for each worker.

    Args:
        chunk_sizes: (chunks,) int64, images in each chunk; index 0 is the first image of the first
            chunk.
        batch_size_per_process: images in one micro-batch of one process.
        seed: of the permutations.
        shuffle_buffer: images that a reader shuffles together; at least one micro-batch is taken.
        readers_per_process: workers of the loader, 1 if it has none.
        rank: of this process.
        world_size: number of processes.
        accumulation: micro-batches in one optimizer step.
        start_step: optimizer steps that are done already.
        total_steps: optimizer steps of the whole run, those done included.

    Raises:
        ValueError: a value is out of range, or one step needs more images than there are.
    """

    def __init__(
        self,
        chunk_sizes: np.ndarray,
        batch_size_per_process: int,
        seed: int,
        *,
        shuffle_buffer: int,
        readers_per_process: int = 1,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
        total_steps: int,
    ) -> None:
        for name, value in {
            "shuffle_buffer": shuffle_buffer,
            "readers_per_process": readers_per_process,
        }.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; set it to 1 or more")
        super().__init__(
            int(chunk_sizes.sum()),
            batch_size_per_process,
            seed,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
            start_step=start_step,
            total_steps=total_steps,
        )
        self.chunk_sizes = chunk_sizes
        self.shuffle_buffer = shuffle_buffer
        self.num_readers = world_size * readers_per_process
        self.batches_per_block = max(1, shuffle_buffer // batch_size_per_process)

    @property
    def order_settings(self) -> dict[str, int]:
        """What the order of the images depends on, for comparison with an earlier run's."""
        return super().order_settings | {
            "chunks of the shards": len(self.chunk_sizes),
            "batch_size": self.batch_size_per_process,
            "shuffle_buffer": self.shuffle_buffer,
            "processes x num_workers": self.num_readers,
        }

    def _micro_batches(self, epoch: int, first: int, last: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng([self.seed, epoch, 0, 0]).permutation(len(self.chunk_sizes))
        sizes = self.chunk_sizes[order]
        ends = np.cumsum(sizes)
        # From a place in the permuted sequence to the index of the image, for each chunk.
        shifts = (np.cumsum(self.chunk_sizes) - self.chunk_sizes)[order] - (ends - sizes)
        for number in range(first, last):
            places = self._places(epoch, number * self.world_size + self.rank)
            yield places + shifts[np.searchsorted(ends, places, side="right")]

    def _places(self, epoch: int, number: int) -> np.ndarray:
        """Places in the epoch's sequence that a micro-batch takes, numbered over all processes."""
        reader, turn = number % self.num_readers, number // self.num_readers
        share, longer = divmod(
            self.steps_per_epoch * self.accumulation * self.world_size, self.num_readers
        )
        first_batch = reader * share + min(reader, longer)
        block, place = divmod(turn, self.batches_per_block)
        skipped = block * self.batches_per_block
        batches = min(self.batches_per_block, share + (reader < longer) - skipped)
        size = self.batch_size_per_process
        # The numbers in the seed differ from those of the permutation of the chunks: there the last
        # one is 0.
        shuffled = np.random.default_rng([self.seed, epoch, reader, block + 1]).permutation(
            batches * size
        )
        return (first_batch + skipped) * size + shuffled[place * size : (place + 1) * size]
