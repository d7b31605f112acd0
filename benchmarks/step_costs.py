"""On paper: what an eager step of Swin-T asks of a GPU in bf16: kernels, and bytes that they read
and write.

`python -m benchmarks.budget --step true` prints it. A step runs on the CPU under a mode that sees
every operator, with what differs on a GPU put in its place: types under autocast, fused attention,
larger blocks of logits.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.step import build_step, draw_crops
from esvit_hf.models import (
    modeling_esvit_common,
    modeling_esvit_swin,
    modeling_esvit_windows,
)
from esvit_hf.pretraining.objectives import cross_entropy

BATCH = 64
SPEED, BANDWIDTH = 989e12, 4.8e12
"""Of an H200: dense products in bf16 a second, bytes of its memory a second."""

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution", "convolution_backward"}
NO_KERNEL = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"}
CHUNK, BLOCKS = 65536, 320
"""Elements of a chunk, and chunks of a launch, in kernels for many tensors."""
TENSORS = (110, 64, 48, 36, 30)
"""Tensors of such a launch, for one to five lists of them."""


@dataclass
class Cost:
    """Kernels, and the bytes that they read and write."""

    kernels: int = 0
    bytes: float = 0.0


@dataclass
class Costs:
    """Costs of a step by part and kind, and the activations that products touch.

    Attributes:
        by_kind: key is the part of the step and the kind of kernel.
        operands: bytes of all different activations that products and attention of networks and
            heads read or write.
    """

    by_kind: defaultdict[tuple[str, str], Cost] = field(default_factory=lambda: defaultdict(Cost))
    operands: float = 0.0


def _size(tensor: Tensor) -> int:
    """Bytes of the different numbers of a tensor, which may be expanded."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _launches(name: str, arguments: Sequence[Any]) -> int:
    """Return the kernels of an operator, at least."""
    if not name.startswith(("_foreach", "_fused")):
        return 1
    lists = [each for each in arguments if isinstance(each, (list, tuple)) and len(each)]
    tensors = [each for each in lists[0] if isinstance(each, Tensor)]
    chunks = sum(math.ceil(each.numel() / CHUNK) for each in tensors)
    at_once = TENSORS[min(len(lists), len(TENSORS)) - 1]
    return max(math.ceil(chunks / BLOCKS), math.ceil(len(tensors) / at_once))


class Counter(TorchDispatchMode):
    """Counts the kernels that run under it.

    Args:
        parameters: of the networks, which are no activations.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.costs = Costs()
        self.part = "networks and heads"
        self._shapes = {parameter.shape for parameter in parameters}
        self._storages: dict[int, Any] = {}

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count the body as another part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = operator(*arguments, **(options or {}))
        name = operator.__name__.split(".")[0]
        if (
            operator.is_view
            or name in NO_KERNEL
            or operator.namespace not in ("aten", "benchmarks")
        ):
            return result
        tensors = [
            each for each in tree_leaves((arguments, options, result)) if isinstance(each, Tensor)
        ]
        attention = operator.namespace == "benchmarks"
        kind = "attention" if attention else "products" if name in PRODUCTS else "all else"
        cost = self.costs.by_kind[self.part, kind]
        cost.kernels += _launches(name, arguments)
        cost.bytes += sum(map(_size, tensors))
        if kind != "all else" and self.part == "networks and heads":
            self._note(tensors)
        return result

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage, shape = tensor.untyped_storage(), tensor.shape
            is_weight = shape in self._shapes or shape[::-1] in self._shapes
            if not is_weight and storage.data_ptr() not in self._storages:
                # Kept, as its address would be given to another one.
                self._storages[storage.data_ptr()] = storage
                self.costs.operands += storage.nbytes()


@torch.library.custom_op("benchmarks::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return torch.zeros_like(value)


@torch.library.custom_op("benchmarks::attention_backward", mutates_args=())
def _attention_backward(
    gradient: Tensor, mixed: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor
) -> list[Tensor]:
    # The kernel writes the gradient of the bias for every window and image.
    shape = *query.shape[:-1], key.shape[-2]
    return [*(torch.zeros_like(each) for each in (query, key, value)), query.new_zeros(shape)]


def _attention_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    query, key, value, bias, mixed = ctx.saved_tensors
    *gradients, for_bias = _attention_backward(gradient, mixed, query, key, value, bias)
    return *gradients, for_bias.sum_to_size(bias.shape)


def _save_for_gradients(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


_attention.register_autograd(_attention_gradients, setup_context=_save_for_gradients)


class AsOnGpu(TorchFunctionMode):
    """Fused attention as one kernel, and norms in float32, as autocast has it on GPUs."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function is F.scaled_dot_product_attention:
            return _attention(*arguments, options["attn_mask"])
        if function is F.layer_norm:
            arguments = (arguments[0].float(), *arguments[1:])
        return function(*arguments, **options)


@contextmanager
def as_on_gpu(batch: int) -> Iterator[None]:
    """Let the code of the project take the ways of a GPU, with as many blocks of logits as a batch
    of 64 has.
    """
    elements = cross_entropy.BLOCK_ELEMENTS * batch // BATCH
    always: Callable[..., bool] = lambda *arguments: True  # noqa: E731
    never: Callable[..., bool] = lambda *arguments: False  # noqa: E731
    own: Callable[..., torch.dtype] = lambda scores, keys: scores.dtype  # noqa: E731
    with ExitStack() as stack:
        for module, name, value in (
            (modeling_esvit_common, "is_plain", always),
            (modeling_esvit_windows, "is_plain", always),
            (modeling_esvit_common, "_CPU_BLOCK_TOKENS", 2**62),
            (modeling_esvit_swin, "fused_attention_is_slow", never),
            (modeling_esvit_swin, "softmax_type", own),
            (cross_entropy, "BLOCK_ELEMENTS", elements),
            (cross_entropy, "CPU_TILE_ELEMENTS", elements),
            (cross_entropy, "CPU_COLUMNS", 2**62),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


def count_step(batch: int) -> Costs:
    """Count one step of Swin-T."""
    step, crops = build_step("bf16", batch=batch), draw_crops(batch)
    counter = Counter([*step.student.parameters(), *step.teacher.parameters()])
    for objective in step.objectives.values():
        objective.loss = partial(_within, counter, "losses", objective.loss)  # type: ignore[method-assign]
    with as_on_gpu(batch):
        # The first step makes what later ones keep.
        for mode in (ExitStack(), counter):
            with AsOnGpu(), mode:
                step.accumulate(crops, 2, 0, last=True)
                with counter.within("update"):
                    step.update(0)
    return counter.costs


def _within(counter: Counter, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
    with counter.within(part):
        return function(*arguments)


def count_batch() -> Costs:
    """Count a step of 64 images, from one of one image and one of two."""
    one, two = count_step(1), count_step(2)
    whole = Costs(operands=one.operands + (BATCH - 1) * (two.operands - one.operands))
    for key, cost in two.by_kind.items():
        growth = cost.bytes - one.by_kind[key].bytes
        whole.by_kind[key] = Cost(cost.kernels, cost.bytes + (BATCH - 2) * growth)
    return whole


def format_costs(costs: Costs) -> str:
    """Return the costs as a Markdown table."""
    lines = ["| part | kind | kernels | bytes (GB) | at least (ms) |", "|---|---|---:|---:|---:|"]
    for (part, kind), cost in costs.by_kind.items():
        milliseconds = 1e3 * cost.bytes / BANDWIDTH
        lines.append(
            f"| {part} | {kind} | {cost.kernels} | {cost.bytes / 1e9:.1f} | {milliseconds:.1f} |"
        )
    return "\n".join(lines)
