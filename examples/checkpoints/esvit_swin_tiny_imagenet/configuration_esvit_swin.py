"""Configuration of the Swin networks of EsViT."""

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
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "drop_path_rate": 0.1,
    },
    "small": {
        "embed_dim": 96,
        "depths": [2, 2, 18, 2],
        "num_heads": [3, 6, 12, 24],
        "drop_path_rate": 0.2,
    },
    "base": {
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "drop_path_rate": 0.2,
    },
    "large": {
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "drop_path_rate": 0.2,
    },
}


@strict
class EsvitSwinConfig(EsvitConfig):
    """Shape of a Swin network as EsViT trains it (arXiv 2106.09785, section 3.1).

    The window of every stage is fixed by `image_size`: a stage whose token grid at that size,
    rounded down, is no larger than `window_size` uses windows as large as that grid and never
    shifts. Inputs of other sizes keep these windows.

    Args:
        image_size: Input size in pixels that fixes the windows, one number or (height, width).
        patch_size: Size of a patch in pixels, one number or (height, width).
        num_channels: Channels of the input image.
        embed_dim: Channels of the first stage; every later stage has twice as many as the one
            before.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        window_size: Side of the square attention window in tokens.
        mlp_ratio: Hidden channels of the MLP as a multiple of the channels of its stage.
        qkv_bias: Whether query, key and value projections have a bias.
        drop_path_rate: Stochastic depth rate of the last block; it rises linearly from 0 at the
            first block.
        hidden_act: Activation of the MLP, a name known to transformers.
        use_absolute_embeddings: Whether a learned position embedding is added to the patches.
        initializer_range: Standard deviation of the truncated normal distribution that starts the
            weights.
        layer_norm_eps: Epsilon of the layer norms.

    Raises:
        ValueError: If the fields contradict each other or a name is misspelled.
    """

    model_type = "esvit_swin"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def validate_architecture(self) -> None:
        """Check that the fields describe a network that can be built.

        Raises:
            ValueError: With the field, its value and what would work.
        """
        check_one_value_a_stage(self, ("depths", "num_heads"))
        check_rate(self, "drop_path_rate")
        for name in ("num_channels", "embed_dim", "window_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        for stage, (channels, heads) in enumerate(
            zip(self.stage_channels, self.num_heads, strict=True)
        ):
            if channels % heads:
                raise ValueError(
                    f"num_heads[{stage}]={heads} does not divide the {channels} channels of stage "
                    f"{stage + 1} (embed_dim={self.embed_dim} doubled {stage} times)."
                )
        image, patch = (
            as_pair(self.image_size, "image_size"),
            as_pair(self.patch_size, "patch_size"),
        )
        for axis, pixels, size in zip(("height", "width"), image, patch, strict=True):
            if pixels % size:
                below, above = pixels // size * size, (pixels // size + 1) * size
                works = f"{below} or {above}" if below else f"{above}"
                raise ValueError(
                    f"image_size={self.image_size} is not divisible by "
                    f"patch_size={self.patch_size}: a {axis} of {works} pixels works."
                )
            if pixels < (smallest := size * 2 ** (len(self.depths) - 1)):
                raise ValueError(
                    f"image_size={self.image_size} leaves the last of {len(self.depths)} stages no "
                    f"token: give a {axis} of at least {smallest} pixels."
                )

    @property
    def stage_channels(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage for stage in range(len(self.depths))]

    @property
    def stage_grids(self) -> list[tuple[int, int]]:
        """Token grid (height, width) of each stage for inputs of `image_size`, rounded down.

        These decide about the windows. The maps themselves are rounded up where a side is odd.
        """
        image, patch = (
            as_pair(self.image_size, "image_size"),
            as_pair(self.patch_size, "patch_size"),
        )
        height, width = image[0] // patch[0], image[1] // patch[1]
        grids = []
        for _ in self.depths:
            grids.append((height, width))
            height, width = height // 2, width // 2
        return grids

    @property
    def stage_windows(self) -> list[int]:
        """Side of the attention window of each stage in tokens."""
        return [min(self.window_size, *grid) for grid in self.stage_grids]

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.stage_channels[-1]

    @classmethod
    def from_preset(
        cls,
        name: Literal["tiny", "small", "base", "large"],
        *,
        window_size: Literal[7, 14] = 7,
        **fields: Any,
    ) -> "EsvitSwinConfig":
        """Configure one of the sizes of the paper.

        Args:
            name: Size of the network.
            window_size: Side of the attention window in tokens.
            **fields: Further fields; they win over those of the preset.

        Returns:
            The configuration for 224-pixel images.

        Raises:
            ValueError: If there is no preset of this name.
        """
        if name not in _PRESETS:
            raise ValueError(f"There is no Swin preset {name!r}; presets: {', '.join(_PRESETS)}.")
        return cls(**{**_PRESETS[name], "window_size": window_size, **fields})


__all__ = ["EsvitSwinConfig"]
