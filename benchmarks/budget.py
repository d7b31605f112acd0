"""On paper: memory of a GPU and floating-point operations an image for every preset, in bf16.

`python -m benchmarks.budget` prints the table of docs/performance.md. Operations are counted while
the network runs without numbers, stored activations as what autograd keeps on the CPU;
`benchmarks.gpu` measures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from benchmarks.step import VIEWS, draw_crops
from benchmarks.step_costs import BATCH, SPEED, count_batch, format_costs
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.pretraining.distillation import DistillationNetwork, DistillationOutput
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.objectives.cross_entropy import BLOCK_ELEMENTS
from esvit_hf.pretraining.objectives.registry import build_objectives, default_objectives

NUM_PROTOTYPES, BOTTLENECK = 65536, 256
BATCHES = (32, 64)
GPU_SIZES = (24, 40, 80)
GIBIBYTE = 2**30
RESERVE = 1.0
"""GiB for the CUDA context, the allocator's slack and workspaces."""
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    f"Swin-{name}, window {window}": ("esvit_swin", {**fields, "window_size": window})
    for name, fields in {
        "T": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
        "S": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
        "B": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    }.items()
    for window in (7, 14)
}
PRESETS["ViL-T"] = ("esvit_vil", {})
PRESETS["CvT-T"] = ("esvit_cvt", {})


@dataclass(frozen=True)
class Budget:
    """What a preset needs.

    Attributes:
        parameters: of the backbone.
        operations: an image and step: teacher, student, backward and losses; a multiplication and
            addition are two.
        fixed: bytes that do not depend on the batch.
        per_image: bytes of stored activations an image.
    """

    parameters: int
    operations: float
    fixed: float
    per_image: float

    def gibibytes(self, batch: int) -> float:
        """Memory of a GPU with so many images."""
        return (self.fixed + batch * self.per_image) / GIBIBYTE + RESERVE

    def largest_batch(self, gibibytes: int) -> int:
        """Images that fit into so much memory."""
        return int(((gibibytes - RESERVE) * GIBIBYTE - self.fixed) / self.per_image)


def stored_bytes(
    network: Callable[[Sequence[Tensor]], DistillationOutput], crops: Sequence[Tensor]
) -> int:
    """Bytes that autograd keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept),
    ):
        output = network(crops)
    del output
    return sum(sizes.values())


def count_operations(
    model_type: str,
    fields: Mapping[str, Any],
    views: Sequence[tuple[int, int]] = VIEWS,
    num_prototypes: int = NUM_PROTOTYPES,
) -> float:
    """Count the operations of a step for one image, on tensors without numbers.

    Args:
        model_type: of the network.
        fields: of its configuration.
        views: number and side of the views of each size, the teacher's first.
        num_prototypes: of each head.
    """
    with torch.device("meta"), torch.no_grad():
        backbone = RegionBackbone(AutoModel.from_config(AutoConfig.for_model(model_type, **fields)))
        objectives = build_objectives(default_objectives())
        heads = {name: ProjectionHead(backbone.feature_dim, num_prototypes) for name in objectives}
        network = DistillationNetwork(backbone, heads).train()
        crops = [torch.empty(1, 3, side, side) for count, side in views for _ in range(count)]
        with FlopCounterMode(display=False) as student:
            output = network(crops, objectives.values())
        with FlopCounterMode(display=False) as teacher:
            network(crops[: views[0][0]], objectives.values())
    rows = [
        projection.shape[:-1].numel()
        for each in output.projections.values()
        for projection in each.bottlenecks
    ]
    # The view objective has one group, the region objective one for each size.
    teacher_rows = views[0][0] + rows[1]
    losses = 3 * 2 * (sum(rows) + teacher_rows) * num_prototypes * BOTTLENECK
    return teacher.get_total_flops() + 3 * student.get_total_flops() + losses


def count(model_type: str, fields: dict[str, Any]) -> Budget:
    """Count a preset by running it on one and on two images."""
    torch.manual_seed(0)
    backbone = RegionBackbone(AutoModel.from_config(AutoConfig.for_model(model_type, **fields)))
    objectives = build_objectives(default_objectives())
    heads = {name: ProjectionHead(backbone.feature_dim, NUM_PROTOTYPES) for name in objectives}
    network = DistillationNetwork(backbone, heads).train()

    def run(crops: Sequence[Tensor]) -> DistillationOutput:
        output: DistillationOutput = network(crops, objectives.values())
        return output

    one, two = (stored_bytes(run, draw_crops(batch)) for batch in (1, 2))
    trained = sum(parameter.numel() for parameter in network.parameters())
    prototypes = NUM_PROTOTYPES * BOTTLENECK
    return Budget(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        operations=count_operations(model_type, fields),
        # Student, teacher, gradient, two averages; a block of logits, its softmax and 16-bit copy;
        # 16-bit prototypes.
        fixed=5 * 4 * trained + (4 + 4 + 2) * BLOCK_ELEMENTS + 2 * 2 * prototypes,
        per_image=two - one,
    )


def print_presets() -> None:
    """Print what every preset needs."""
    columns = ["preset", "parameters (M)", "operations an image (G)", "activations an image (MiB)"]
    columns += [f"batch {batch} (GiB)" for batch in BATCHES] + [
        f"largest batch in {size} GB" for size in GPU_SIZES
    ]
    print("| " + " | ".join(columns) + " |")
    print("|---" + "|---:" * (len(columns) - 1) + "|")
    for name, (model_type, fields) in PRESETS.items():
        budget = count(model_type, fields)
        cells = [name, f"{budget.parameters / 1e6:.1f}", f"{budget.operations / 1e9:.0f}"]
        cells.append(f"{budget.per_image / 2**20:.0f}")
        cells += [f"{budget.gibibytes(batch):.1f}" for batch in BATCHES]
        cells += [str(budget.largest_batch(size)) for size in GPU_SIZES]
        print("| " + " | ".join(cells) + " |", flush=True)


def print_step() -> None:
    """Print what bounds a step of Swin-T with a batch of 64 on an H200."""
    costs = count_batch()
    operations = count_operations("esvit_swin", {}) * BATCH
    print(format_costs(costs))
    print(f"operations: {operations / 1e12:.2f} T, at least {1e3 * operations / SPEED:.1f} ms")
    print(f"activations that products and attention touch: {costs.operands / 1e9:.1f} GB")


def main(step: bool = False) -> None:
    """Print the table of all presets, or what a step of Swin-T asks of a GPU.

    Args:
        step: kernels, bytes and operations of a step, instead of the presets.
    """
    print_step() if step else print_presets()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
