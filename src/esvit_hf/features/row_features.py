"""Features of many images, part by part, with the memory of one part."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from esvit_hf.acceleration.threads import use_threads
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.common.errors import one_line
from esvit_hf.common.limits import MAX_IMAGE_PIXELS, check_least
from esvit_hf.data.batch_loading import load_batches
from esvit_hf.data.decoding import (
    UndecodableImageError,
    decode_jpeg_pixels,
    decode_stored,
    finish_image,
    is_jpeg,
    open_image,
    read_content,
)
from esvit_hf.features.preprocessing import join_images, preprocess_image, resizes_tensors
from esvit_hf.features.rows import RowSource, row_name

__all__ = [
    "PartBatches",
    "PartFeatures",
    "RowOptions",
    "check_images",
    "compute_parts",
    "reduced_side",
]

JPEG_REDUCTIONS = (8, 4, 2)
# Pillow's own rule for thumbnails: what is left is at least twice as large as what is asked for, so
# that resizing averages as before.
REDUCING_GAP = 2
_IMAGES_CHECKED = 100


@dataclass(frozen=True)
class RowOptions:
    """What is computed of each image, and how.

    Attributes:
        blocks: 1 for the view feature, more for the pooled features of that many last blocks,
            concatenated.
        regions: the regions of the last stage as well.
        refuse_broken: stop at an image that cannot be decoded, instead of leaving it out.
        reduce_jpegs: decode JPEG files at a half, a quarter or an eighth of their size where twice
            the size that the image processor makes is left, and resize them with PyTorch.
        max_image_pixels: images with more pixels are broken.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
    """

    blocks: int = 1
    regions: bool = False
    refuse_broken: bool = False
    reduce_jpegs: bool = True
    max_image_pixels: int = MAX_IMAGE_PIXELS
    batch_size: int = 64
    num_workers: int = 2

    def __post_init__(self) -> None:
        check_least(
            batch_size=(self.batch_size, 1),
            blocks=(self.blocks, 1),
            num_workers=(self.num_workers, 0),
            max_image_pixels=(self.max_image_pixels, 1),
        )
        if self.regions and self.blocks > 1:
            raise ValueError(
                f"--regions come with the view feature, not with --blocks {self.blocks}: leave one "
                f"of them out"
            )


class PartFeatures(NamedTuple):
    """Features of a part of the images.

    Attributes:
        part: places of its images.
        kept: (n,) int64 places of those that could be decoded, ascending.
        values: (n, D) float32 on the CPU, D is 0 if n is.
        regions: (n, N, C) float32 on the CPU if asked for.
        grid: (h, w) of the regions.
        broken: what is wrong with the other images, by their places.
    """

    part: range
    kept: Tensor
    values: Tensor
    regions: Tensor | None
    grid: tuple[int, int] | None
    broken: dict[int, str]


def check_images(source: RowSource, options: RowOptions) -> None:
    """Refuse data without a single image, before a network is loaded for it.

    Args:
        source: the images; those at the start are opened up to the first sound one.
        options: what to compute.

    Raises:
        ValueError: there are few and none of them can be opened.
    """
    problem = ""
    for index in range(min(len(source), _IMAGES_CHECKED)):
        (value,) = source.read_encoded([index])
        # Pillow does not open every array, and tifffile not every picture.
        for read in (decode_stored, open_image):
            try:
                read(value, max_image_pixels=options.max_image_pixels)
                return
            except UndecodableImageError as error:
                problem = problem or f"{row_name(source, index)} ({error})"
    if len(source) <= _IMAGES_CHECKED:
        raise ValueError(
            f"none of the images can be opened, the first is {problem}: check the data"
        )


def compute_parts(
    load_backbone: Callable[[], RegionBackbone],
    processor: Callable[..., Any],
    source: RowSource,
    parts: Sequence[range],
    options: RowOptions,
    accelerator: Accelerator,
) -> Iterator[PartFeatures]:
    """Run a frozen backbone over parts of the images.

    Images are decoded and preprocessed in worker processes, which begin while the backbone is
    loaded, and work on while a part is taken away and written. The device computes a batch while
    the next one is fetched. On a CPU the backbone leaves a core to each worker, unless it is what
    the workers wait for.

    Args:
        load_backbone: gives the backbone, in evaluation mode on the accelerator's device.
        processor: image processor of transformers.
        source: the images.
        parts: places of the images of each part.
        options: what to compute.
        accelerator: device and mixed precision.

    Yields:
        Features of each part, in the order of the parts.

    Raises:
        ValueError: images that cannot be batched, that are broken and refused, or whose features
            are not finite.
    """
    side = reduced_side(processor) if options.reduce_jpegs else None
    loader = load_batches(
        _PreparedImages(source, processor, side, options.max_image_pixels),
        PartBatches(parts, options),
        options.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    batches = iter(loader)
    threads = _SparedThreads(options.num_workers)
    with use_threads(threads.number):
        backbone = load_backbone()
    with torch.no_grad():
        outputs = _run(backbone, batches, options, accelerator, threads)
        for part in parts:
            yield _collect(part, outputs, source, options)


def reduced_side(processor: Callable[..., Any]) -> int | None:
    """Find the pixels that a JPEG file must keep on its shorter side when it is decoded reduced.

    Args:
        processor: image processor of transformers.

    Returns:
        Twice the larger side that the processor resizes to; None if it does not say.
    """
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    sides = [size.get(name) for name in ("shortest_edge", "height", "width")]
    known = [int(side) for side in sides if side]
    return REDUCING_GAP * max(known) if known else None


class _Batch(NamedTuple):
    """Preprocessed images: `pixel_values` (b, 3, H, W), None if all are broken, of the images at
    `indices` (b,); what is wrong with the others; and the processor time of that.
    """

    pixel_values: Tensor | None
    indices: Tensor
    broken: dict[int, str]
    seconds: float
    problem: str | None = None


class _PreparedImages(Dataset[_Batch]):
    """Reads, decodes and preprocesses a whole batch at once, in a worker."""

    def __init__(
        self,
        source: RowSource,
        processor: Callable[..., Any],
        least_side: int | None,
        max_image_pixels: int,
    ) -> None:
        self.source = source
        self.processor = processor
        self.least_side = least_side
        self.max_image_pixels = max_image_pixels

    def __getitems__(self, indices: list[int]) -> _Batch:
        # With the threads that read a shard.
        start = time.process_time()
        encoded = self.source.read_encoded(indices)
        prepared: list[Tensor] = []
        kept: list[int] = []
        broken: dict[int, str] = {}
        problem = None
        pixel_values: Tensor | None = None
        try:
            # Pixels as they were decoded, of one image at a time: those of a batch may fill memory.
            for index, value in zip(indices, encoded, strict=True):
                try:
                    image, is_reduced = self._decode(value)
                except UndecodableImageError as error:
                    broken[index] = str(error)
                else:
                    prepared.append(preprocess_image(self.processor, image, exact=not is_reduced))
                    kept.append(index)
            if prepared:
                pixel_values = join_images(prepared)
        except ValueError as error:
            # An exception would reach the main process wrapped in the worker's traceback.
            problem = (
                f"the image processor cannot batch images {indices[0]} to {indices[-1]} "
                f"({one_line(error)}): use one that crops or resizes to a fixed size"
            )
        kept_indices = torch.tensor(kept, dtype=torch.int64)
        return _Batch(pixel_values, kept_indices, broken, time.process_time() - start, problem)

    def _decode(self, value: object) -> tuple[Image.Image | np.ndarray | Tensor, bool]:
        """Decode an image, and say whether at a part of its size."""
        limit = self.max_image_pixels
        if getattr(self.processor, "keeps_values", False):
            return decode_stored(value, max_image_pixels=limit), False
        content = read_content(value)
        image = open_image(content, max_image_pixels=limit)
        reduction = 1
        if self.least_side is not None and is_jpeg(image):
            spare = min(image.size) / self.least_side
            reduction = next((factor for factor in JPEG_REDUCTIONS if spare >= factor), 1)
        if reduction > 1:
            image.draft(image.mode, (image.width // reduction, image.height // reduction))
        elif isinstance(content, bytes) and resizes_tensors(self.processor):
            pixels = decode_jpeg_pixels(image, content)
            if pixels is not None:
                return pixels, False
        return finish_image(image), reduction > 1


class _SparedThreads:
    """Threads that compute beside workers: as many as leave them a core each, while that is fast
    enough for what they prepare; then all of this process.

    Args:
        workers: number of workers.

    Attributes:
        number: threads for the next batch.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._all = torch.get_num_threads()
        # A first batch takes longer: memory and kernels are new.
        self._slack = 2.0
        self.number = max(1, self._all - workers)

    def judge(self, computing: float, preparing: float) -> None:
        """Compare how long one batch was computed by each thread, and prepared by one worker, in
        seconds of processor time: what else the machine does changes it little.
        """
        if computing * self._workers > self._slack * preparing:
            self.number = self._all
        self._slack = 1.0


class PartBatches:
    """Places of the images of each batch.

    Batches of a part are ordered such that each worker, which takes every n-th of them, reads
    neighbors, and with them as few chunks of a stream as can be.

    Args:
        parts: places of the images of each part.
        options: size of a batch and number of workers.
    """

    def __init__(self, parts: Sequence[range], options: RowOptions) -> None:
        self.parts = parts
        self.batch_size = options.batch_size
        self.workers = max(1, options.num_workers)

    def __iter__(self) -> Iterator[list[int]]:
        for part in self.parts:
            batches = [
                part[first : first + self.batch_size]
                for first in range(0, len(part), self.batch_size)
            ]
            stretch = -(-len(batches) // self.workers)
            for place in range(stretch):
                yield from map(list, batches[place::stretch])


_Output = tuple[_Batch, Tensor | None, Tensor | None, tuple[int, int] | None]


def _run(
    backbone: RegionBackbone,
    batches: Iterator[_Batch],
    options: RowOptions,
    accelerator: Accelerator,
    threads: _SparedThreads,
) -> Iterator[_Output]:
    """Batches with view features and regions on the device, each given out when the next one has
    been started.
    """
    waiting: _Output | None = None
    for batch in batches:
        if batch.problem is not None:
            raise ValueError(batch.problem)
        start = time.thread_time()
        with use_threads(threads.number):
            started = _start(backbone, batch, options, accelerator)
        if accelerator.device.type == "cpu":
            threads.judge(time.thread_time() - start, batch.seconds)
        if waiting is not None:
            yield waiting
        waiting = started
    if waiting is not None:
        yield waiting


def _start(
    backbone: RegionBackbone, batch: _Batch, options: RowOptions, accelerator: Accelerator
) -> _Output:
    if batch.pixel_values is None:
        return batch, None, None, None
    pixel_values = batch.pixel_values.to(accelerator.device, non_blocking=True)
    with accelerator.autocast():
        if options.blocks > 1:
            return batch, backbone.pooled_blocks(pixel_values, options.blocks), None, None
        features = backbone(pixel_values)
    if not options.regions:
        return batch, features.pooled, None, None
    return batch, features.pooled, features.regions, features.grid


def _collect(
    part: range, outputs: Iterator[_Output], source: RowSource, options: RowOptions
) -> PartFeatures:
    """Put the batches of a part together."""
    values = regions = grid = None
    is_kept = torch.zeros(len(part), dtype=torch.bool)
    broken: dict[int, str] = {}
    while int(is_kept.sum()) + len(broken) < len(part):
        batch, batch_values, batch_regions, batch_grid = next(outputs)
        broken |= batch.broken
        if broken and options.refuse_broken:
            first = min(broken)
            raise ValueError(
                f"{row_name(source, first)} cannot be decoded ({broken[first]}): repair or remove "
                f"it, or leave such images out with --broken skip"
            )
        if batch_values is None:
            continue
        places = batch.indices - part.start
        rows = batch_values.float().cpu()
        _check_finite_features(rows, batch.indices, source)
        if values is None:
            values = torch.empty(len(part), rows.shape[1])
        values[places] = rows
        is_kept[places] = True
        if batch_regions is not None:
            if regions is None:
                regions = torch.empty(len(part), *batch_regions.shape[1:])
                grid = batch_grid
            _check_grid(batch_grid, grid)
            regions[places] = batch_regions.float().cpu()
    kept = is_kept.nonzero()[:, 0]
    if values is None:
        values = torch.empty(0, 0)
    elif len(kept) < len(part):
        values, regions = values[kept], None if regions is None else regions[kept]
    return PartFeatures(part, kept + part.start, values, regions, grid, broken)


def _check_finite_features(rows: Tensor, indices: Tensor, source: RowSource) -> None:
    faulty = (~torch.isfinite(rows).all(dim=1)).nonzero()[:, 0]
    if len(faulty):
        first = row_name(source, int(indices[faulty[0]]))
        raise ValueError(
            f"the features of {first} are not finite: check the weights, and try mixed precision "
            f"'no' or 'bf16'"
        )


def _check_grid(found: tuple[int, int] | None, expected: tuple[int, int] | None) -> None:
    if found != expected:
        raise ValueError(
            f"images have grids of {expected} and of {found} regions: use an image processor that "
            f"crops or resizes to one size, or leave --regions out"
        )
