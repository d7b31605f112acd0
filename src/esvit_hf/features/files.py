"""Features as a file with one row an image."""

from pathlib import Path
from typing import Any

from esvit_hf.common.accelerator_state import own_accelerator_state, start_accelerator
from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.options import Compute, DataSplit, ModelSource

__all__ = ["extract_features"]


@flat_arguments
@own_accelerator_state()
def extract_features(
    model: ModelSource,
    data: DataSplit,
    *,
    output: str | Path,
    blocks: int = 1,
    compute: Compute,
) -> dict[str, Any] | None:
    """Save features of a vision model as safetensors: `features` (N, D) float32 and, with labels,
    `labels` (N,) int64.

    Runs on several processes under `accelerate launch`; the file is the same.

    Args:
        output: file to write, for example features.safetensors.
        blocks: 1 saves the view feature, n > 1 the pooled features of the last n blocks,
            concatenated.

    Returns:
        The file, the number of images and of channels, whether there are labels; None on processes
        but the first.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """
    from safetensors.torch import save_file

    from esvit_hf.features.extraction import extract_features as extract
    from esvit_hf.features.loading import load_images, load_network

    path = Path(output)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            f"--output is {path}: give a name that ends in .safetensors, in an existing folder"
        )
    accelerator = start_accelerator(compute.mixed_precision)
    source = load_images(data)
    backbone, processor = load_network(model)
    features = extract(
        backbone,
        source,
        processor,
        blocks=blocks,
        batch_size=compute.batch_size,
        num_workers=compute.num_workers,
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return None
    tensors = {"features": features.values}
    if features.labels is not None:
        tensors["labels"] = features.labels
    origin = {"model": model.model, "dataset": data.dataset, "split": data.split, "blocks": blocks}
    save_file(tensors, path, metadata={name: str(value) for name, value in origin.items()})
    images, dimension = features.values.shape
    return {
        "output": str(path),
        "images": images,
        "dimension": dimension,
        "labels": features.labels is not None,
    }
