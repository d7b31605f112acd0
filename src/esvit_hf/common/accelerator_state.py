"""Accelerate as the calls of this package start it, each with a state of its own, although
Accelerate has one for the whole process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from esvit_hf.common.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

__all__ = ["any_process", "device_name", "own_accelerator_state", "start_accelerator"]


@contextmanager
def own_accelerator_state() -> Iterator[None]:
    """Let the Accelerator of a call choose its mixed precision, whatever was chosen before.

    Accelerate refuses a second choice in a process. Accelerators from before the call find their
    own state again afterwards. Serves as a decorator too: `@own_accelerator_state()`.
    """
    # Late, because it imports PyTorch.
    from accelerate.state import AcceleratorState

    before = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        AcceleratorState._shared_state.update(before)


def start_accelerator(
    mixed_precision: str, *, setting: str = "mixed_precision", **options: Any
) -> "Accelerator":
    """Start Accelerate on the device that it finds; on a CPU, the process keeps what it frees.

    Args:
        mixed_precision: number format of the networks' computation: `no`, `bf16` or `fp16`.
        setting: what the user calls it.
        options: further arguments of `accelerate.Accelerator`.

    Returns:
        The accelerator.

    Raises:
        ValueError: for fp16 on a CPU, which Accelerate would leave at float32 without a word.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=mixed_precision, **options)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            f"mixed_precision is fp16, but the run is on a CPU, where it would compute in float32: "
            f"set {setting} to bf16 or no"
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def any_process(flag: bool, accelerator: "Accelerator") -> bool:
    """Tell every process whether a condition holds on one of them; all must ask together.

    Args:
        flag: whether it holds on this process.
        accelerator: the processes.
    """
    import torch

    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.gather(torch.tensor([int(flag)], device=accelerator.device)).any())


def device_name(device: "torch.device") -> str:
    """Name a device as people know it.

    Args:
        device: of PyTorch.

    Returns:
        The product of a CUDA device, otherwise the type of the device.
    """
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
