"""Checkpoints of the reference become folders that `from_pretrained` loads, and the other way
round.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import write_aside
from esvit_hf.hub.completion import complete_folder, make_image_processor
from esvit_hf.hub.heads_file import HEADS_FILE, SavedHead, write_heads
from esvit_hf.reference.from_reference import (
    REFERENCE_HEADS,
    model_from_checkpoint,
    read_reference_checkpoint,
    split_reference_state_dict,
)
from esvit_hf.reference.to_reference import convert_to_reference

__all__ = [
    "check_free",
    "convert_to_file",
    "convert_to_folder",
    "load_model",
    "read_reference_heads",
    "write_model",
    "write_new",
]


def convert_to_folder(
    checkpoint_file: str | Path,
    output: Path,
    *,
    weights: Literal["teacher", "student"],
    arch: str | None,
    with_heads: bool,
    config_fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Turn a checkpoint of the reference into a folder with model, image processor and, if asked
    for, the heads.

    Args:
        checkpoint_file: `checkpoint.pth` of the reference.
        output: Folder to write; it must not exist or be empty.
        weights: Which network of the file.
        arch: Family of the backbone; recognized from the names if None.
        with_heads: Whether heads and centers come along.
        config_fields: Configuration fields that win over the inferred ones.

    Returns:
        What was written: `output`, `model_type`, `parameters` (of the model), `heads` (their
        objectives).

    Raises:
        ValueError: If the file cannot be converted, a field does not exist, or the folder is not
            free.
    """
    check_free(output)
    checkpoint = read_reference_checkpoint(checkpoint_file)
    model = load_model(checkpoint, checkpoint_file, weights, arch, config_fields)
    heads = read_reference_heads(checkpoint, checkpoint_file, weights, arch) if with_heads else {}
    if with_heads and not heads:
        raise ValueError(f"{str(checkpoint_file)!r} has no heads: convert it without.")
    with write_new(output) as folder:
        write_model(model, heads, folder)
        complete_folder(folder, output.resolve().name)
    return {
        "output": str(output),
        "model_type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heads": list(heads),
    }


def load_model(
    checkpoint: Mapping[str, Any],
    path: str | Path,
    weights: Literal["teacher", "student"],
    arch: str | None,
    config_fields: Mapping[str, Any],
) -> PreTrainedModel:
    """Build the backbone of a checkpoint that is read already.

    Args:
        checkpoint: What `read_reference_checkpoint` returns.
        path: Where it was read, for errors.
        weights: Which network of the file.
        arch: Family of the backbone; recognized from the names if None.
        config_fields: Configuration fields that win over the inferred ones.

    Returns:
        The base model in eval mode.

    Raises:
        ValueError: If the file cannot be converted or a field does not exist.
    """
    try:
        model = model_from_checkpoint(checkpoint, path, weights, arch, dict(config_fields))
    except StrictDataclassError as error:
        raise ValueError(one_line(error.__cause__ or error)) from error
    _check_fields(model.config, config_fields)
    return model


def write_model(model: PreTrainedModel, heads: Mapping[str, SavedHead], folder: Path) -> None:
    """Write a new folder with a model, its image processor and its heads.

    Args:
        model: Base model.
        heads: By objective; no file is written if there are none.
        folder: Folder to make.
    """
    folder.mkdir()
    model.save_pretrained(folder)
    make_image_processor(getattr(model.config, "image_size", None)).save_pretrained(folder)
    if heads:
        write_heads(heads, folder / HEADS_FILE)


def convert_to_file(name_or_path: str, output: Path, *, with_heads: bool) -> dict[str, Any]:
    """Write a model in the layout of the reference's checkpoints.

    Args:
        name_or_path: Folder or Hub name of a network that the reference knows.
        output: File to write; it must not exist.
        with_heads: Whether heads and centers come along.

    Returns:
        What was written: `output`, `tensors` (of each network), `heads` (their objectives).

    Raises:
        ValueError: If the reference has no such network, heads are asked for and not there, or the
            file exists or does not fit on the disk.
    """
    check_free(output)
    checkpoint = convert_to_reference(name_or_path, with_heads=with_heads)
    with write_new(output) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # What PyTorch raises where a disk is full.
            raise ValueError(
                f"output={str(output)!r} cannot be written ({one_line(error)}): make room on the "
                f"disk, or give another place."
            ) from error
    heads = [
        objective
        for objective, (_, center) in REFERENCE_HEADS.items()
        if center in checkpoint["dino_loss"]
    ]
    return {"output": str(output), "tensors": len(checkpoint["teacher"]), "heads": heads}


def check_free(output: Path) -> None:
    """Check that nothing would be overwritten.

    Args:
        output: File or folder to write.

    Raises:
        ValueError: If it exists and is not an empty folder.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise ValueError(f"output={str(output)!r} exists: give another name or remove it first.")


@contextmanager
def write_new(output: Path) -> Iterator[Path]:
    """Write a new file or folder, and the folders above it, if nothing goes wrong.

    Args:
        output: File or folder to write; `check_free` has passed.

    Yields:
        The path to write to, of the same name.

    Raises:
        ValueError: If the place cannot be written to.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output={str(output)!r} cannot be written: {error}.") from error
    with write_aside(output) as aside:
        yield aside


def _check_fields(config: PreTrainedConfig, given: Mapping[str, Any]) -> None:
    # A name that is none would be kept as a free attribute and change nothing.
    known = {name for name in type(config)().to_dict() if not name.startswith("_")} | set(
        config.attribute_map
    )
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"{type(config).__name__} has no field {', '.join(unknown)}: its fields are "
            f"{sorted(known)}."
        )


def read_reference_heads(
    checkpoint: Mapping[str, Any], path: str | Path, weights: str, arch: str | None
) -> dict[str, SavedHead]:
    """Take the heads and their centers out of a checkpoint that is read already.

    Args:
        checkpoint: What `read_reference_checkpoint` returns.
        path: Where it was read, for errors.
        weights: Which network of the file.
        arch: Family of the backbone; recognized from the names if None.

    Returns:
        The heads by objective, empty if there are none.

    Raises:
        ValueError: If a head is damaged or has no center that fits.
    """
    _, *states = split_reference_state_dict(checkpoint[weights], arch=arch)
    centers = checkpoint.get("dino_loss", {})
    heads = {}
    for (objective, (_, center_name)), state in zip(REFERENCE_HEADS.items(), states, strict=True):
        if not state:
            continue
        _check_head(state, f"the {objective} head in {str(path)!r}")
        center = centers.get(center_name) if isinstance(centers, dict) else None
        if not isinstance(center, Tensor) or center.numel() != len(state["prototype_gain"]):
            raise ValueError(
                f"{str(path)!r} has a {objective} head and no center that fits it "
                f"({center_name!r} in 'dino_loss'): convert it without heads."
            )
        heads[objective] = SavedHead(state, center.flatten())
    return heads


def _check_head(state: Mapping[str, Tensor], place: str) -> None:
    """Check that a head is what the reference builds: linear layers, batch norms between them or
    not, prototypes.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    linear = sorted(
        int(name.split(".")[1])
        for name, shape in found.items()
        if name.startswith("layers.") and len(shape) == 2
    )
    batch_norm = any(name.endswith("running_mean") for name in found)
    expected: dict[str, tuple[int, ...]] = {}
    width = found[f"layers.{linear[0]}.weight"][1] if linear else 0
    for number in range(len(linear)):
        layer = number * (3 if batch_norm else 2)
        output = found.get(f"layers.{layer}.weight", (0,))[0]
        expected |= {f"layers.{layer}.weight": (output, width), f"layers.{layer}.bias": (output,)}
        if batch_norm and number < len(linear) - 1:
            norm = f"layers.{layer + 1}."
            expected |= {
                norm + name: (output,) for name in ("weight", "bias", "running_mean", "running_var")
            }
            expected[norm + "num_batches_tracked"] = ()
        width = output
    prototypes = found.get("prototype_gain", (0,))[0]
    expected |= {"prototype_gain": (prototypes, 1), "prototype_direction": (prototypes, width)}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{place}: {name} is {found.get(name)}, expected is {expected.get(name)}."
            )
