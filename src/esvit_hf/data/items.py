"""Images of a data set of PyTorch, and of lists in memory, by index."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.data.decoding import UndecodableImageError, decode_image
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import USUAL_IMAGE_COLUMNS

__all__ = ["ItemSource", "Items"]


class Items(Protocol):
    """What can be asked for its length and its items: a map-style data set, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ItemSource:
    """Images for pretraining, each made by a data set of the user when it is needed.

    Args:
        items: map-style data set; an item is an image, a tuple that starts with one, or a mapping
            with one. An image is anything that
            :func:`esvit_hf.data.decoding.decode_image` takes.
        image_column: key of the image in items that are mappings; a usual name is found if None.
        name: what to call the data in messages.
        max_image_pixels: the first image is refused if it has more pixels.

    Raises:
        ValueError: there are no items, or the first one is no image.
    """

    def __init__(
        self,
        items: Items,
        *,
        image_column: str | None = None,
        name: str = "in-memory data set",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self.name = name
        self._items = items
        self._image_column = image_column
        if len(items) == 0:
            raise ValueError(f"{name} has no images")
        try:
            decode_image(self._image(0), max_image_pixels=max_image_pixels)
        except UndecodableImageError as error:
            raise ValueError(
                f"the first item of {name} is no image ({error}): items must be images, tuples "
                f"that start with one, or mappings with one; leave out transforms to tensors"
            ) from error

    def __len__(self) -> int:
        return len(self._items)

    @property
    def description(self) -> str:
        """One line for logs: the name and the number of images."""
        return f"{self.name}: {len(self)} images"

    def describe(self, index: int) -> str:
        """Name an image in messages."""
        return f"image {index}"

    def sampler(
        self, batch_size_per_process: int, seed: int, *, num_workers: int, **place: int
    ) -> EpochSampler:
        """Give the order in which one process reads the images, as `ImageSource.sampler`."""
        return EpochSampler(len(self), batch_size_per_process, seed, **place)

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """Fetch images, for :func:`esvit_hf.data.decoding.decode_image`.

        Args:
            indices: places of the images, each in [0, len).
        """
        return [self._image(int(index)) for index in indices]

    def _image(self, index: int) -> object:
        item = self._items[index]
        if isinstance(item, Mapping) and "bytes" not in item:
            names = [self._image_column] if self._image_column else USUAL_IMAGE_COLUMNS
            found = [name for name in names if name in item]
            if not found:
                raise ValueError(
                    f"items of {self.name} have no image under {', '.join(names)}: set "
                    f"data.image_column to one of: {', '.join(map(str, item))}"
                )
            return item[found[0]]
        return item[0] if isinstance(item, tuple) else item
