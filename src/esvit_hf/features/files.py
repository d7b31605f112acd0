"""Features as a file with one row an image."""

from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from safetensors.torch import save_file

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.data.sources import load_image_source
from esvit_hf.features.extraction import extract_features, load_image_processor

__all__ = ["save_features"]


def save_features(
    model: str,
    dataset: str,
    *,
    output: Path,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    blocks: int = 1,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any] | None:
    """Save features of a vision model as safetensors: `features` (N, D) float32 and, with labels,
    `labels` (N,) int64.

    Runs on several processes under `accelerate launch`; the file is the same.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        output: file to write, for example features.safetensors.
        split: which images, for example train, test or train[:1000].
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        blocks: 1 saves the view feature, n > 1 the pooled features of the last n blocks,
            concatenated.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the computation.

    Returns:
        The file, the number of images and of channels, whether there are labels; None on processes
        but the first.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise ValueError(
            f"--output is {output}: give a name that ends in .safetensors, in an existing folder"
        )
    accelerator = Accelerator(mixed_precision=mixed_precision)
    source = load_image_source(
        dataset,
        split=split,
        config_name=config_name,
        image_column=image_column,
        label_column=label_column,
    )
    backbone = load_backbone(model, revision=revision, trust_remote_code=trust_remote_code)
    image_processor = load_image_processor(
        processor or model,
        revision=None if processor else revision,
        trust_remote_code=trust_remote_code,
    )
    features = extract_features(
        backbone,
        source,
        image_processor,
        blocks=blocks,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return None
    tensors = {"features": features.values}
    if features.labels is not None:
        tensors["labels"] = features.labels
    save_file(
        tensors,
        output,
        metadata={"model": model, "dataset": dataset, "split": split, "blocks": str(blocks)},
    )
    images, dimension = features.values.shape
    return {
        "output": str(output),
        "images": images,
        "dimension": dimension,
        "labels": features.labels is not None,
    }
