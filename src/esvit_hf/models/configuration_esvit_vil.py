"""Configuration of the Vision Longformer (ViL) networks of EsViT."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_esvit_common import (
    EsvitConfig,
    as_pair,
    check_one_value_a_stage,
    check_rate,
)

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_sizes": [96, 192, 384, 768],
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
    },
}


@strict
class EsvitVilConfig(EsvitConfig):
    """Shape of a Vision Longformer as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv
    2103.15358).

    Every stage embeds patches of the map before it, prepends its own global tokens and drops them
    again at its end. In a sparse stage a token attends to its chunk of `window_size` x
    `window_size` tokens, to the 8 chunks around it and to the global tokens; in a full stage
    everything attends to everything.

    Args:
        image_size: Input size in pixels that fixes the tables of the full stages, one number or
            (height, width). Inputs of other sizes resize them.
        patch_sizes: Side of the patches of each stage, in pixels or in tokens of the stage before.
        num_channels: Channels of the input image.
        hidden_sizes: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        window_size: Side of the chunks of the sparse stages in tokens, one number or one for each
            stage; full stages have no chunks.
        sparse_stages: Whether the attention of each stage is sparse.
        num_global_tokens: Global tokens of each stage. Those of the last stage, if any, give the
            view feature.
        mlp_ratio: Hidden channels of the MLP as a multiple of the channels of its stage.
        qkv_bias: Whether query, key and value projections have a bias.
        drop_path_rate: Stochastic depth rate of the last block; it rises linearly from 0 at the
            first block.
        hidden_act: Activation of the MLP, a name known to transformers.
        position_embedding: One name, or one for each stage. "relative": a learned bias for every
            relative position inside the attention. "absolute": a learned vector for every row
            (first half of the channels) and every column (second half) added to the tokens.
        sparse_training_mode: Chunks that sparse attention sees in training. "all": those of
            evaluation. "random_neighbor": the own chunk and one of the 8 around it, drawn anew in
            every block at every call.
        initializer_range: Standard deviation of the truncated normal distribution that starts the
            weights.
        layer_norm_eps: Epsilon of the layer norms.

    Raises:
        ValueError: If the fields contradict each other or a name is misspelled.
    """

    model_type = "esvit_vil"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_sizes: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | list[int] | tuple[int, ...] = 7
    sparse_stages: list[bool] | tuple[bool, ...] = (True, True, False, False)
    num_global_tokens: list[int] | tuple[int, ...] = (1, 1, 1, 0)
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    position_embedding: str | list[str] | tuple[str, ...] = "relative"
    sparse_training_mode: Literal["all", "random_neighbor"] = "all"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def validate_architecture(self) -> None:
        """Check that the fields describe a network that can be built.

        Raises:
            ValueError: With the field, its value and what would work.
        """
        check_one_value_a_stage(self, ("depths", "hidden_sizes", "num_heads", "patch_sizes"))
        check_rate(self, "drop_path_rate")
        if self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels} must be at least 1.")
        for name, values in (
            ("sparse_stages", self.sparse_stages),
            ("num_global_tokens", self.num_global_tokens),
            ("window_size", self.stage_windows),
            ("position_embedding", self.stage_positions),
        ):
            if len(values) != len(self.depths):
                raise ValueError(
                    f"{name}={list(values)} has {len(values)} entries; the network has "
                    f"{len(self.depths)} stages."
                )
        if min(self.stage_windows) < 1:
            raise ValueError(f"window_size={self.window_size} must be at least 1.")
        if not {"relative", "absolute"}.issuperset(self.stage_positions):
            raise ValueError(
                f"position_embedding={self.position_embedding!r} must be 'relative' or 'absolute'."
            )
        if min(self.num_global_tokens) < 0:
            raise ValueError(
                f"num_global_tokens={list(self.num_global_tokens)} must not be negative; 0 means "
                f"none."
            )
        for stage, (channels, heads) in enumerate(
            zip(self.hidden_sizes, self.num_heads, strict=True)
        ):
            if channels % heads:
                raise ValueError(
                    f"num_heads[{stage}]={heads} does not divide hidden_sizes[{stage}]={channels}."
                )
            if self.stage_positions[stage] == "absolute" and channels % 2:
                raise ValueError(
                    f"hidden_sizes[{stage}]={channels} must be even with "
                    f"position_embedding='absolute': rows and columns have half of the channels "
                    f"each."
                )
        patch, stride = self.patch_sizes[0], self.total_stride
        for axis, pixels in zip(
            ("height", "width"), as_pair(self.image_size, "image_size"), strict=True
        ):
            if pixels % patch or pixels < stride:
                works = sorted(
                    {max(pixels // patch * patch, stride), max(-(-pixels // patch) * patch, stride)}
                )
                raise ValueError(
                    f"image_size={self.image_size} must be divisible by patch_sizes[0]={patch} and "
                    f"not below the network's stride of {stride} pixels: a {axis} of "
                    f"{' or '.join(map(str, works))} pixels works."
                )

    @property
    def total_stride(self) -> int:
        """Pixels, vertically and horizontally, from one region of the last stage to the next."""
        return math.prod(self.patch_sizes)

    @property
    def stage_windows(self) -> list[int]:
        """Side of the chunks of each stage in tokens, if it is sparse."""
        sizes = self.window_size
        return [sizes] * len(self.depths) if isinstance(sizes, int) else list(sizes)

    @property
    def stage_positions(self) -> list[str]:
        """Kind of position embedding of each stage."""
        kinds = self.position_embedding
        return [kinds] * len(self.depths) if isinstance(kinds, str) else list(kinds)

    @property
    def stage_grids(self) -> list[tuple[int, int]]:
        """Token grid (height, width) of each stage for inputs of `image_size`."""
        height, width = as_pair(self.image_size, "image_size")
        grids = []
        for patch in self.patch_sizes:
            height, width = height // patch, width // patch
            grids.append((height, width))
        return grids

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    @classmethod
    def from_preset(cls, name: Literal["tiny"], **fields: Any) -> "EsvitVilConfig":
        """Configure one of the sizes of the paper.

        Args:
            name: Size of the network: "tiny" is the one with 2, 2, 6 and 2 blocks.
            **fields: Further fields; they win over those of the preset.

        Returns:
            The configuration for 224-pixel images.

        Raises:
            ValueError: If there is no preset of this name.
        """
        if name not in _PRESETS:
            raise ValueError(f"There is no ViL preset {name!r}; presets: {', '.join(_PRESETS)}.")
        return cls(**{**_PRESETS[name], **fields})


__all__ = ["EsvitVilConfig"]
