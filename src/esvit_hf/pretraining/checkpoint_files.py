"""What a checkpoint holds: tensors as safetensors and the rest as JSON, so that reading one runs no
code.

Tensors are whole on the disk, whatever shards they had in the run, and go by the names of the
parameters: any number of processes, with shards or with replicas, reads what any other wrote.
"""

import json
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import digest_file, flush_to_disk, give_usual_modes

__all__ = [
    "CHECKPOINT_FILES",
    "MANIFEST",
    "RunState",
    "StateCopy",
    "copy_state",
    "describe_file",
    "read_state",
    "read_step",
    "write_manifest",
    "write_state",
]

MANIFEST = "manifest.json"
STATE = "state.json"
TENSOR_FILES = ("student", "teacher", "centers", "optimizer")
CHECKPOINT_FILES = (*(f"{name}.safetensors" for name in TENSOR_FILES), STATE, MANIFEST)
"""The files of every checkpoint."""

# Words of the state of numpy's Mersenne twister.
_TWISTER_WORDS = 624


class Stateful(Protocol):
    """What is saved as JSON, and restores itself."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""


@dataclass(frozen=True)
class RunState:
    """Everything that a run needs to go on, besides the random states.

    Attributes:
        student: in replicas or in shards.
        teacher: whole in every process.
        centers: centers of the teacher by objective.
        optimizer: has a state for every parameter of the student that it trains.
        records: what is saved as JSON, by name.
    """

    student: nn.Module
    teacher: nn.Module
    centers: nn.Module
    optimizer: torch.optim.Optimizer
    records: Mapping[str, Stateful]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file by their names in it; they share memory with the run."""
        if name != "optimizer":
            module: nn.Module = getattr(self, name)
            return module.state_dict()
        return {
            f"{parameter_name}/{quantity}": value
            for parameter_name, parameter in self.student.named_parameters()
            for quantity, value in self.optimizer.state.get(parameter, {}).items()
        }


@dataclass(frozen=True)
class StateCopy:
    """The state of a run at one instant, in main memory that nobody else changes.

    Attributes:
        tensors: whole tensors by file and name.
        content: the rest as JSON.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    content: str


def copy_state(accelerator: Accelerator, state: RunState) -> StateCopy | None:
    """Copy what a checkpoint holds; all processes have to call this.

    Args:
        accelerator: the process's accelerator.
        state: what to copy; random states come on top.

    Returns:
        The copy in the main process; None in the others.
    """
    is_main = accelerator.is_main_process
    tensors = {
        name: dict(_whole_tensors(state.tensors(name), keep=is_main)) for name in TENSOR_FILES
    }
    random_states = gather_object([_random_state(accelerator.device)])
    if not is_main:
        return None
    content = {name: record.state_dict() for name, record in state.records.items()}
    content["random_states"] = random_states
    content["loss_scale"] = accelerator.scaler and accelerator.scaler.state_dict()
    return StateCopy(tensors, json.dumps(content))


def write_state(copy: StateCopy, folder: Path) -> None:
    """Write the files of a checkpoint, with their digests in its manifest.

    Args:
        copy: what to write.
        folder: a folder that exists.

    Raises:
        OSError: there is no room.
        SafetensorError: there is no room.
    """

    def write(name: str) -> dict[str, int | str]:
        path = folder / f"{name}.safetensors"
        save_file(dict(copy.tensors[name]), path, metadata={"format": "pt"})
        # The disk takes it in while its digest is computed.
        flush = threads.submit(flush_to_disk, path)
        facts = describe_file(path)
        flush.result()
        return facts

    with ThreadPoolExecutor(2 * len(copy.tensors)) as threads:
        facts = list(threads.map(write, copy.tensors))
    (folder / STATE).write_text(copy.content)
    give_usual_modes(folder)
    files = {f"{name}.safetensors": one for name, one in zip(copy.tensors, facts, strict=True)}
    write_manifest(folder, files | {STATE: describe_file(folder / STATE)})


def describe_file(path: Path) -> dict[str, int | str]:
    """Return the size and the digest of a file, for `write_manifest`."""
    return {"bytes": path.stat().st_size, "sha256": digest_file(path)}


def write_manifest(folder: Path, files: Mapping[str, Mapping[str, int | str]]) -> None:
    """List the files of a checkpoint in the checkpoint itself.

    Args:
        folder: of the checkpoint.
        files: what `describe_file` says of each, by name.
    """
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n")


def read_state(accelerator: Accelerator, state: RunState, folder: Path) -> None:
    """Read what `write_state` wrote into a run, of any number of processes.

    A process that the writing run did not have keeps its random state.

    Args:
        accelerator: the process's accelerator.
        state: where to read it to.
        folder: folder of the checkpoint.

    Raises:
        ResumeError: a record belongs to a run with other settings.
        Exception: of some kind, if the files are damaged or belong to something else.
    """
    content = json.loads((folder / STATE).read_text())
    for name, record in state.records.items():
        record.load_state_dict(content[name])
    for name in TENSOR_FILES:
        _read_tensors(folder / f"{name}.safetensors", state.tensors(name))
    if accelerator.scaler is not None and content["loss_scale"] is not None:
        accelerator.scaler.load_state_dict(content["loss_scale"])
    if accelerator.process_index < len(content["random_states"]):
        _set_random_state(content["random_states"][accelerator.process_index], accelerator.device)


def read_step(folder: Path) -> int:
    """Return the step that a checkpoint says it is of.

    Args:
        folder: folder of the checkpoint.

    Raises:
        ValueError: it does not say.
    """
    try:
        step = json.loads((folder / STATE).read_text())["progress"]["step"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / STATE} cannot be read: {one_line(error)}") from error
    if type(step) is not int or not 0 <= step < 10**9:
        raise ValueError(f"{folder / STATE} is of step {step!r}, which is none")
    return step


def _whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Put shards together and copy them, one tensor at a time."""
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            yield name, whole.detach().to("cpu", copy=True).contiguous()


@torch.no_grad()
def _read_tensors(path: Path, targets: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        differing = sorted(targets.keys() ^ set(file.keys()))
        if differing:
            raise ValueError(f"{path.name} and the run do not both have {differing[0]}")
        for name, target in targets.items():
            tensor = file.get_tensor(name)
            if (tensor.shape, tensor.dtype) != (target.shape, target.dtype):
                raise ValueError(
                    f"{path.name}: {name} is {_form(tensor)}, the run has {_form(target)}"
                )
            if isinstance(target, DTensor):
                # Every process has read the whole tensor: none has to send a part of it.
                tensor = distribute_tensor(
                    tensor.to(target.device),
                    target.device_mesh,
                    target.placements,
                    src_data_rank=None,
                )
            target.copy_(tensor)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _random_state(device: torch.device) -> dict[str, Any]:
    twister = np.random.get_state(legacy=False)
    assert isinstance(twister, dict)
    twister["state"]["key"] = twister["state"]["key"].tolist()
    state = {
        "python": random.getstate(),
        "numpy": twister,
        "torch": _to_text(torch.get_rng_state()),
    }
    if device.type != "cpu":
        state[device.type] = _to_text(torch.get_device_module(device).get_rng_state())
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    twister = state["numpy"]
    # Numpy itself does not look, and would read outside its words.
    if not 0 <= twister["state"]["pos"] <= _TWISTER_WORDS:
        raise ValueError(f"the position of a random state is {twister['state']['pos']}")
    np.random.set_state(twister)
    torch.set_rng_state(_from_text(state["torch"]))
    # A run may go on with another kind of device.
    if device.type in state:
        torch.get_device_module(device).set_rng_state(_from_text(state[device.type]))


def _to_text(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_text(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
