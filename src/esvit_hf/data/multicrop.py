"""Several random crops of every image, made in the workers of a DataLoader and ready for the
device.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.color import (
    PARAMETER_LAYOUT,
    ColorParameters,
    ColorPlan,
    ColorSample,
    pack_color_samples,
)
from esvit_hf.data.cropping import Crop, cut_crops, jpeg_reduction, reduce_box
from esvit_hf.data.decoding import (
    UndecodableImageError,
    decode_stored,
    finish_image,
    is_jpeg,
    open_image,
    upright_size,
)
from esvit_hf.data.views import ViewSpec, expand_views
from esvit_hf.models.image_processing_esvit import convert_channels

REPLACEMENT_ATTEMPTS = 20
# The share of broken images is not judged before a process has read this many, or as many as there
# are.
MIN_JUDGED_IMAGES = 1000
FIELD_BITS = 40


class TooManyBrokenImagesError(ValueError):
    """More images than allowed cannot be decoded."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error again with the worker's traceback as its message;
        # only its end is ours.
        super().__init__(message.strip().split(f"{type(self).__name__}: ")[-1])


@dataclass(frozen=True)
class CropBatch:
    """All crops of B images, with their places and the parameters of their color augmentation.

    Everything lies in one buffer, so that a batch crosses processes, and then to the device, in one
    piece.

    Attributes:
        buffer: (bytes,) uint8: indices, parameters, places, crops.
        num_images: B.
        sizes: side of each view in pixels.
        num_channels: channels C of the crops.
        dtype: of the crops.
        plans: what the host knows about the color parameters of each view.
        broken: index and reason of each image of this batch that could not be decoded and was
            replaced.
    """

    buffer: Tensor
    num_images: int
    sizes: tuple[int, ...]
    plans: tuple[ColorPlan, ...] = ()
    num_channels: int = 3
    dtype: torch.dtype = torch.uint8
    broken: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def allocate(
        cls,
        num_images: int,
        sizes: Sequence[int],
        num_channels: int = 3,
        dtype: torch.dtype = torch.uint8,
    ) -> "CropBatch":
        """Reserve the memory of a batch.

        Args:
            num_images: B.
            sizes: side of each view in pixels.
            num_channels: channels of the crops.
            dtype: of the crops.

        Returns:
            A batch with undefined content, on the CPU.
        """
        layout = _layout(num_images, sizes, num_channels, dtype)
        buffer = torch.empty(sum(_num_bytes(*part) for part in layout), dtype=torch.uint8)
        return cls(buffer, num_images, tuple(sizes), num_channels=num_channels, dtype=dtype)

    @property
    def indices(self) -> Tensor:
        """(B,) int64: index of each image in the source; of the replacement where an image was
        broken.
        """
        return self._parts()[0]

    @property
    def boxes(self) -> Tensor:
        """(V, B, 4) float32: top, left, height and width of each crop, in pixels of its image as it
        was decoded.
        """
        return self._parts()[-len(self.sizes) - 2]

    @property
    def mirrored(self) -> Tensor:
        """(V, B) bool: whether left and right of each crop change places."""
        return self._parts()[-1]

    @property
    def crops(self) -> list[Tensor]:
        """One (B, C, S, S) tensor a view, values 0..255, the teacher's views first."""
        return self._parts()[-len(self.sizes) - 1 : -1]

    @property
    def parameters(self) -> list[ColorParameters]:
        """Parameters of each view for :func:`esvit_hf.data.color.augment`."""
        return [
            ColorParameters(**tensors, plan=plan)
            for tensors, plan in zip(self._parameter_tensors(), self.plans, strict=True)
        ]

    def fill_parameters(
        self,
        indices: Sequence[int],
        places: Sequence[Sequence[Crop]],
        samples: Sequence[Sequence[ColorSample]],
        *,
        gray_images: bool,
    ) -> "CropBatch":
        """Write the indices, the places of the crops and the color parameters.

        Args:
            indices: of the images.
            places: for each view, one a crop.
            samples: for each view, one a crop.
            gray_images: whether all images are grayscale.

        Returns:
            The same memory with its plans.
        """
        packed = [pack_color_samples(view, gray_images=gray_images) for view in samples]
        self.indices.copy_(torch.tensor(list(indices)))
        self.boxes.copy_(torch.tensor([[crop.box for crop in view] for view in places]))
        self.mirrored.copy_(torch.tensor([[crop.mirrored for crop in view] for view in places]))
        for tensors, parameters in zip(self._parameter_tensors(), packed, strict=True):
            for name, tensor in tensors.items():
                tensor.copy_(getattr(parameters, name))
        return replace(self, plans=tuple(parameters.plan for parameters in packed))

    def _parts(self) -> list[Tensor]:
        layout = _layout(self.num_images, self.sizes, self.num_channels, self.dtype)
        pieces = self.buffer.split([_num_bytes(*part) for part in layout])
        return [
            piece.view(dtype).view(shape)
            for piece, (dtype, shape) in zip(pieces, layout, strict=True)
        ]

    def _parameter_tensors(self) -> list[dict[str, Tensor]]:
        """Tensors of the color parameters of each view by name."""
        views = len(self.sizes)
        parts = self._parts()[1 : -views - 2]
        return [
            dict(zip(PARAMETER_LAYOUT, parts[view::views], strict=True)) for view in range(views)
        ]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CropBatch":
        """Copy the batch to a device.

        Args:
            device: where to.
            non_blocking: do not wait for the copy; needs pinned memory.

        Returns:
            The batch on the device.
        """
        return replace(self, buffer=self.buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "CropBatch":
        """Copy the batch to page-locked memory; a DataLoader calls this."""
        return replace(self, buffer=self.buffer.pin_memory())


class EncodedImages(Protocol):
    """Images by index, still encoded: an ImageSource or a StreamSource."""

    def __len__(self) -> int: ...

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """Fetch images as they are stored."""
        ...


class MultiCropDataset(Dataset[CropBatch]):
    """Random crops of the images of a source, by batches of (epoch, index) keys.

    All randomness of an image comes from (seed, epoch, index): crops do not depend on the number of
    workers or processes, on the batch an image is in, or on where a run was resumed. A broken image
    is replaced by another one, chosen in the same way, and reported in ``CropBatch.broken``.

    Args:
        source: the images.
        views: what to crop; the teacher's views come first in a batch.
        seed: from 0 on.
        max_broken_fraction: largest share of broken images among those a worker has read; unless it
            is 0, one is always allowed.
        reduce_jpegs: decode JPEGs at a half, a quarter or an eighth of their size where every crop
            is still to be made smaller than that.
        max_image_pixels: images with more pixels count as broken.
        num_channels: channels C of the crops.
        value_range: smallest and largest value of a pixel; with it, or with another number of
            channels than three, crops are float32, as
            :func:`esvit_hf.models.image_processing_esvit.convert_channels` makes them.

    Raises:
        ValueError: a setting is out of range, or no view is for the teacher.
    """

    def __init__(
        self,
        source: EncodedImages,
        views: Sequence[ViewSpec],
        seed: int,
        max_broken_fraction: float = 0.01,
        reduce_jpegs: bool = True,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        num_channels: int = 3,
        value_range: Sequence[float] | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}; set it to 0 or more")
        if not 0 <= max_broken_fraction <= 1:
            raise ValueError(
                f"max_broken_fraction is {max_broken_fraction}; set it to a number from 0 to 1"
            )
        self.source = source
        self.views = expand_views(views)
        self.seed = seed
        self.max_broken_fraction = max_broken_fraction
        self.reduce_jpegs = reduce_jpegs
        self.max_image_pixels = max_image_pixels
        self.num_channels = num_channels
        self.value_range = value_range
        self.keeps_values = num_channels != 3 or value_range is not None
        self._num_read = 0
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[tuple[int, int]]) -> CropBatch:
        """Make one batch.

        Args:
            keys: (epoch, index) of each image.

        Returns:
            The batch, complete: no collation is needed.

        Raises:
            TooManyBrokenImagesError: more than the allowed share of the images cannot be decoded.
            IndexError: an index is out of range.
        """
        batch = CropBatch.allocate(
            len(keys),
            [view.size for view in self.views],
            self.num_channels,
            torch.float32 if self.keeps_values else torch.uint8,
        )
        crops = batch.crops
        values = self.source.read_encoded([index for _, index in keys])
        made = [
            self._crop_or_replace(
                epoch, index, value, [crop[place] for crop in crops], batch.broken
            )
            for place, ((epoch, index), value) in enumerate(zip(keys, values, strict=True))
        ]
        self._judge(len(keys), batch.broken)
        indices, places, colors, gray = zip(*made, strict=True)
        return batch.fill_parameters(
            indices,
            list(zip(*places, strict=True)),
            list(zip(*colors, strict=True)),
            gray_images=all(gray),
        )

    def _crop_or_replace(
        self,
        epoch: int,
        index: int,
        value: object,
        outputs: Sequence[Tensor],
        broken: list[tuple[int, str]],
    ) -> tuple[int, list[Crop], list[ColorSample], bool]:
        """Crop one image, or the first of its replacements that can be decoded; report the others
        in `broken`.
        """
        chosen = index
        for attempt in range(REPLACEMENT_ATTEMPTS):
            generator = _sample_generator(self.seed, epoch, index, attempt)
            if attempt > 0:
                chosen = int(generator.random() * len(self))
                value = self.source.read_encoded([chosen])[0]
            try:
                return chosen, *self._crop(value, generator, outputs)
            except UndecodableImageError as error:
                broken.append((chosen, str(error)))
        raise TooManyBrokenImagesError(
            f"{REPLACEMENT_ATTEMPTS} images in a row cannot be decoded, the last one is "
            f"{self._describe(chosen)}: {broken[-1][1]}; check the data and --data.image_column"
        )

    def _crop(
        self, value: object, generator: random.Random, outputs: Sequence[Tensor]
    ) -> tuple[list[Crop], list[ColorSample], bool]:
        """Write all crops of one image; return their places in it as it was decoded, their color
        operations and whether the image is grayscale.
        """
        if self.keeps_values:
            return self._crop_stored(value, generator, outputs)
        image = open_image(value, max_image_pixels=self.max_image_pixels)
        width, height = upright_size(image)
        samples = [view.sample(generator, width, height) for view in self.views]
        crops = [sample.crop for sample in samples]
        reduction = 1
        # An image of the caller may be decoded already, and must not lose its pixels.
        if self.reduce_jpegs and is_jpeg(image) and not isinstance(value, Image.Image):
            reduction = jpeg_reduction(
                [crop.box for crop in crops], [view.size for view in self.views]
            )
        size = image.width // reduction, image.height // reduction
        if reduction > 1 and image.draft(None, size) is None:
            reduction = 1
        image = finish_image(image, keep_grayscale=True)
        if reduction > 1:
            crops = [
                Crop(reduce_box(crop.box, reduction, *image.size), crop.mirrored) for crop in crops
            ]
        cut_crops(image, crops, outputs)
        return crops, [sample.color for sample in samples], image.mode == "L"

    def _crop_stored(
        self, value: object, generator: random.Random, outputs: Sequence[Tensor]
    ) -> tuple[list[Crop], list[ColorSample], bool]:
        """As `_crop`, for images that keep their values."""
        stored = decode_stored(value, max_image_pixels=self.max_image_pixels)
        try:
            pixels = convert_channels(stored, self.num_channels, self.value_range)
        except ValueError as error:
            raise UndecodableImageError(str(error)) from error
        height, width = pixels.shape[:2]
        samples = [view.sample(generator, width, height) for view in self.views]
        crops = [sample.crop for sample in samples]
        cut_crops(pixels, crops, outputs)
        return crops, [sample.color for sample in samples], False

    def _describe(self, index: int) -> str:
        """Name an image in messages, as the source does if it can."""
        name: str = getattr(self.source, "describe", "image {}".format)(index)
        return name

    def _judge(self, num_images: int, broken: list[tuple[int, str]]) -> None:
        self._num_read += num_images + len(broken)
        self._broken |= dict(broken)
        # Later epochs read the same images again.
        num_images_read = min(self._num_read, len(self))
        allowed = self.max_broken_fraction * num_images_read
        if self.max_broken_fraction > 0:
            # One file must not end a run on few images.
            allowed = max(1, allowed)
        if num_images_read >= min(MIN_JUDGED_IMAGES, len(self)) and len(self._broken) > allowed:
            index, reason = list(self._broken.items())[-1]
            raise TooManyBrokenImagesError(
                f"{len(self._broken)} of {num_images_read} images cannot be decoded, more than the "
                f"allowed share of {self.max_broken_fraction}, the last one is "
                f"{self._describe(index)}: {reason}; repair the data or raise "
                f"--data.max_broken_fraction"
            )


def make_multicrop_loader(
    dataset: MultiCropDataset,
    sampler: Sampler[list[tuple[int, int]]],
    *,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    worker_init_fn: Callable[[int], None] | None = None,
) -> DataLoader[CropBatch]:
    """Build the loader that makes batches of crops in worker processes.

    Args:
        dataset: makes the batches.
        sampler: yields the keys of each batch, as :class:`esvit_hf.data.sampling.EpochSampler`
            does.
        num_workers: processes that decode and crop; 0 to do it in this one.
        prefetch_factor: batches that each worker keeps ready.
        worker_init_fn: called once in every worker with its number.

    Returns:
        The loader; it yields :class:`CropBatch` objects, in page-locked memory if there is an
        accelerator.

    Raises:
        ValueError: `num_workers` or `prefetch_factor` is out of range.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; set it to 0 or more")
    if prefetch_factor < 1:
        raise ValueError(f"prefetch_factor is {prefetch_factor}; set it to 1 or more")
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_keep_batch,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=worker_init_fn,
        pin_memory=torch.accelerator.is_available(),
        # Crops do not depend on it; without one of its own, a loader would draw from torch's global
        # generator.
        generator=torch.Generator(),
    )


def _keep_batch(batch: Any) -> Any:
    # A function of this module, as a lambda could not travel to spawned workers.
    return batch


def _layout(
    num_images: int, sizes: Sequence[int], num_channels: int, dtype: torch.dtype
) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of what lies in a batch's buffer: indices, each parameter of all views, boxes,
    crops, whether they are mirrored.

    Wider numbers come first, so that all are aligned.
    """
    parameters = [
        (dtype, (*shape, num_images)) for dtype, shape in PARAMETER_LAYOUT.values() for _ in sizes
    ]
    crops = [(dtype, (num_images, num_channels, size, size)) for size in sizes]
    boxes, mirrored = (len(sizes), num_images, 4), (len(sizes), num_images)
    return [
        *((torch.int64, (num_images,)), *parameters, (torch.float32, boxes)),
        *(*crops, (torch.bool, mirrored)),
    ]


def _num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def _sample_generator(seed: int, epoch: int, index: int, attempt: int) -> random.Random:
    """Generator of one image in one epoch; the numbers lie side by side in its seed, so that no two
    cases share one.
    """
    packed = 0
    for number in (seed, epoch, index, attempt):
        packed = (packed << FIELD_BITS) | number
    return random.Random(packed)
