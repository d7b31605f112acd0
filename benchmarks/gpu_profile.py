"""Where the time of a step goes on its device, by what its kernels do."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Run

GROUPS = {
    "products": r"gemm|nvjet|cutlass|cublas|splitk|::(mm|bmm|addmm|baddbmm|addmv|mv)$|conv|linear",
    "attention": r"attention|fmha|flash|attn",
    "optimizer, clipping, average": r"multi_tensor|adam|foreach|lerp",
    "softmax": r"softmax",
    "norms": r"layer_?norm|batch_?norm|LayerNorm",
    "fused by the compiler": r"^triton_",
    "copies": r"copy|memcpy|memset|fill|cat|index|gather|scatter|roll|embedding",
}
"""Regular expressions of the names of kernels, on a CPU of operators; the first that fits
counts."""
OTHER, GAPS = "other elementwise work and sums", "gaps between kernels"


def group_of(name: str) -> str:
    """Return the group of a kernel."""
    # A fused product is told by its template, before what is fused into it.
    found = (group for group, names in GROUPS.items() if re.search(names, name, re.IGNORECASE))
    return next(found, OTHER)


def where_time_goes(run: Run, synchronize: Callable[[], None], on_gpu: bool) -> dict[str, Any]:
    """Profile one run.

    Args:
        run: what is profiled, warm.
        synchronize: waits for the device.
        on_gpu: whether the kernels of a GPU count, or the operators of the CPU.

    Returns:
        Milliseconds by group, with the gaps in which the device waits for the processor, and the
        number of kernels.
    """
    start = time.perf_counter()
    run()
    synchronize()
    whole = 1e3 * (time.perf_counter() - start)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
        synchronize()
    milliseconds: defaultdict[str, float] = defaultdict(float)
    kernels = 0
    for event in profiler.events() or ():
        if event.is_user_annotation or (event.device_type == DeviceType.CUDA) != on_gpu:
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        milliseconds[group_of(event.name)] += spent / 1e3
        kernels += 1
    milliseconds[GAPS] = max(0.0, whole - sum(milliseconds.values()))
    ordered = sorted(milliseconds.items(), key=lambda item: -item[1])
    return {"ms": dict(ordered), "ms in all": whole, "kernels": kernels}
