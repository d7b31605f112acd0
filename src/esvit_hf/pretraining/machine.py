"""What a run can use of the machine: device, memory, processor cores and number formats."""

import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Machine", "free_memory", "look_at_machine"]

_PROC = Path("/proc")
_LEAST_OF_TRITON = (7, 0)
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What one process of a run can use.

    Attributes:
        device: type of the device that computes: cpu, cuda, mps, ...
        device_memory: free bytes on that device; for cpu those of `memory`.
        memory: free bytes of the machine, or of the container if it has less.
        cores: processor cores.
        processes: processes of the run, on all machines.
        has_bfloat16: whether the device multiplies bfloat16 matrices fast.
        has_compiler: whether `torch.compile` finds what it needs to make kernels for a GPU.
    """

    device: str
    device_memory: int
    memory: int
    cores: int
    processes: int
    has_bfloat16: bool
    has_compiler: bool


def look_at_machine() -> Machine:
    """Find out what this process can use; processes on one machine share it evenly."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory, cores = free_memory() // here, max(1, _count_cores() // here)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = "cpu" if accelerator is None or _stays_on_cpu() else accelerator.type
    if device == "cuda":
        device_memory, has_bfloat16 = torch.cuda.mem_get_info()[0], torch.cuda.is_bf16_supported()
    else:
        device_memory, has_bfloat16 = memory, device == "cpu" and _has_fast_bfloat16()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return Machine(
        device, device_memory, memory, cores, processes, has_bfloat16, _has_compiler(device)
    )


def free_memory(proc: Path = _PROC, control_groups: Path = _CONTROL_GROUPS) -> int:
    """Return the bytes of main memory that are free, or may be taken back from caches.

    Args:
        proc: where Linux tells about processes.
        control_groups: where Linux tells about the limits of containers.
    """
    try:
        lines = (proc / "meminfo").read_text()
    except OSError:
        # Other systems tell how much there is, not what is free.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", lines, re.MULTILINE)
    assert found is not None
    free = 1024 * int(found[1])
    return min([free, *_free_in_groups(proc, control_groups)])


def _free_in_groups(proc: Path, control_groups: Path) -> list[int]:
    """What each control group around this process has left, in both versions of Linux' files."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, names = control_groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = control_groups / "memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = root / place.lstrip("/")
        # In a container the place may be that on the machine outside.
        for folder in {root, *(each for each in (group, *group.parents) if root in each.parents)}:
            try:
                limit = int((folder / names[0]).read_text())
                used = int((folder / names[1]).read_text())
                caches = re.search(
                    rf"^{names[2]} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE
                )
            except (OSError, ValueError):
                # There is no such group here, or it says `max`.
                continue
            left.append(max(0, limit - used + (int(caches[1]) if caches else 0)))
    return left


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stays_on_cpu() -> bool:
    # As `accelerate launch --cpu` says it.
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")


def _has_compiler(device: str) -> bool:
    if device != "cuda" or torch.cuda.get_device_capability() < _LEAST_OF_TRITON:
        return False
    # Triton calls one for each of its launchers.
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    return importlib.util.find_spec("triton") is not None and compiler is not None


def _has_fast_bfloat16() -> bool:
    try:
        text = (_PROC / "cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"^flags\s*:.*\b(avx512_bf16|amx_bf16)\b", text, re.MULTILINE) is not None
