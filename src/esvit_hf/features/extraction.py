"""Frozen features of every image of a data set, one row an image, on one process or many."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.common.accelerator_state import any_process
from esvit_hf.common.errors import one_line
from esvit_hf.common.files import expand_home
from esvit_hf.common.limits import check_least
from esvit_hf.common.places import check_model_place
from esvit_hf.data.batch_loading import load_batches
from esvit_hf.data.decoding import BrokenImage, refuse_broken_images
from esvit_hf.data.labels import names_in_common
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.preprocessing import join_images, preprocess_image

__all__ = [
    "Features",
    "ReadableImages",
    "check_matrices",
    "compute_features",
    "load_image_processor",
    "shared_labels",
]


@dataclass(frozen=True)
class Features:
    """Features of a data set, in its order.

    Attributes:
        values: (N, D) float32 on the CPU.
        labels: (N,) int64 on the CPU, None without labels.
        block_widths: columns of each block in `values`, from the earliest block to the last; their
            sum is D.
    """

    values: Tensor
    labels: Tensor | None
    block_widths: tuple[int, ...]

    def last_blocks(self, count: int) -> "Features":
        """Features of fewer blocks.

        Args:
            count: number of last blocks, from 1 to those that were extracted.

        Returns:
            The same images, `values` being a view of the blocks' columns.
        """
        assert 1 <= count <= len(self.block_widths), (count, self.block_widths)
        widths = self.block_widths[-count:]
        return Features(self.values[:, -sum(widths) :], self.labels, widths)


class ReadableImages(Protocol):
    """What features are extracted from: an `ImageSource`, or the same images changed."""

    @property
    def labels(self) -> np.ndarray | None:
        """(images,) int64 class indices, None without labels."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Image.Image | BrokenImage]:
        """Fetch images by index, in mode RGB."""

    def read_stored(self, indices: Sequence[int]) -> list[Image.Image | np.ndarray | BrokenImage]:
        """Fetch images by index as they are stored, for a processor that keeps values."""

    def describe(self, index: int) -> str:
        """Name an image in messages."""


def compute_features(
    backbone: RegionBackbone,
    source: ReadableImages,
    processor: Callable[..., Any],
    *,
    blocks: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> Features:
    """Run a frozen backbone over all images.

    Images are decoded and preprocessed in worker processes. Whole batches are dealt out to the
    processes of the accelerator and the rows are placed by image index, so the numbers do not
    depend on the number of processes. Every process holds the complete result: N * D * 4 bytes of
    CPU memory each.

    After the first broken image the rest is only read, without the network, for an error that names
    all broken images.

    Args:
        backbone: moved to the accelerator's device; used in evaluation mode and given back in the
            mode it came in.
        source: the images.
        processor: image processor of transformers: a list of PIL images to `pixel_values` (B, 3, H,
            W).
        blocks: 1 for the view feature; more for the pooled features of that many last blocks,
            concatenated.
        batch_size: images a process sees at once.
        num_workers: worker processes for each process.
        accelerator: device, processes and mixed precision; by default what the environment says.

    Returns:
        Features of every image.

    Raises:
        ValueError: a setting below its minimum, images that cannot be decoded or batched, features
            that are not finite.
    """
    check_least(batch_size=(batch_size, 1), blocks=(blocks, 1), num_workers=(num_workers, 0))
    accelerator = accelerator or Accelerator()
    was_training = backbone.training
    backbone.to(accelerator.device).eval()
    try:
        values, block_widths = _collect(
            backbone, source, processor, blocks, batch_size, num_workers, accelerator
        )
    finally:
        backbone.train(was_training)
    faulty = (~torch.isfinite(values).all(dim=1)).nonzero()[:, 0]
    if len(faulty):
        raise ValueError(
            f"features of {len(faulty)} of {len(source)} images are not finite, the first is "
            f"{source.describe(int(faulty[0]))}: check the weights, and try mixed precision 'no' "
            f"or 'bf16'"
        )
    labels = None if source.labels is None else torch.from_numpy(source.labels).long()
    return Features(values, labels, block_widths)


def load_image_processor(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Callable[..., Any]:
    """Load the image processor saved with a model.

    Args:
        name_or_path: Hub name or folder.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run processing code that the repository ships.

    Returns:
        The processor.

    Raises:
        ValueError: there is none.
    """
    check_model_place(name_or_path, revision=revision, is_network=False)
    try:
        processor: Callable[..., Any] = AutoImageProcessor.from_pretrained(
            expand_home(name_or_path), revision=revision, trust_remote_code=trust_remote_code
        )
    # A file of JSON may hold anything.
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        folder = Path(expand_home(name_or_path))
        is_missing = folder.is_dir() and not (folder / IMAGE_PROCESSOR_NAME).is_file()
        reason = f"the folder holds no {IMAGE_PROCESSOR_NAME}" if is_missing else one_line(error)
        raise ValueError(
            f"{name_or_path!r} has no image processor that can be loaded ({reason}): name a model "
            f"or folder that has one with --processor"
        ) from error
    return processor


def shared_labels(train: ImageSource, test: ImageSource) -> tuple[Tensor, Tensor]:
    """Labels of two sources in one numbering.

    Classes are matched by name, because each source may number only the classes that it holds.

    Args:
        train: images whose numbering is kept.
        test: images whose labels are renumbered; classes unknown to `train` get numbers after its
            own.

    Returns:
        int64 labels of train (N,) and test (M,) on the CPU.

    Raises:
        ValueError: a source has no labels.
    """
    for source in (train, test):
        if source.labels is None:
            raise ValueError(
                f"{source.description}: name the column with the labels (--label_column), or give "
                f"each class a folder"
            )
    assert train.classes is not None and test.classes is not None
    numbers = {name: number for number, name in enumerate(train.classes.names)}
    names = names_in_common(train.classes, test.classes)
    renumbered = [numbers.setdefault(name, len(numbers)) for name in names]
    train_labels, test_labels = map(torch.from_numpy, (train.classes.numbers, test.classes.numbers))
    return train_labels, torch.tensor(renumbered)[test_labels]


def check_matrices(train: Tensor, test: Tensor) -> None:
    """Check that two sets of features can be compared.

    Args:
        train: (N, D).
        test: (M, D).

    Raises:
        ValueError: another shape, no image, or values that are not finite.
    """
    if (
        train.ndim != 2
        or test.ndim != 2
        or train.shape[1] != test.shape[1]
        or not train.numel()
        or not test.numel()
    ):
        raise ValueError(
            f"train has shape {tuple(train.shape)} and test {tuple(test.shape)}: both must be "
            f"(images, D), one D, with at least one image"
        )
    for name, features in (("train", train), ("test", test)):
        # Extremes carry NaN and infinity along, without a mask the size of the features.
        if not torch.isfinite(torch.stack(torch.aminmax(features))).all():
            raise ValueError(
                f"{name} features are not all finite: look for the images that cause NaN or "
                f"infinity"
            )


@dataclass(frozen=True)
class _Batch:
    """Preprocessed images: `pixel_values` (B, 3, H, W) or None if all are broken, `indices`
    (B,).
    """

    pixel_values: Tensor | None
    indices: Tensor
    broken: list[BrokenImage]
    problem: str | None = None

    def pin_memory(self) -> "_Batch":
        """Let the DataLoader page-lock the images."""
        pinned = None if self.pixel_values is None else self.pixel_values.pin_memory()
        return _Batch(pinned, self.indices, self.broken, self.problem)


_READ_AT_ONCE = 4
"""Images whose decoded pixels a worker holds: some 40 MB each for a photograph of a phone."""


class _PreprocessedImages(Dataset[_Batch]):
    """Reads and preprocesses a whole batch at once, in a worker."""

    def __init__(self, source: ReadableImages, processor: Callable[..., Any]):
        self.source = source
        self.processor = processor

    def __getitems__(self, indices: list[int]) -> _Batch:
        kept: list[int] = []
        broken: list[BrokenImage] = []
        problem = None
        pixels: Tensor | None = None
        try:
            images = []
            for index, image in zip(indices, self._read_each(indices), strict=True):
                if isinstance(image, BrokenImage):
                    broken.append(image)
                else:
                    kept.append(index)
                    images.append(preprocess_image(self.processor, image))
            pixels = join_images(images) if images else None
        except ValueError as error:
            # An exception would reach the main process wrapped in the worker's traceback.
            first, last = (self.source.describe(indices[place]) for place in (0, -1))
            problem = (
                f"the image processor cannot batch {first} to {last} ({one_line(error)}): use one "
                f"that crops or resizes to a fixed size"
            )
        return _Batch(pixels, torch.tensor(kept, dtype=torch.int64), broken, problem)

    def _read_each(self, indices: list[int]) -> Iterator[Image.Image | np.ndarray | BrokenImage]:
        """Yield the images in their order; the pixels of a few are in memory at once."""
        keeps_values = getattr(self.processor, "keeps_values", False)
        read = self.source.read_stored if keeps_values else self.source.read
        for start in range(0, len(indices), _READ_AT_ONCE):
            yield from read(indices[start : start + _READ_AT_ONCE])


def _collect(
    backbone: RegionBackbone,
    source: ReadableImages,
    processor: Callable[..., Any],
    blocks: int,
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
) -> tuple[Tensor, tuple[int, ...]]:
    """Features (N, D) by image index, and the width of each block."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    batches = [
        list(range(start, min(start + batch_size, len(source))))
        for start in range(0, len(source), batch_size)
    ]
    loader = iter(
        load_batches(
            _PreprocessedImages(source, processor),
            batches[rank::processes],
            num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
    )
    values: Tensor | None = None
    block_widths: tuple[int, ...] = ()
    filled = torch.zeros(len(source), dtype=torch.bool)
    broken: list[BrokenImage] = []
    problems: list[str] = []
    is_refused = False
    progress = tqdm(
        total=len(source),
        desc="features",
        unit="image",
        leave=False,
        disable=not accelerator.is_main_process,
    )
    with torch.no_grad(), progress:
        for _ in range(math.ceil(len(batches) / processes)):
            batch = next(loader, None)
            rows, indices = (
                torch.empty(0, 0, device=accelerator.device),
                torch.empty(0, dtype=torch.int64),
            )
            if batch is not None:
                broken += batch.broken
                if batch.problem is not None:
                    problems.append(batch.problem)
                if batch.pixel_values is not None and not (broken or is_refused):
                    pixel_values = batch.pixel_values.to(accelerator.device, non_blocking=True)
                    with accelerator.autocast():
                        if blocks == 1:
                            parts = [backbone(pixel_values).pooled]
                        else:
                            parts = backbone.block_features(pixel_values, blocks)
                    block_widths = tuple(part.shape[1] for part in parts)
                    rows, indices = torch.cat(parts, dim=1).float(), batch.indices
            # All processes stop together: one that left alone would let the others wait for it.
            is_refused = is_refused or any_process(bool(broken or problems), accelerator)
            if is_refused and any_process(bool(problems), accelerator):
                break
            if is_refused:
                progress.update(min(processes * batch_size, len(source) - progress.n))
                continue
            if processes > 1:
                rows, indices = _gather_rows(rows, indices, batch_size, accelerator)
            assert len(rows), "a round of batches without an image"
            if values is None:
                values = torch.empty(len(source), rows.shape[1])
            values[indices] = rows.cpu()
            filled[indices] = True
            progress.update(len(rows))
    if processes > 1:
        broken, problems = (gather_object(found) for found in (broken, problems))
        # A process without images of its own learns the widths from the others.
        block_widths = max(gather_object([block_widths]), key=len)
    if problems:
        raise ValueError(problems[0])
    refuse_broken_images(sorted(broken, key=lambda image: image.index), len(source))
    assert filled.all(), "an image has neither a feature nor a fault"
    return (torch.empty(len(source), 0) if values is None else values), block_widths


def _gather_rows(
    rows: Tensor, indices: Tensor, batch_size: int, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Rows (b_r, D) and indices (b_r,) of all processes r, each with at most `batch_size` rows."""
    device = accelerator.device
    # A process without images of its own learns the width from the others.
    width = int(accelerator.gather(torch.tensor([rows.shape[1]], device=device)).max())
    padded = torch.zeros(batch_size, width, device=device)
    padded_indices = torch.full((batch_size,), -1, dtype=torch.int64, device=device)
    if len(rows):
        padded[: len(rows)] = rows
        padded_indices[: len(rows)] = indices.to(device)
    all_rows, all_indices = accelerator.gather(padded), accelerator.gather(padded_indices).cpu()
    kept = all_indices >= 0
    return all_rows.cpu()[kept], all_indices[kept]
