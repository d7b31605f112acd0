"""Projection head from backbone features to prototypes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """Perceptron to a unit-length bottleneck, and weight-normalized prototypes (DINO appendix;
    EsViT section 3).

    The head stops at the bottleneck. The logits, `head(features) @ head.prototypes().T`, are formed
    block by block where they are consumed, because (regions x prototypes) is by far the largest
    tensor of a training step.

    Args:
        input_dim: channels C of the backbone features.
        num_prototypes: number of prototypes K.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: width D of the bottleneck.
        num_layers: linear layers before the prototypes, at least 1.
        batch_norm: put a batch norm behind every hidden linear layer.
        train_prototype_gain: train the lengths of the prototypes, which start at 1
            (`norm_last_layer=False` in DINO).
    """

    def __init__(
        self,
        input_dim: int,
        num_prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        train_prototype_gain: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for _ in range(num_layers - 1):
            layers.append(nn.Linear(width, hidden_dim))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
            width = hidden_dim
        layers.append(nn.Linear(width, bottleneck_dim))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        bound = bottleneck_dim**-0.5
        self.prototype_direction = nn.Parameter(
            torch.empty(num_prototypes, bottleneck_dim).uniform_(-bound, bound)
        )
        self.prototype_gain = nn.Parameter(
            torch.ones(num_prototypes, 1), requires_grad=train_prototype_gain
        )

    def prototypes(self) -> Tensor:
        """Return the prototype matrix (K, D), float: rows of unit length times their gain."""
        direction = self.prototype_direction
        return direction * (self.prototype_gain / direction.norm(dim=1, keepdim=True))

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `freeze_last_layer` holds still during the first epochs."""
        return [self.prototype_direction, self.prototype_gain]

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., C) to the unit-length bottleneck (..., D), float32 at least."""
        leading = features.shape[:-1]
        bottleneck = self.layers(features.reshape(-1, features.shape[-1]))
        return F.normalize(
            bottleneck.float() if bottleneck.dtype != torch.float64 else bottleneck, dim=-1
        ).view(*leading, -1)
