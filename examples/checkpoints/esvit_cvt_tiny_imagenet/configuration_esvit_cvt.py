"""Configuration of the convolutional vision transformers (CvT) of EsViT."""

import math
from typing import Any, Literal, NamedTuple

from huggingface_hub.dataclasses import strict

from .configuration_esvit_common import (
    EsvitConfig,
    as_pair,
    check_one_value_a_stage,
    check_rate,
)

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_sizes": [64, 192, 384, 768],
        "depths": [2, 2, 6, 2],
        "num_heads": [1, 3, 6, 12],
    },
}


class ConvolutionShape(NamedTuple):
    """Geometry of a convolution, the same along both axes.

    Attributes:
        kernel: Side of the kernel.
        stride: Step between two outputs.
        padding: Zeros on each side.
    """

    kernel: int
    stride: int
    padding: int

    def output_size(self, size: int) -> int:
        """Number of outputs along an axis of `size` inputs; below 1 if the inputs are too few."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def smallest_input(self, outputs: int) -> int:
        """Smallest number of inputs along an axis that gives a number of outputs."""
        return max((outputs - 1) * self.stride + self.kernel - 2 * self.padding, 1)


# Fixed in the reference, whatever the patches of the first stage are.
DEEP_STEM = (ConvolutionShape(3, 2, 1), ConvolutionShape(3, 1, 1), ConvolutionShape(3, 2, 1))


@strict
class EsvitCvtConfig(EsvitConfig):
    """Shape of a CvT as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv 2103.15808).

    Every stage embeds overlapping patches by a convolution and attends inside square windows, with
    queries, keys and values from a depthwise convolution of the tokens.

    Args:
        image_size: Input size in pixels, one number or (height, width). It tells what size the
            network is trained for and changes nothing in it.
        num_channels: Channels of the input image.
        hidden_sizes: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        patch_sizes: Side of the patches of each stage, in pixels or in tokens of the stage before.
        patch_strides: Step between the patches of each stage; patches overlap where it is below
            their side.
        patch_padding: Zeros on each side of the input of each stage's patches.
        window_size: Side of the attention windows of each stage in tokens. On a smaller grid the
            window is as large as the shorter side of the grid.
        mlp_ratio: Hidden channels of the MLP of each stage as a multiple of its channels.
        qkv_kernel_sizes: Side of the depthwise convolution of each stage, odd; its padding keeps
            the size of the map.
        qkv_bias: Whether query, key and value projections of each stage have a bias.
        deep_stem: Whether three 3 x 3 convolutions with batch norm and ReLU, stride 4 in all, embed
            the image. The first entries of `patch_sizes`, `patch_strides` and `patch_padding` then
            have no effect.
        relative_position_bias: Whether attention has a learned bias for every relative position in
            a window.
        drop_path_rate: Stochastic depth rate of the last block; it rises linearly from 0 at the
            first block.
        hidden_act: Activation of the MLP, a name known to transformers. The reference's is x *
            sigmoid(1.702 x).
        initializer_range: Standard deviation of the truncated normal distribution that starts the
            weights.
        layer_norm_eps: Epsilon of the layer norms.

    Raises:
        ValueError: If the fields contradict each other or a name is misspelled.
    """

    model_type = "esvit_cvt"

    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (1, 3, 6, 12)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    patch_strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    patch_padding: list[int] | tuple[int, ...] = (2, 1, 1, 1)
    window_size: list[int] | tuple[int, ...] = (7, 7, 7, 7)
    mlp_ratio: list[float | int] | tuple[float | int, ...] = (4.0, 4.0, 4.0, 4.0)
    qkv_kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 3, 3)
    qkv_bias: list[bool] | tuple[bool, ...] = (True, True, True, True)
    deep_stem: bool = False
    relative_position_bias: bool = False
    drop_path_rate: float | int = 0.1
    hidden_act: str = "quick_gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def validate_architecture(self) -> None:
        """Check that the fields describe a network that can be built.

        Raises:
            ValueError: With the field, its value and what would work.
        """
        check_one_value_a_stage(
            self,
            (
                "depths",
                "hidden_sizes",
                "num_heads",
                "patch_sizes",
                "patch_strides",
                "window_size",
                "qkv_kernel_sizes",
            ),
        )
        check_rate(self, "drop_path_rate")
        as_pair(self.image_size, "image_size")
        if self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels} must be at least 1.")
        for name in ("patch_padding", "mlp_ratio", "qkv_bias"):
            values = list(getattr(self, name))
            if len(values) != len(self.depths):
                raise ValueError(
                    f"{name}={values} has {len(values)} entries; the network has "
                    f"{len(self.depths)} stages."
                )
        for stage, (channels, heads) in enumerate(
            zip(self.hidden_sizes, self.num_heads, strict=True)
        ):
            if channels % heads:
                raise ValueError(
                    f"num_heads[{stage}]={heads} does not divide hidden_sizes[{stage}]={channels}."
                )
            if int(channels * self.mlp_ratio[stage]) < 1:
                raise ValueError(
                    f"mlp_ratio[{stage}]={self.mlp_ratio[stage]} leaves no hidden channel of "
                    f"hidden_sizes[{stage}]={channels}: give at least {1 / channels:.3g}."
                )
            if not 0 <= self.patch_padding[stage] < self.patch_sizes[stage]:
                raise ValueError(
                    f"patch_padding[{stage}]={self.patch_padding[stage]} must be at least 0 and "
                    f"below patch_sizes[{stage}]={self.patch_sizes[stage]}."
                )
            if (kernel := self.qkv_kernel_sizes[stage]) % 2 == 0:
                raise ValueError(
                    f"qkv_kernel_sizes[{stage}]={kernel} must be odd: an even kernel cannot keep "
                    f"the size of the map."
                )

    @property
    def embedding_convolutions(self) -> list[tuple[ConvolutionShape, ...]]:
        """Convolutions that embed the input of each stage, in order."""
        patches = zip(self.patch_sizes, self.patch_strides, self.patch_padding, strict=True)
        stages: list[tuple[ConvolutionShape, ...]] = [
            (ConvolutionShape(*patch),) for patch in patches
        ]
        return [DEEP_STEM, *stages[1:]] if self.deep_stem else stages

    @property
    def total_stride(self) -> int:
        """Pixels, vertically and horizontally, from one region of the last stage to the next."""
        return math.prod(shape.stride for stage in self.embedding_convolutions for shape in stage)

    @property
    def smallest_image(self) -> int:
        """Height and width in pixels of the smallest image that has a region."""
        size = 1
        for shape in reversed([shape for stage in self.embedding_convolutions for shape in stage]):
            size = shape.smallest_input(size)
        return size

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    def token_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Token grid of each stage.

        Args:
            height: Image height in pixels.
            width: Image width in pixels.

        Returns:
            (h, w) of each stage.
        """
        grids = []
        for stage in self.embedding_convolutions:
            for shape in stage:
                height, width = shape.output_size(height), shape.output_size(width)
            grids.append((height, width))
        return grids

    @classmethod
    def from_preset(cls, name: Literal["tiny"], **fields: Any) -> "EsvitCvtConfig":
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
            raise ValueError(f"There is no CvT preset {name!r}; presets: {', '.join(_PRESETS)}.")
        return cls(**{**_PRESETS[name], **fields})


__all__ = ["EsvitCvtConfig"]
