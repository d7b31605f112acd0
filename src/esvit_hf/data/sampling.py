"""Which images each process sees at which step: a pure function of the seed, so that runs split and resume exactly."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys for one process.

    Every epoch is one permutation of the images, cut into optimizer steps of `batch_size_per_process` x `world_size` x
    `accumulation` images; what does not fill a step is dropped. Micro-batch `a` of rank `r` is the r-th part of the
    a-th part of a step. So any number of processes together sees the images that one process would, and a run that
    starts at a later step continues exactly, at once.

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
            raise ValueError(f"rank is {rank}; with {world_size} processes it must be 0 to {world_size - 1}")
        if not 0 <= start_step <= total_steps:
            raise ValueError(f"start_step is {start_step}; it must be 0 to total_steps, which is {total_steps}")
        total_batch = batch_size_per_process * world_size * accumulation
        if total_batch > num_images:
            raise ValueError(
                f"one step needs {total_batch} images (batches of {batch_size_per_process} x {world_size} processes x "
                f"{accumulation} accumulated), but there are {num_images}; lower the batch size or the accumulation"
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

    def __len__(self) -> int:
        """Micro-batches of this process from `start_step` to the end of the run."""
        return (self.total_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        current, order = -1, np.empty((0, 0), dtype=np.int64)
        for step in range(self.start_step, self.total_steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != current:
                current, order = epoch, self._own_order(epoch)
            for micro_batch in range(self.accumulation):
                row = order[step_in_epoch * self.accumulation + micro_batch]
                yield [(epoch, index) for index in row.tolist()]

    def _own_order(self, epoch: int) -> np.ndarray:
        """Indices of this process in one epoch: (micro-batches, batch_size_per_process)."""
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        micro_batches = self.steps_per_epoch * self.accumulation
        used = permutation[: micro_batches * self.world_size * self.batch_size_per_process]
        return used.reshape(micro_batches, self.world_size, self.batch_size_per_process)[:, self.rank]
