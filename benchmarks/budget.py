"""On paper: memory of a GPU and floating-point operations an image for every preset, in bf16.

`python -m benchmarks.budget` prints the table of docs/performance.md. Operations are counted while
the network runs, stored activations are counted as what autograd keeps, both on the CPU;
`benchmarks.gpu` measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from benchmarks.step import VIEWS, draw_crops
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
    crops = draw_crops(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with FlopCounterMode(display=False) as student:
            run(crops)
        with FlopCounterMode(display=False) as teacher:
            run(crops[: VIEWS[0][0]])
        regions = [backbone(crop).regions.shape[1] for crop in (crops[0], crops[-1])]
    counts = [views for views, _ in VIEWS]
    teacher_rows = counts[0] * (1 + regions[0])
    rows = teacher_rows + sum(
        views * (1 + number) for views, number in zip(counts, regions, strict=True)
    )
    losses = 3 * 2 * rows * NUM_PROTOTYPES * BOTTLENECK
    trained = sum(parameter.numel() for parameter in network.parameters())
    prototypes = NUM_PROTOTYPES * BOTTLENECK
    return Budget(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        operations=teacher.get_total_flops() + 3 * student.get_total_flops() + losses,
        # Student, teacher, gradient, two averages; a block of logits, its softmax and 16-bit copy;
        # 16-bit prototypes.
        fixed=5 * 4 * trained + (4 + 4 + 2) * BLOCK_ELEMENTS + 2 * 2 * prototypes,
        per_image=two - one,
    )


def main() -> None:
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


if __name__ == "__main__":
    main()
