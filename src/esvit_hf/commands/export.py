"""`esvit export`: a network as an ONNX file."""

from pathlib import Path
from typing import Any

from esvit_hf.common.arguments import flat_arguments

__all__ = ["export"]


@flat_arguments
def export(
    model: str | Path,
    output: str | Path,
    *,
    image_size: int | list[int] | None = None,
    opset: int = 18,
) -> dict[str, Any]:
    """Write a network as an ONNX file and compare it with PyTorch.

    Args:
        model: Hub name or folder of one of this project's models or classifiers.
        output: file to write, for example model.onnx.
        image_size: the only height and width of the input in pixels, one number for both; any
            height and width if not given.
        opset: version of the ONNX operators.

    Returns:
        The file, its image size (None if it is free) and outputs, and the largest difference from
        PyTorch.

    Raises:
        ValueError: the model cannot be loaded or exported, the path cannot be written, or packages
            are missing.
    """
    from esvit_hf.export.onnx import export_onnx

    try:
        written = export_onnx(model, output, image_size=image_size, opset=opset)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return {
        "output": str(written.path),
        "image_size": written.image_size and list(written.image_size),
        "outputs": list(written.outputs),
        "largest_difference": written.largest_difference,
    }
