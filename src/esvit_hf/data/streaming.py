"""Images read from shards while they are needed, a bounded number of them in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from esvit_hf.data.sampling import StreamSampler
from esvit_hf.data.shards import ShardIndex, open_index, shard_features
from esvit_hf.data.sources import find_image_column

READING_THREADS = 8


class StreamSource:
    """Images by index, like :class:`esvit_hf.data.sources.ImageSource`, for shards that are too
    large or too far away.

    An image brings along the chunk of the shard it is in. The chunks read last stay in memory,
    still encoded: as many as hold `shuffle_buffer` images, and two more. Any index can be read; in
    the order of :class:`esvit_hf.data.sampling.StreamSampler` a chunk is read once an epoch, or
    twice where two readers share it.

    Args:
        index: the shards.
        shuffle_buffer: images that are shuffled together.
        image_column: column (parquet) or field (tar) with the images; found by its type or name if
            None.
        name: what to call the data in messages.

    Attributes:
        image_column: the column or field with the images.

    Raises:
        ValueError: the column is missing, ambiguous or of another kind.
    """

    labels = None

    def __init__(
        self,
        index: ShardIndex,
        *,
        shuffle_buffer: int,
        image_column: str | None = None,
        name: str = "stream",
    ) -> None:
        self.index = index
        self.shuffle_buffer = shuffle_buffer
        features = shard_features(index)
        alternatives = (image_column or "").split(";")
        chosen = next((column for column in alternatives if column in features), image_column)
        found = find_image_column(features, chosen, name)
        self.image_column = image_column or found
        self._length = int(index.sizes.sum())
        self._name = name
        self._capacity = shuffle_buffer + 2 * int(index.sizes.max())
        self._cache: OrderedDict[int, list[object]] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    @property
    def description(self) -> str:
        """One line for logs: the name, the number of images and shards, and what a worker keeps in
        memory.
        """
        return (
            f"{self._name}: {len(self)} images in {len(self.index.urls)} shards, streamed from "
            f"column '{self.image_column}'; a worker keeps up to {self._capacity} encoded images"
        )

    def describe(self, index: int) -> str:
        """Name an image in messages."""
        return self.index.describe(index)

    def sampler(
        self, batch_size_per_process: int, seed: int, *, num_workers: int, **place: int
    ) -> StreamSampler:
        """Give the order in which one process reads the images during training.

        Args:
            batch_size_per_process: images in one micro-batch of one process.
            seed: of the order.
            num_workers: processes of the loader that read for this process.
            **place: `rank`, `world_size`, `accumulation`, `start_step` and `total_steps`, as for
                :class:`esvit_hf.data.sampling.EpochSampler`.

        Returns:
            The sampler.

        Raises:
            ValueError: a value is out of range, or one step needs more images than there are.
        """
        return StreamSampler(
            self.index.sizes,
            batch_size_per_process,
            seed,
            shuffle_buffer=self.shuffle_buffer,
            readers_per_process=max(1, num_workers),
            **place,
        )

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """Fetch images as they are stored.

        Args:
            indices: numbers of the images, each in [0, len).

        Returns:
            One value an index, for :func:`esvit_hf.data.decoding.decode_image`.

        Raises:
            IndexError: an index is out of range.
            UnreadableShardError: a shard cannot be read.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"there is no image {index} among {len(self)}")
        places = [self.index.locate(index) for index in indices]
        needed = list(dict.fromkeys(chunk for chunk, _ in places))
        missing = [chunk for chunk in needed if chunk not in self._cache]
        chunks = {chunk: self._cache[chunk] for chunk in needed if chunk in self._cache}
        if missing:
            with ThreadPoolExecutor(READING_THREADS) as pool:
                read = pool.map(lambda chunk: self.index.read(chunk, self.image_column), missing)
                chunks |= zip(missing, read, strict=True)
        self._keep(chunks)
        return [chunks[chunk][row] for chunk, row in places]

    def _keep(self, chunks: dict[int, list[object]]) -> None:
        """Make chunks the last ones to be dropped, and drop what is beyond the capacity."""
        for chunk, values in chunks.items():
            self._cache[chunk] = values
            self._cache.move_to_end(chunk)
        held = sum(len(values) for values in self._cache.values())
        while held > self._capacity:
            _, dropped = self._cache.popitem(last=False)
            held -= len(dropped)


def open_stream(
    name_or_path: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    shuffle_buffer: int,
) -> StreamSource:
    """Open shards of images for reading while they are needed.

    Args:
        name_or_path: as for :func:`esvit_hf.data.shards.open_index`.
        split: which part of a folder or of a data set on the Hub.
        config_name: configuration of a data set on the Hub that has several.
        image_column: column (parquet) or field (tar) with the images, where its type and name leave
            a doubt.
        shuffle_buffer: images that are shuffled together.

    Returns:
        The source.

    Raises:
        ValueError: the shards cannot be found or read, or lack the column; the message names the
            remedy.
    """
    index = open_index(name_or_path, split=split, config_name=config_name)
    return StreamSource(
        index,
        shuffle_buffer=shuffle_buffer,
        image_column=image_column,
        name=f"{name_or_path} (split {split})",
    )
