"""Networks as ONNX files, checked against PyTorch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

from esvit_hf.common.configurations import load_configuration
from esvit_hf.common.errors import one_line
from esvit_hf.common.files import check_writable, write_aside
from esvit_hf.models.configuration_esvit_common import as_pair
from esvit_hf.models.modeling_esvit_common import EsvitBaseModel, EsvitForImageClassification

__all__ = ["OnnxExport", "export_onnx"]

# Largest difference between the outputs in PyTorch and in onnxruntime that counts as agreement.
TOLERANCE = 1e-4

_INPUT = "pixel_values"
# Batches of the check; the graph is traced with another size, so that a batch baked into it shows.
_CHECKED_BATCHES = (1, 3)
_TRACED_BATCH = 2


@dataclass(frozen=True)
class OnnxExport:
    """What an export wrote.

    Attributes:
        path: The ONNX file, weights included.
        image_size: Height and width of its input in pixels, None if they are free as the batch is.
        outputs: Names of its outputs.
        largest_difference: Largest absolute difference from PyTorch over all outputs, None if not
            checked.
    """

    path: Path
    image_size: tuple[int, int] | None
    outputs: tuple[str, ...]
    largest_difference: float | None


class _PlainOutputs(nn.Module):
    """A network that returns the named fields of its output as a tuple."""

    def __init__(self, network: PreTrainedModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.outputs = outputs

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.network(pixel_values, return_dict=True)
        return tuple(output[name] for name in self.outputs)


def export_onnx(
    model_name_or_path: str | Path,
    output: str | Path,
    *,
    image_size: int | Sequence[int] | None = None,
    opset: int = 18,
    check: bool = True,
) -> OnnxExport:
    """Write an EsViT network as one ONNX file.

    The file takes `pixel_values` (B, channels, H, W), any B and, unless a size is given, any H and
    W that the network takes. It gives `last_hidden_state` and `pooler_output`, or `logits` if the
    saved model is a classifier. It appears under its name only when it is complete and checked.

    Args:
        model_name_or_path: Hub name or folder of a base model or classifier of this package.
        output: The file to write; an existing one is replaced.
        image_size: The only height and width of the input in pixels, one number for both: a simpler
            graph than that for any size.
        opset: Version of the ONNX operators.
        check: Whether to run the file in onnxruntime and compare it with PyTorch: at the size of
            the input, or at five sizes if it is free.

    Returns:
        The path, the names of the outputs and the difference found.

    Raises:
        ImportError: If the packages of the extra `onnx` are missing.
        ValueError: If the model cannot be loaded, or exported with these operators, the path cannot
            be written, or the outputs differ by more than 1e-4.
    """
    _require_packages(check)
    output = Path(output)
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(
            f"output={str(output)!r} is not a file in an existing folder: create the folder first."
        )
    try:
        check_writable(output.parent)
    except OSError as error:
        raise ValueError(f"output={str(output)!r} cannot be written ({error}).") from error
    network = _load(str(model_name_or_path))
    size = None if image_size is None else as_pair(image_size, "image_size")
    names = (
        ("logits",)
        if isinstance(network, EsvitForImageClassification)
        else ("last_hidden_state", "pooler_output")
    )
    model = _PlainOutputs(network, names).eval()
    what = f"{size[0]} x {size[1]} pixels" if size else "any number of pixels"
    with write_aside(output) as written:
        try:
            _write(model, size, names, opset, written)
        except (RuntimeError, torch.onnx.errors.OnnxExporterError, ValueError) as error:
            raise ValueError(
                f"{str(model_name_or_path)!r} cannot be exported for {what} with opset {opset}: "
                f"{one_line(error.__cause__ or error)}"
            ) from error
        sizes = [size] if size else _checked_sizes(network)
        difference = _largest_difference(model, written, sizes) if check else None
        if difference is not None and not difference <= TOLERANCE:
            raise ValueError(
                f"the ONNX file of {str(model_name_or_path)!r} differs from PyTorch by "
                f"{difference:.2g}, more than {TOLERANCE:g}: not kept; try a newer torch, "
                f"another opset than {opset}, or one image size."
            )
    return OnnxExport(output, size, names, difference)


def _require_packages(check: bool) -> None:
    needed = ["onnx", "onnxscript", *(["onnxruntime"] if check else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ImportError(f"ONNX export needs {', '.join(missing)}: pip install 'esvit-hf[onnx]'.")


def _load(name: str) -> PreTrainedModel:
    config = load_configuration(name)
    try:
        classifier = any("ForImageClassification" in saved for saved in config.architectures or ())
        auto_class = AutoModelForImageClassification if classifier else AutoModel
        # The fused attention operator cannot be exported.
        network = auto_class.from_pretrained(
            name, config=config, attn_implementation="eager", dtype=torch.float32
        )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"cannot load a model from {name!r} ({one_line(error)}): give a Hub name or a folder "
            f"with config.json and model.safetensors."
        ) from error
    if not isinstance(network, EsvitBaseModel | EsvitForImageClassification):
        raise ValueError(
            f"{name!r} holds a {type(network).__name__}: only networks of this package can be "
            f"exported."
        )
    return network.eval()


def _write(
    model: _PlainOutputs,
    size: tuple[int, int] | None,
    names: tuple[str, ...],
    opset: int,
    path: Path,
) -> None:
    from onnxscript import optimizer

    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if size is None:
        axes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    channels = model.network.config.num_channels
    pixel_values = torch.zeros(_TRACED_BATCH, channels, *(size or _traced_size(model.network)))
    program = torch.onnx.export(
        model,
        (pixel_values,),
        input_names=[_INPUT],
        output_names=list(names),
        dynamic_shapes={_INPUT: axes},
        opset_version=opset,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    if (written := program.model.opset_imports[""]) != opset:
        raise ValueError(f"the operators are those of opset {written}, give {written}")
    # What the optimizer computes for a resized bias is wrong by whole units (onnxscript 0.7):
    # runtimes do that better.
    optimizer.fold_constants(
        program.model, should_fold=lambda node: False if node.op_type == "Resize" else None
    )
    optimizer.remove_unused_nodes(program.model)
    program.save(path, external_data=False)


def _size_and_stride(network: PreTrainedModel) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of training, and pixels from one region to the next."""
    size = as_pair(network.config.image_size, "image_size")
    base: Any = network.base_model
    return size, base.attention_layouts(*size)[-1].stride


def _traced_size(network: PreTrainedModel) -> tuple[int, int]:
    """Choose a size that is an exception nowhere: what is 1, or as in training, would be taken for
    a constant. Every map has several windows, and no grid is that of training.
    """
    windows = network.config.window_size
    windows = windows if isinstance(windows, int) else max(windows)
    (height, width), (rows, columns) = _size_and_stride(network)
    return (
        max(2 * height, (windows + 1) * rows) + rows,
        max(2 * width, (windows + 1) * columns) + 2 * columns,
    )


def _checked_sizes(network: PreTrainedModel) -> list[tuple[int, int]]:
    """Sizes with full and padded windows, of the proportions of training and others."""
    (height, width), (rows, columns) = _size_and_stride(network)
    return [
        (height, width),
        (height + rows, width + columns),
        (height + rows // 2 + 1, width),
        (height, width + columns + 3),
        (max(height // 2, rows), max(width // 2, columns) + 1),
    ]


def _largest_difference(
    model: _PlainOutputs, path: Path, sizes: Sequence[tuple[int, int]]
) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    channels, largest = model.network.config.num_channels, 0.0
    for batch, size in itertools.product(_CHECKED_BATCHES, sizes):
        pixel_values = torch.randn(batch, channels, *size, generator=generator)
        with torch.no_grad():
            expected = model(pixel_values)
        for ours, theirs in zip(
            expected, session.run(None, {_INPUT: pixel_values.numpy()}), strict=True
        ):
            if tuple(ours.shape) != theirs.shape:
                return float("inf")
            # numpy keeps NaN, which the comparison with the tolerance then refuses.
            largest = float(np.maximum(largest, np.abs(ours.numpy() - theirs).max()))
    return largest
