"""A resume point as one file of tensors and JSON, which lies on the Hub and is read there without
running code.

Accelerate writes optimizer, random states and registered objects as pickles. Here their tensors
become safetensors and the rest of their structure JSON; reading makes the same files again.
"""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import load
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import give_usual_modes
from esvit_hf.pretraining.checkpoint import MANIFEST, PARTIAL, write_manifest

__all__ = ["read_portable", "write_portable"]

_CHECKPOINT_NAME = re.compile(r"step-\d{9}")
_FILE_NAME = re.compile(r"\w[\w.-]{0,99}")
# What a file from elsewhere can make the readers of its parts raise.
_UNREADABLE = (
    SafetensorError,
    AttributeError,
    KeyError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def write_portable(checkpoint: Path, path: Path) -> None:
    """Write a checkpoint as one safetensors file.

    Args:
        checkpoint: folder of a complete checkpoint.
        path: file to write.

    Raises:
        ValueError: the checkpoint holds something else than tensors, numbers, words, and
            collections of them.
    """
    tensors: dict[str, Tensor] = {}
    structures = {}
    for file in sorted(checkpoint.iterdir()):
        # The files made again have other bytes, and get a manifest of their own.
        if file.name == MANIFEST:
            continue
        if file.is_dir():
            raise ValueError(
                f"{file} is a folder: checkpoints of plain files travel, those of sharded training "
                f"do not"
            )
        structures[file.name] = _take_apart(_read(file), file.name, tensors)
    save_file(
        tensors, path, metadata={"checkpoint": checkpoint.name, "files": json.dumps(structures)}
    )
    give_usual_modes(path)


def read_portable(path: Path, folder: Path) -> Path:
    """Make a checkpoint from such a file; it appears under its name only when it is complete.

    Args:
        path: the file.
        folder: folder of a run's checkpoints.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: the file is unreadable or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        name, structures = metadata["checkpoint"], json.loads(metadata["files"])
        contents = {
            file_name: _put_together(structure, tensors)
            for file_name, structure in structures.items()
        }
    except (*_UNREADABLE, OSError) as error:
        raise _no_resume_point(path, error) from error
    # What comes from elsewhere must not choose where it is written.
    if not _CHECKPOINT_NAME.fullmatch(name) or not all(
        _FILE_NAME.fullmatch(file_name) for file_name in contents
    ):
        raise ValueError(
            f"{path} is no resume point: it names files outside its folder; start without "
            f"--run.resume"
        )
    final = folder / name
    partial = final.with_suffix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file_name, content in contents.items():
            _write(content, partial / file_name)
        give_usual_modes(partial)
        write_manifest(partial)
        partial.rename(final)
    except _UNREADABLE as error:
        raise _no_resume_point(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _no_resume_point(path: Path, error: BaseException) -> ValueError:
    reason = one_line(repr(error))
    return ValueError(f"{path} is no readable resume point ({reason}): start without --run.resume")


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    if file.suffix == ".json":
        return json.loads(file.read_text())
    try:
        return load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{file} holds more than tensors and plain values, or is damaged: it cannot travel"
        ) from error


def _write(content: Any, file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(content, file, metadata={"format": "pt"})
    elif file.suffix == ".json":
        file.write_text(json.dumps(content))
    else:
        torch.save(content, file)


def _take_apart(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a value to `tensors`; return the rest as JSON that says of what kind
    everything was.
    """
    if isinstance(value, Tensor):
        # A copy of its own: tensors that share memory cannot be saved.
        tensors[place] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(value.copy())
        return {"array": place}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise ValueError(
                f"{place} has keys that are neither words nor integers: it does not fit in JSON"
            )
        return {
            "dict": [
                [key, _take_apart(item, f"{place}/{key}", tensors)] for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        items = [
            _take_apart(item, f"{place}/{number}", tensors) for number, item in enumerate(value)
        ]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ValueError(
        f"{place} holds a {type(value).__name__}, which is neither a tensor nor JSON: it cannot "
        f"travel"
    )


def _put_together(structure: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _put_together(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_put_together(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "value":
        return content
    raise ValueError(f"unknown kind {kind!r}")
