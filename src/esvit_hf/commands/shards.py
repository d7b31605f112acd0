"""`esvit index` and `esvit repack`: shards that pretraining streams."""

from pathlib import Path
from typing import Any

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.options import DataSource

__all__ = ["index", "repack"]


@flat_arguments
def index(
    dataset: str | Path, output: str | Path, *, split: str = "train", config_name: str | None = None
) -> dict[str, Any] | None:
    """Write the index of a data set in shards, which streaming needs for tar files and starts
    faster with.

    Args:
        dataset: folder, shards, pattern or Hub name; remote tar files are read as a whole, once.
        output: file to write, ending with .json; set the data set of pretraining to it.
        split: which part of the data.
        config_name: configuration of a data set that has several.

    Returns:
        The file, the number of shards and of images.

    Raises:
        ValueError: there are no shards, or one cannot be read.
    """
    from esvit_hf.data.shards import write_index

    return write_index(str(dataset), Path(output), split=split, config_name=config_name)


@flat_arguments
def repack(
    source: str | Path,
    output: str | Path,
    *,
    shard_size: int = 10_000,
    split: str = "train",
    shuffle_seed: int | None = 0,
    max_image_pixels: int = DataSource.max_image_pixels,
) -> dict[str, Any]:
    """Write a zip or TSV pack of the reference implementation as parquet shards; the same command
    goes on where it was interrupted.

    Rows that hold no image are named, counted and left out.

    Args:
        source: NAME.zip with NAME_map.txt beside it, a .tsv file, or a folder of .tsv files.
        output: folder to write.
        shard_size: rows of the pack in one shard.
        split: name of the split, which the names of the shards start with.
        shuffle_seed: seed of the order of the rows; null keeps the order of the pack.
        max_image_pixels: rows whose image has more pixels are left out.

    Returns:
        The folder, the number of shards and of images, and the rows that were left out.

    Raises:
        ValueError: the pack cannot be read, holds no images, or the folder holds shards of another
            one.
    """
    from esvit_hf.data.repacking import repack as write_shards

    return write_shards(
        Path(source),
        Path(output),
        shard_size=shard_size,
        split=split,
        shuffle_seed=shuffle_seed,
        max_image_pixels=max_image_pixels,
    )
