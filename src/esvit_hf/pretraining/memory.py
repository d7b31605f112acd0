"""How much memory a run will need, and how much it computes, found before its first step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esvit_hf.data.views import ViewSpec, expand_views
from esvit_hf.pretraining.distillation import DistillationParts
from esvit_hf.pretraining.machine import Machine
from esvit_hf.pretraining.recipe import Recipe

__all__ = ["MemoryNeed", "count_operations", "estimate_memory", "memory_warning"]

_MEBIBYTE = 2**20
_PROCESS = 700 * _MEBIBYTE
"""What Python, PyTorch and transformers take before anything is trained."""
_DEVICE_LIBRARIES = 900 * _MEBIBYTE
_WORKER = 250 * _MEBIBYTE
"""What a data-loading process takes beside what it shares with its parent."""
_BATCHES_AHEAD = 2
_TRANSIENT = 0.25
"""Share of the activations that gradients and temporary tensors add at the peak."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one process of a run needs.

    Attributes:
        weights: weights, gradients and AdamW's averages of the student, and the teacher.
        activations: what the backward pass of one image needs, and its views.
        views: encoded views of one image, as data-loading processes keep them.
        saved: the copy in main memory that a checkpoint is written from.
    """

    weights: int
    activations: int
    views: int
    saved: int

    def on_device(self, batch_size: int) -> int:
        """Bytes on the device that computes."""
        return self.weights + batch_size * self.activations

    def on_host(self, batch_size: int, num_workers: int) -> int:
        """Bytes of main memory beside what `on_device` counts."""
        batches = batch_size * self.views * (1 + _BATCHES_AHEAD * num_workers)
        return _PROCESS + num_workers * _WORKER + batches + self.saved

    def fits(self, machine: Machine, batch_size: int, num_workers: int, share: float = 1) -> bool:
        """Tell whether a share of what is free suffices."""
        device, host = self.on_device(batch_size), self.on_host(batch_size, num_workers)
        if machine.device == "cpu":
            return device + host <= share * machine.memory
        return (
            device + _DEVICE_LIBRARIES <= share * machine.device_memory
            and host <= share * machine.memory
        )


def estimate_memory(recipe: Recipe, parts: DistillationParts) -> MemoryNeed:
    """Estimate what a run needs from its networks: one and two images go through the student.

    Args:
        recipe: the recipe.
        parts: student and teacher, on the CPU; they stay as they are.

    Returns:
        The estimate.
    """
    views = expand_views(recipe.data.views)
    student = sum(each.numel() for each in parts.student.parameters())
    one, two = (_saved_bytes(recipe, parts, views, count) for count in (1, 2))
    pixels = sum(3 * view.size**2 for view in views)
    # Student, gradients, two averages of AdamW and the teacher in float32.
    weights = 5 * 4 * student + _loss_bytes(recipe) + max(0, 2 * one - two)
    activations = round((1 + _TRANSIENT) * (two - one)) + 2 * 4 * pixels
    # Student, teacher and two averages.
    return MemoryNeed(weights, activations, pixels, saved=4 * 4 * student)


def count_operations(recipe: Recipe, parts: DistillationParts) -> int:
    """Count the operations of the student's forward pass of one image.

    Args:
        recipe: the recipe.
        parts: student and teacher, on the CPU; they stay as they are.

    Returns:
        Floating-point operations of its products; a multiplication and an addition are two.
    """
    with FlopCounterMode(display=False) as counter:
        _saved_bytes(recipe, parts, expand_views(recipe.data.views), 1)
    return counter.get_total_flops()


def memory_warning(recipe: Recipe, need: MemoryNeed, machine: Machine) -> str | None:
    """Say what to change where a run needs more than is free.

    Args:
        recipe: the recipe.
        need: what its networks need.
        machine: what there is.

    Returns:
        One sentence; None if it fits.
    """
    size, workers = recipe.run.batch_size, recipe.data.num_workers
    if need.fits(machine, size, workers):
        return None
    on_device, on_host = need.on_device(size), need.on_host(size, workers)
    parts = (
        f"weights, gradients, AdamW and teacher {_in_words(need.weights)}, activations of "
        f"{size} images {_in_words(size * need.activations)}, the process, {workers} data-loading "
        f"workers and the copy that a checkpoint is written from {_in_words(on_host)}"
    )
    if machine.device == "cpu":
        total = f"{_in_words(on_device + on_host)}, but {_in_words(machine.memory)} are free"
    else:
        total = (
            f"{_in_words(on_device + _DEVICE_LIBRARIES)} on {machine.device}, where "
            f"{_in_words(machine.device_memory)} are free, and {_in_words(on_host)} of main "
            f"memory, where {_in_words(machine.memory)} are free"
        )
    return f"the run may need about {total} ({parts}): {_remedy(recipe, need, machine)}"


def _remedy(recipe: Recipe, need: MemoryNeed, machine: Machine) -> str:
    size, workers = recipe.run.batch_size, recipe.data.num_workers
    smaller = size
    while smaller:
        for fewer in dict.fromkeys((workers, min(workers, machine.cores), min(workers, 1))):
            if need.fits(machine, smaller, fewer):
                changes = []
                if smaller < size:
                    steps = -(-size * recipe.run.accumulation_steps // smaller)
                    changes.append(f"run.batch_size {smaller}, run.accumulation_steps {steps}")
                if fewer < workers:
                    changes.append(f"data.num_workers {fewer}")
                return f"it fits with {' and '.join(changes)}"
        smaller //= 2
    return "choose a smaller network (model.config), fewer heads.num_prototypes or smaller views"


def _loss_bytes(recipe: Recipe) -> int:
    """Copies of the prototypes that each objective makes: unit length for student and teacher, and
    a gradient.
    """
    heads = (recipe.heads_of(name) for name in recipe.objectives)
    return sum(3 * 4 * head.num_prototypes * head.bottleneck_dim for head in heads)


def _saved_bytes(
    recipe: Recipe, parts: DistillationParts, views: list[ViewSpec], num_images: int
) -> int:
    """Bytes that the student's forward pass keeps for its backward pass, weights left out."""
    known = {each.untyped_storage().data_ptr() for each in parts.student.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept[place] = tensor
        return tensor

    precision = recipe.run.mixed_precision
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    channels = recipe.data.channels
    crops = [torch.zeros(num_images, channels, view.size, view.size) for view in views]
    with (
        _unchanged(parts.student),
        torch.autocast("cpu", dtype, enabled=precision != "no"),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        output = parts.student(crops, parts.objectives.values())
    assert output is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Let batch norms count nothing, and draw no random numbers of the caller."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
