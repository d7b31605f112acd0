"""One measurement for every image of a data set, on one process or many."""

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from esvit_hf.common.accelerator_state import any_process
from esvit_hf.common.limits import check_least
from esvit_hf.data.batch_loading import load_batches
from esvit_hf.data.decoding import BrokenImage, refuse_broken_images
from esvit_hf.data.sources import ImageSource

__all__ = ["measure_images"]

Prepared = TypeVar("Prepared")
Row = TypeVar("Row")


def measure_images(
    source: ImageSource,
    prepare: Callable[[list[Image.Image], list[int]], Prepared],
    measure: Callable[[Prepared], list[Row]],
    *,
    description: str,
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
) -> list[Row]:
    """Measure every image once.

    Whole batches are dealt out to the processes and the rows placed by image index, so the result
    does not depend on the number of processes. Every process holds all of it: a row should be a few
    numbers. After the first broken image the rest is only read, for an error that names all broken
    images.

    Args:
        source: the images.
        prepare: images of a batch and their indices to what `measure` takes; runs in worker
            processes.
        measure: what `prepare` made to one row an image, which must be picklable; runs without
            gradients.
        description: what the progress bar says.
        batch_size: images a process measures at once.
        num_workers: worker processes for each process.
        accelerator: the processes.

    Returns:
        The rows, by image index.

    Raises:
        ValueError: a setting below its minimum, images that cannot be decoded, or what `prepare`
            and `measure` raise.
    """
    check_least(batch_size=(batch_size, 1), num_workers=(num_workers, 0))
    processes, rank = accelerator.num_processes, accelerator.process_index
    batches = [
        list(range(start, min(start + batch_size, len(source))))
        for start in range(0, len(source), batch_size)
    ]
    loader = iter(
        load_batches(_PreparedBatches(source, prepare), batches[rank::processes], num_workers)
    )
    rows: list[tuple[int, Row]] = []
    broken: list[BrokenImage] = []
    problems: list[str] = []
    is_refused = False
    progress = tqdm(
        total=len(source),
        desc=description,
        unit="image",
        leave=False,
        disable=not accelerator.is_main_process,
    )
    with torch.no_grad(), progress:
        for _ in range(math.ceil(len(batches) / processes)):
            indices, prepared = next(loader, ([], []))
            if isinstance(prepared, list):
                broken += prepared
            elif isinstance(prepared, ValueError):
                problems.append(str(prepared))
            elif not (broken or is_refused):
                try:
                    rows += zip(indices, measure(prepared), strict=True)
                except ValueError as error:
                    problems.append(str(error))
            # All processes stop together: one that left alone would let the others wait for it.
            is_refused = is_refused or any_process(bool(broken or problems), accelerator)
            if is_refused and any_process(bool(problems), accelerator):
                break
            progress.update(min(processes * batch_size, len(source) - progress.n))
    if processes > 1:
        rows, broken, problems = (gather_object(values) for values in (rows, broken, problems))
    if problems:
        raise ValueError(problems[0])
    refuse_broken_images(sorted(broken, key=lambda image: image.index), len(source))
    by_index = dict(rows)
    assert len(rows) == len(by_index) == len(source), "an image was measured twice or never"
    return [by_index[index] for index in range(len(source))]


class _PreparedBatches(Dataset[tuple[list[int], Any]], Generic[Prepared]):
    """Reads and prepares a whole batch at once, in a worker.

    A batch comes with its indices; broken images, or an error of the preparation, come in its
    place: an exception would reach the main process wrapped in the worker's traceback.
    """

    def __init__(
        self, source: ImageSource, prepare: Callable[[list[Image.Image], list[int]], Prepared]
    ):
        self.source = source
        self.prepare = prepare

    def __getitems__(
        self, indices: list[int]
    ) -> tuple[list[int], Prepared | list[BrokenImage] | ValueError]:
        read = self.source.read(indices)
        if broken := [image for image in read if isinstance(image, BrokenImage)]:
            return indices, broken
        try:
            return indices, self.prepare(
                [image for image in read if not isinstance(image, BrokenImage)], indices
            )
        except ValueError as error:
            return indices, error
