"""Conversion between the reference's checkpoints and model folders, in both directions."""

from pathlib import Path
from typing import Any, Literal

from esvit_hf.common.arguments import flat_arguments

__all__ = ["convert_checkpoint"]


@flat_arguments
def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    to_reference: bool = False,
    with_heads: bool = False,
    weights: Literal["teacher", "student"] = "teacher",
    arch: str | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn a checkpoint of the reference implementation into a model folder, or back.

    The output appears under its name only when it is complete. A folder holds model and image
    processor, and loads with `from_pretrained`.

    Args:
        checkpoint: checkpoint.pth of the reference, or a file of one network alone; with
            to_reference a model folder or Hub name.
        output: folder to write, new or empty; with to_reference a new file.
        to_reference: write a checkpoint in the reference's layout.
        with_heads: heads and centers come along, so that pretraining continues with them.
        weights: which network of the checkpoint; the paper evaluates the teacher.
        arch: family of the network; recognized from the names of the tensors if not given.
        config: fields of the configuration that the tensors do not show, for example
            '{image_size: 160, num_heads: [1,2,3,6]}'.

    Returns:
        What was written: `output`, `heads` (their objectives), and `model_type` and `parameters` of
        a model, or the number of `tensors` of each network of a checkpoint.

    Raises:
        ValueError: the checkpoint or folder cannot be converted, a field does not exist, heads are
            asked for and not there, or the output exists.
    """
    from esvit_hf.reference.folders import convert_to_file, convert_to_folder

    if not to_reference:
        return convert_to_folder(
            checkpoint,
            Path(output),
            weights=weights,
            arch=arch,
            with_heads=with_heads,
            config_fields=config or {},
        )
    if arch is not None or config or weights != "teacher":
        raise ValueError(
            "--to_reference takes a model folder, which decides --arch, --config and --weights: "
            "leave them out"
        )
    return convert_to_file(str(checkpoint), Path(output), with_heads=with_heads)
