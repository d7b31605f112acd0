"""Features of images as files or rows in memory, one row an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from esvit_hf.common.accelerator_state import own_accelerator_state, start_accelerator
from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.options import Compute, DataSource, FeatureCache, ModelSource

if TYPE_CHECKING:
    from datasets import Dataset

    # What Python may give beside the words of a command line.
    InPython: TypeAlias = str | Path | Sequence[str | Path] | Dataset

__all__ = ["extract_features"]


@flat_arguments
@own_accelerator_state()
def extract_features(
    model: ModelSource,
    dataset: "Sequence[str] | InPython",
    *,
    output: str | Path | None,
    blocks: int = 1,
    regions: bool = False,
    broken: Literal["skip", "refuse"] = "skip",
    rows_per_shard: int | None = None,
    overwrite: bool = False,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    streaming: bool = False,
    reduce_jpegs: bool = True,
    max_image_pixels: int = DataSource.max_image_pixels,
    compute: Compute,
) -> "dict[str, Any] | Dataset | None":
    """Save a row of features for every image.

    A row says which image it is of: `index`, its place in the source; `file`, its path from the
    source's folder on, where images have one; `id`, `label` and `class_name`, where the source has
    them. `feature` is the view feature. A call that was stopped goes on where it was when it is
    given again. Under `accelerate launch` every process computes parts of its own; all must see one
    folder.

    Args:
        dataset: Hub name, folder of images or parquet files, one or more image files, or shards to
            stream: an address such as hf://datasets/NAME/*.parquet or s3://..., a pattern, or an
            index. In Python also rows in memory.
        output: file to write, for example photos.parquet; .safetensors, .npy and .csv are known
            too. A folder, or a name with {shard} such as photos-{shard:05d}.parquet, gives many
            files. In Python None gives the rows in memory.
        blocks: 1 gives the view feature, n > 1 the pooled features of the last n blocks,
            concatenated.
        regions: add the features of the regions of the last stage, and their grid (height, width).
        broken: images that cannot be decoded are left out and named, or the first one stops all.
        rows_per_shard: images of a file of many, and of what is held in memory and kept at once;
            10000 if not given, with regions 1000.
        overwrite: replace what is at the output.
        split: which images of a data set that has splits, for example train, test or train[:1000].
        id_column: column of the source to keep as `id`.
        streaming: read shards of a folder or of the Hub while they are needed, without a copy on
            disk; done in any case for addresses and patterns.
        reduce_jpegs: decode large JPEG files at a part of their size where at least twice the size
            is left that the image processor makes, and resize them with PyTorch; features differ
            slightly.

    Returns:
        Paths of the files, number of rows, channels of a feature, and what is wrong with the images
        left out, by name; None on processes but the first. Without an output the rows.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """

    from esvit_hf.features.loading import open_store
    from esvit_hf.features.row_features import RowOptions, check_images
    from esvit_hf.features.row_output import RowOutput
    from esvit_hf.features.row_writing import rows_in_memory, write_features
    from esvit_hf.features.rows import open_rows

    options = RowOptions(
        blocks,
        regions,
        broken == "refuse",
        reduce_jpegs,
        max_image_pixels,
        compute.batch_size,
        compute.num_workers,
    )
    if rows_per_shard is None:
        rows_per_shard = 1_000 if regions else 10_000
    target = None if output is None else RowOutput(output, regions=regions, overwrite=overwrite)
    accelerator = start_accelerator(compute.mixed_precision)
    store = open_store(model, compute, FeatureCache(), accelerator)
    source = open_rows(
        dataset,
        split=split,
        config_name=config_name,
        image_column=image_column,
        label_column=label_column,
        id_column=id_column,
        streaming=streaming,
    )
    check_images(source, options)
    if target is None:
        return rows_in_memory(store, source, options, rows_per_shard)
    return write_features(store, source, target, options, rows_per_shard)
