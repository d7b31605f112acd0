"""Compiling the blocks of a network, so that blocks of one form share one graph for each size of
images.

A whole network is one large graph for each size, which takes minutes to compile. Its blocks are few
small ones, and leave the names of parameters and modules as they are.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from esvit_hf.models.modeling_esvit_common import EsvitPreTrainedModel, StochasticDepth

__all__ = ["compile_blocks"]

# Student and teacher, two sizes of crops, with room for data whose last batch is smaller.
_GRAPHS_OF_A_BLOCK = 8


def compile_blocks(
    model: nn.Module,
    backend: str = "inductor",
    mode: str | None = None,
    *,
    commonest_only: bool = False,
) -> None:
    """Compile the blocks of a network in place; a network without blocks is compiled as a whole.

    Sizes of images are constants of the graphs. Stochastic depth draws other random numbers than in
    a network that is not compiled.

    Args:
        model: network of transformers, on the device that it stays on.
        backend: backend of `torch.compile`.
        mode: mode of `torch.compile`, such as reduce-overhead for CUDA graphs.
        commonest_only: compile only the blocks whose parameters have the shapes that most blocks
            have, and leave the others as they are. A graph takes as long to compile for one block
            as for many.
    """
    blocks: list[nn.Module] = [
        each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)
    ]
    if commonest_only:
        shapes = [tuple(weight.shape for weight in block.parameters()) for block in blocks]
        commonest = max(shapes, key=shapes.count, default=())
        blocks = [block for block, own in zip(blocks, shapes, strict=True) if own == commonest]
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS_OF_A_BLOCK * len(blocks))
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, 2 * config.recompile_limit
    )
    for module in blocks or [model]:
        for depth in module.modules():
            if isinstance(depth, StochasticDepth) and depth.rate > 0:
                _take_rate_as_tensor(depth, next(module.parameters()).device)
        # The forward alone: hooks around it, such as those of shards, are no part of the graph.
        module.forward = torch.compile(
            module.forward,
            fullgraph=isinstance(model, EsvitPreTrainedModel),
            dynamic=False,
            backend=backend,
            mode=mode,
        )


class _StochasticDepthByTensor(StochasticDepth):
    """Stochastic depth whose rate is an input of a graph. As a number it would be a constant, and
    every block would have a graph for itself.
    """

    keep: Tensor

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        draws = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device)
        return branch * ((draws < self.keep) / self.keep).to(branch.dtype)


def _take_rate_as_tensor(depth: StochasticDepth, device: torch.device) -> None:
    depth.keep = torch.tensor(1 - depth.rate, device=device)
    depth.__class__ = _StochasticDepthByTensor
