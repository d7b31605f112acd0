"""Convolutional vision transformer (CvT) as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv
2103.15808).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import OutputRecorder

from .configuration_esvit_cvt import EsvitCvtConfig
from .modeling_esvit_common import (
    AttentionLayout,
    EsvitBackboneMixin,
    EsvitBaseModel,
    EsvitForImageClassification,
    EsvitPreTrainedModel,
    MultilayerPerceptron,
    StageOutput,
    StochasticDepth,
    constant,
    eager_attention,
    fused_attention_is_slow,
    grid_of,
    stochastic_depth_rates,
)
from .modeling_esvit_windows import WindowPlan, relative_position_index, window_attention_layout


def _is_recomputation() -> bool:
    """Whether this is the second forward pass of gradient checkpointing, which runs inside the
    backward pass.
    """
    # A compiler recomputes by itself and writes to buffers once.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextmanager
def _kept_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Let a batch norm in training mode leave its running statistics as they are.

    They are still passed to the kernel: gradient checkpointing demands that both passes save the
    same tensors.
    """
    momentum, batches = norm.momentum, norm.num_batches_tracked
    assert batches is not None
    norm.momentum, norm.num_batches_tracked = 0.0, batches.clone()
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, batches


class EsvitCvtAttention(nn.Module):
    """Self-attention inside square windows, with queries, keys and values from a depthwise
    convolution.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
    """

    def __init__(self, config: EsvitCvtConfig, stage: int) -> None:
        super().__init__()
        channels, kernel = config.hidden_sizes[stage], config.qkv_kernel_sizes[stage]
        self.config = config
        self.num_heads = config.num_heads[stage]
        self.window = config.window_size[stage]
        # The reference scales by all channels, not by those of a head.
        self.scaling = channels**-0.5
        self.depthwise = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
        self.batch_norm = nn.BatchNorm2d(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias[stage])
        self.projection = nn.Linear(channels, channels)
        self.relative = config.relative_position_bias
        if self.relative:
            self.relative_position_bias_table = nn.Parameter(
                torch.empty((2 * self.window - 1) ** 2, self.num_heads)
            )

    def position_index(self) -> Tensor:
        """Row of the bias table for every pair of tokens in a window of the configured size:
        (w^4,).
        """
        return constant(
            relative_position_index, self.window, like=self.relative_position_bias_table
        )

    def relative_position_bias(self, window: int) -> Tensor:
        """Gather the bias table for the tokens of a window.

        The reference cannot add its bias in windows that shrank to the grid; here they use the
        offsets they have.

        Args:
            window: Side of the window in tokens, w; at most the configured one.

        Returns:
            (heads, w^2, w^2).
        """
        index = self.position_index().view(*[self.window] * 4)[:window, :window, :window, :window]
        bias = F.embedding(index.flatten(), self.relative_position_bias_table)
        return bias.view(window**2, window**2, self.num_heads).permute(2, 0, 1)

    def _normalize(self, feature_map: Tensor) -> Tensor:
        if self.training and _is_recomputation():
            with _kept_statistics(self.batch_norm):
                return self.batch_norm(feature_map)
        return self.batch_norm(feature_map)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Let the tokens of each window attend to each other.

        Args:
            tokens: (B, N, C), row-major.
            grid: (h, w) with h * w = N.
            output_attentions: Whether the attention probabilities are wanted.

        Returns:
            (B, N, C) and (B * windows, heads, w^2, w^2) probabilities or None.
        """
        # The grid of an exported network is not known yet.
        window = cast("int", torch.sym_min(self.window, torch.sym_min(*grid)))
        plan = WindowPlan(grid, window)
        # Padded in front of the convolution: border and padding have keys and values, and batch
        # norm sees them.
        token_map = self.depthwise(plan.pad(tokens).permute(0, 3, 1, 2))
        token_map = self._normalize(token_map).permute(0, 2, 3, 1)
        qkv = plan.as_windows(self.qkv(token_map)).unflatten(-1, (3, self.num_heads, -1))
        qkv = qkv.permute(5, 0, 1, 2, 6, 3, 4, 7).flatten(5, 6).flatten(1, 3)
        query, key, value = qkv.unbind(0)
        mixed, probabilities = self._attend(query, key, value, plan.window, output_attentions)
        mixed = plan.join(mixed.reshape(tokens.shape[0], -1, tokens.shape[2]))
        return self.projection(mixed), probabilities

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the configured implementation.

        Takes (B * windows, heads, w^2, d) and returns (B * windows, w^2, heads, d) and the
        probabilities or None.
        """
        bias = self.relative_position_bias(window).to(query.dtype)[None] if self.relative else None
        implementation = self.config._attn_implementation
        fused = implementation == "sdpa" and not fused_attention_is_slow(query, bias)
        if fused and not output_attentions:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, scale=self.scaling
            )
            return mixed.transpose(1, 2), None
        attend = eager_attention
        if implementation != "sdpa" and not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        mixed, probabilities = attend(
            self, query, key, value, bias, scaling=self.scaling, dropout=0.0, is_causal=False
        )
        return mixed, probabilities if output_attentions else None


class EsvitCvtBlock(GradientCheckpointingLayer):
    """Window attention and MLP, each behind a norm and added to its input.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
        drop_path_rate: Rate of stochastic depth.
    """

    def __init__(self, config: EsvitCvtConfig, stage: int, drop_path_rate: float) -> None:
        super().__init__()
        channels = config.hidden_sizes[stage]
        # The reference computes its layer norms in float32 whatever the input; so do the kernels of
        # PyTorch.
        self.attention_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = EsvitCvtAttention(config, stage)
        self.mlp_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = MultilayerPerceptron(
            channels, int(channels * config.mlp_ratio[stage]), config.hidden_act
        )
        self.stochastic_depth = StochasticDepth(drop_path_rate)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the block.

        Args:
            tokens: (B, N, C), row-major.
            grid: (h, w) with h * w = N.
            output_attentions: Whether the attention probabilities are wanted.

        Returns:
            (B, N, C) and (B * windows, heads, w^2, w^2) probabilities or None.
        """
        mixed, probabilities = self.attention(self.attention_norm(tokens), grid, output_attentions)
        tokens = tokens + self.stochastic_depth(mixed)
        tokens = tokens + self.stochastic_depth(self.mlp(self.mlp_norm(tokens)))
        return tokens, probabilities


class EsvitCvtEmbeddings(nn.Module):
    """Embed overlapping patches of the image, or of the map of the stage before, by a convolution.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
    """

    def __init__(self, config: EsvitCvtConfig, stage: int) -> None:
        super().__init__()
        inputs = config.hidden_sizes[stage - 1] if stage else config.num_channels
        channels, ((kernel, stride, padding),) = (
            config.hidden_sizes[stage],
            config.embedding_convolutions[stage],
        )
        self.projection = nn.Conv2d(inputs, channels, kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)

    def forward(self, features: Tensor) -> StageOutput:
        """Embed the patches.

        Args:
            features: (B, C_in, H, W) image or map.

        Returns:
            (B, N, C) tokens and their grid.
        """
        patches = self.projection(features)
        return StageOutput(self.norm(patches.flatten(2).transpose(1, 2)), grid_of(patches))


class EsvitCvtDeepStem(nn.Module):
    """Embed the image by three convolutions, each with batch norm and ReLU.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EsvitCvtConfig) -> None:
        super().__init__()
        channels, shapes = config.hidden_sizes[0], config.embedding_convolutions[0]
        inputs = [config.num_channels, *[channels] * (len(shapes) - 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(
                count,
                channels,
                shape.kernel,
                stride=shape.stride,
                padding=shape.padding,
                bias=False,
            )
            for count, shape in zip(inputs, shapes, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in shapes)

    def forward(self, features: Tensor) -> StageOutput:
        """Embed the image.

        Args:
            features: (B, channels, H, W) image.

        Returns:
            (B, N, C) tokens, not normalized over channels as in the reference, and their grid.
        """
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = F.relu(norm(convolution(features)))
        return StageOutput(features.flatten(2).transpose(1, 2), grid_of(features))


class EsvitCvtStage(nn.Module):
    """Embeddings and blocks of one resolution.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
        drop_path_rates: Stochastic depth rate of each block.
    """

    def __init__(self, config: EsvitCvtConfig, stage: int, drop_path_rates: list[float]) -> None:
        super().__init__()
        deep = config.deep_stem and stage == 0
        self.embeddings = EsvitCvtDeepStem(config) if deep else EsvitCvtEmbeddings(config, stage)
        self.blocks = nn.ModuleList(EsvitCvtBlock(config, stage, rate) for rate in drop_path_rates)

    def forward(
        self, features: Tensor, output_attentions: bool = False
    ) -> tuple[StageOutput, StageOutput]:
        """Embed the patches and run the blocks.

        Args:
            features: (B, C_in, H, W) image or map of the stage before.
            output_attentions: Whether the attention probabilities are computed.

        Returns:
            The tokens in front of the first block and those behind the last one.
        """
        embedded: StageOutput = self.embeddings(features)
        tokens = embedded.tokens
        for block in self.blocks:
            tokens, _ = block(tokens, embedded.grid, output_attentions)
        return embedded, StageOutput(tokens, embedded.grid)


class EsvitCvtPreTrainedModel(EsvitPreTrainedModel):
    """Loading, saving and initialization of the CvT networks."""

    config: EsvitCvtConfig
    _no_split_modules = ["EsvitCvtBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # Unlike in the other networks, the reference starts convolutions like linear layers.
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
            return
        super()._init_weights(module)
        if isinstance(module, EsvitCvtAttention) and module.relative:
            init.trunc_normal_(
                module.relative_position_bias_table, std=self.config.initializer_range
            )


class EsvitCvtModel(EsvitBaseModel, EsvitCvtPreTrainedModel):
    """CvT without a head.

    Args:
        config: Configuration of the network.
    """

    _can_record_outputs = {
        "hidden_states": OutputRecorder(EsvitCvtBlock, index=0),
        "attentions": OutputRecorder(EsvitCvtBlock, index=1),
    }

    def __init__(self, config: EsvitCvtConfig) -> None:
        super().__init__(config)
        # from_pretrained(path, depths=...) sets fields on a finished configuration.
        config.validate_architecture()
        rates = stochastic_depth_rates(config.depths, config.drop_path_rate)
        self.stages = nn.ModuleList(
            EsvitCvtStage(config, stage, rates[stage]) for stage in range(len(config.depths))
        )
        if config.deep_stem:
            self._first_convolution = "stages.0.embeddings.convolutions.0"
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward_stages(
        self, pixel_values: Tensor, *, output_attentions: bool = False
    ) -> list[StageOutput]:
        """Run the network without its last norm (see the base class)."""
        smallest = self.config.smallest_image
        self._check_images(pixel_values, (smallest, smallest))
        outputs: list[StageOutput] = []
        features = pixel_values
        for stage in self.stages:
            embedded, last = stage(features, output_attentions)
            outputs += [last] if outputs else [embedded, last]
            features = last.tokens.transpose(1, 2).unflatten(2, last.grid)
        return outputs

    def region_grid(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the regions for images of a size in pixels (see the base class)."""
        return self.config.token_grids(height, width)[-1]

    def attention_layouts(self, height: int, width: int) -> list[AttentionLayout]:
        """Say which tokens `attentions` belong to (see the base class)."""
        stride, layouts = 1, []
        for stage, grid in enumerate(self.config.token_grids(height, width)):
            stride *= math.prod(shape.stride for shape in self.config.embedding_convolutions[stage])
            plan = WindowPlan(grid, min(self.config.window_size[stage], *grid))
            layout = window_attention_layout(plan, (stride, stride))
            layouts += [layout] * self.config.depths[stage]
        return layouts


class EsvitCvtForImageClassification(EsvitForImageClassification, EsvitCvtPreTrainedModel):
    """CvT with a linear classifier on the view feature.

    Args:
        config: Configuration of the network; `num_labels` sets the number of classes.
    """

    network_class = EsvitCvtModel


class EsvitCvtBackbone(EsvitBackboneMixin, EsvitCvtModel):
    """CvT that returns feature maps of the stages in `out_features`.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EsvitCvtConfig) -> None:
        super().__init__(config)
        self._add_stage_norms([config.hidden_sizes[0], *config.hidden_sizes], config.layer_norm_eps)
        self.post_init()


__all__ = [
    "EsvitCvtBackbone",
    "EsvitCvtForImageClassification",
    "EsvitCvtModel",
    "EsvitCvtPreTrainedModel",
]
