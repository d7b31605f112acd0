"""Swin Transformer as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv 2103.14030)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import OutputRecorder

from .configuration_esvit_common import as_pair
from .configuration_esvit_swin import EsvitSwinConfig
from .modeling_esvit_common import (
    EsvitBackboneMixin,
    EsvitBaseModel,
    EsvitForImageClassification,
    EsvitPreTrainedModel,
    MultilayerPerceptron,
    StageOutput,
    StochasticDepth,
    stochastic_depth_rates,
)
from .modeling_esvit_linear import EsvitLinear

# Added to the scores of token pairs that lie on different sides of the image before the shift; the reference's value.
_MASKED_SCORE = -100.0


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens in a window.

    Args:
        window: Side of the window in tokens, w.

    Returns:
        (w^4,) int64, query-major, values in [0, (2w - 1)^2).
    """
    axis = torch.arange(window)
    offset = axis[:, None] - axis[None, :] + window - 1
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]
    return index.reshape(-1)


@dataclass(frozen=True)
class WindowLayout:
    """How a token map is cut into windows, fixed by its grid: computed once, used by every call.

    Attributes:
        windows: Number of windows.
        to_windows: (windows * w^2,) int64, for every slot of a window the token that it holds, N for a padded one;
            None if the map is one window in its own order.
        to_map: (N,) int64, for every token of the map its slot.
        mask: (windows, 1, w^2, w^2), -100 where the shift put tokens of different sides side by side, else 0; None
            without a shift.
    """

    windows: int
    to_windows: Tensor | None
    to_map: Tensor | None
    mask: Tensor | None


def _build_window_layout(
    grid: tuple[int, int], window: int, shift: int, dtype: torch.dtype, device: torch.device
) -> WindowLayout:
    (height, width), tokens = grid, grid[0] * grid[1]
    rows, columns = -(-height // window), -(-width // window)
    padded_height, padded_width = rows * window, columns * window
    if rows == columns == 1 and not shift and (padded_height, padded_width) == grid:
        return WindowLayout(1, None, None, None)

    # Of the token at slot (row of windows, column of windows, row, column): its place in the map before the roll.
    inside = torch.arange(window, device=device)
    y = (torch.arange(rows, device=device)[:, None, None, None] * window + inside[:, None] + shift) % padded_height
    x = (torch.arange(columns, device=device)[:, None, None] * window + inside + shift) % padded_width
    to_windows = torch.where((y < height) & (x < width), y * width + x, tokens).flatten()

    # Of the token at (row, column) of the map: its slot.
    y_rolled = (torch.arange(height, device=device)[:, None] - shift) % padded_height
    x_rolled = (torch.arange(width, device=device) - shift) % padded_width
    window_index = y_rolled // window * columns + x_rolled // window
    to_map = (window_index * window**2 + y_rolled % window * window + x_rolled % window).flatten()

    mask = None
    if shift:
        sides = ((y < shift) * 2 + (x < shift)).view(rows * columns, 1, window**2)
        apart = sides.unsqueeze(2) != sides.unsqueeze(3)
        mask = torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, _MASKED_SCORE)
    return WindowLayout(rows * columns, to_windows, to_map, mask)


@lru_cache(maxsize=256)
def _cached_window_layout(
    grid: tuple[int, int], window: int, shift: int, dtype: torch.dtype, device: torch.device
) -> WindowLayout:
    # Tensors first built under inference_mode would be refused by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return _build_window_layout(grid, window, shift, dtype, device)


def window_layout(
    grid: tuple[int, int], window: int, shift: int, dtype: torch.dtype, device: torch.device
) -> WindowLayout:
    """Cut a token map into windows after rolling it up and to the left.

    The map is padded at the right and at the bottom to multiples of the window, before it is rolled.

    Args:
        grid: (h, w) of the token map.
        window: Side of the window in tokens.
        shift: Tokens by which the padded map is rolled.
        dtype: Type of the attention scores.
        device: Device of the tokens.

    Returns:
        The layout.
    """
    # While tracing, a cached tensor would leak from or into the graph.
    if torch.compiler.is_compiling():
        return _build_window_layout(grid, window, shift, dtype, device)
    return _cached_window_layout(grid, window, shift, dtype, device)


class _GatherTokens(torch.autograd.Function):
    """Reorder tokens in one copy, and their gradients in one copy: without duplicates both directions are a gather."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        if index.shape[0] > tokens.shape[1]:
            tokens = F.pad(tokens, (0, 0, 0, 1))
        return tokens.index_select(1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _GatherTokens.apply(gradient, inverse, index), None, None


class EsvitSwinAttention(nn.Module):
    """Self-attention inside square windows with a learnt bias for every relative position.

    Args:
        config: Configuration of the network.
        channels: C.
        num_heads: Attention heads; they share the channels evenly.
        window: Side of the window in tokens, w.
        shift: Tokens by which the map is rolled before it is cut into windows; 0 for none.
    """

    relative_position_index: Tensor

    def __init__(self, config: EsvitSwinConfig, channels: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.window = window
        self.shift = shift
        self.scaling = (channels // num_heads) ** -0.5
        self.qkv = EsvitLinear(channels, 3 * channels, bias=config.qkv_bias)
        self.projection = EsvitLinear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self._cached_bias: tuple[Tensor, Tensor] | None = None

    def relative_position_bias(self, dtype: torch.dtype) -> Tensor:
        """Gather the bias table for the tokens of a window.

        Args:
            dtype: Type of the attention scores.

        Returns:
            (1, heads, w^2, w^2).
        """
        table = self.relative_position_bias_table
        trains = torch.is_grad_enabled() and table.requires_grad
        if trains or table.device.type != "cpu" or torch.compiler.is_compiling():
            return self._gather_bias(dtype)
        # Compared by value, not by version: writing through `.data` leaves the version as it is.
        cached = self._cached_bias
        if cached is None or cached[1].dtype != dtype or not torch.equal(cached[0], table):
            with torch.inference_mode(False), torch.no_grad():
                cached = self._cached_bias = (table.detach().clone(), self._gather_bias(dtype))
        return cached[1]

    def _gather_bias(self, dtype: torch.dtype) -> Tensor:
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)
        bias = bias.view(1, self.window**2, self.window**2, self.num_heads).permute(0, 3, 1, 2)
        return bias.to(dtype).contiguous()

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
        batch, _, channels = tokens.shape
        size, heads = self.window**2, self.num_heads
        layout = window_layout(grid, self.window, self.shift, tokens.dtype, tokens.device)
        if layout.to_windows is not None:
            tokens = _GatherTokens.apply(tokens, layout.to_windows, layout.to_map)
        qkv = self.qkv(tokens).view(batch, layout.windows, size, 3, heads, channels // heads)
        bias = self.relative_position_bias(qkv.dtype)
        if layout.mask is not None:
            bias = bias + layout.mask.to(qkv.dtype)
        mixed, probabilities = self._attend(qkv, bias, output_attentions)
        output = self.projection(mixed.reshape(batch, layout.windows * size, channels))
        if layout.to_map is not None:
            output = _GatherTokens.apply(output, layout.to_map, layout.to_windows)
        return output, probabilities

    def _attend(self, qkv: Tensor, bias: Tensor, output_attentions: bool) -> tuple[Tensor, Tensor | None]:
        """Attend with the configured implementation.

        Takes qkv (B, windows, w^2, 3, heads, C / heads) and bias (1 or windows, heads, w^2, w^2); returns
        (B, windows, w^2, heads, C / heads) and (B * windows, heads, w^2, w^2) probabilities or None.
        """
        implementation = self.config._attn_implementation
        if output_attentions or implementation == "eager":
            return self._attend_by_products(qkv, bias, output_attentions)
        batch, windows = qkv.shape[:2]
        on_cpu = qkv.device.type == "cpu"
        if implementation == "sdpa":
            # On CPU the fused kernel has no gradient for the bias and is slow in 16 bits.
            if on_cpu and (bias.requires_grad or qkv.dtype != torch.float32):
                return self._attend_by_products(qkv, bias, False)
            if bias.shape[0] > 1 and not on_cpu:
                # Windows as further heads: the bias is shared by the images without being repeated.
                query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
                bias = bias.flatten(0, 1)[None]
                mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scaling)
                return mixed.unflatten(1, (windows, self.num_heads)).transpose(2, 3), None
        query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
        if bias.shape[0] > 1:
            bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        if implementation == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scaling)
            return mixed.transpose(1, 2), None
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            implementation, F.scaled_dot_product_attention
        )
        return attend(self, query, key, value, bias, dropout=0.0, scaling=self.scaling, is_causal=False)

    def _attend_by_products(self, qkv: Tensor, bias: Tensor, output_attentions: bool) -> tuple[Tensor, Tensor | None]:
        size = qkv.shape[2]
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        # The 16-bit softmax of PyTorch on CPU is 1.7 times slower for rows that do not fill its vectors.
        fill = -size % 32 if size > 32 and qkv.device.type == "cpu" and qkv.element_size() == 2 else 0
        if fill and not output_attentions and not torch.is_grad_enabled():
            key, value = F.pad(key, (0, 0, 0, fill)), F.pad(value, (0, 0, 0, fill))
            bias = F.pad(bias, (0, fill), value=-math.inf)
        scores = query.flatten(0, 2) @ key.flatten(0, 2).transpose(1, 2)
        scores = torch.add(bias, scores.view(*query.shape[:-1], -1), alpha=self.scaling)
        probabilities = scores.softmax(dim=-1)
        mixed = (probabilities.flatten(0, 2) @ value.flatten(0, 2)).view(query.shape).transpose(2, 3)
        return mixed, probabilities.flatten(0, 1) if output_attentions else None


class EsvitSwinBlock(GradientCheckpointingLayer):
    """Window attention and MLP, each behind a norm and added to its input.

    Args:
        config: Configuration of the network.
        channels: C.
        num_heads: Attention heads.
        window: Side of the window in tokens.
        shift: Tokens by which the map is rolled before it is cut into windows.
        drop_path_rate: Rate of stochastic depth.
    """

    def __init__(
        self, config: EsvitSwinConfig, channels: int, num_heads: int, window: int, shift: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = EsvitSwinAttention(config, channels, num_heads, window, shift)
        self.mlp_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = MultilayerPerceptron(channels, int(channels * config.mlp_ratio), config.hidden_act)
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
        # The map is padded behind the norm, so that padded tokens enter the projections as zeros.
        mixed, probabilities = self.attention(self.attention_norm(tokens), grid, output_attentions)
        tokens = tokens + self.stochastic_depth(mixed)
        tokens = tokens + self.stochastic_depth(self.mlp(self.mlp_norm(tokens)))
        return tokens, probabilities


class EsvitSwinDownsample(nn.Module):
    """Merge each 2 x 2 neighbourhood into one token with twice the channels.

    Args:
        channels: C of the input.
        eps: Epsilon of the norm.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=eps)
        self.reduction = EsvitLinear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Halve the grid, rounding up: an odd side is padded with zeros.

        Args:
            tokens: (B, N, C), row-major.
            grid: (h, w) with h * w = N.

        Returns:
            (B, ceil(h / 2) * ceil(w / 2), 2C).
        """
        height, width = grid
        token_map = tokens.unflatten(1, grid)
        if height % 2 or width % 2:
            token_map = F.pad(token_map, (0, 0, 0, width % 2, 0, height % 2))
        # The reference concatenates the neighbourhood column by column: (0, 0), (1, 0), (0, 1), (1, 1).
        merged = token_map.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(merged.flatten(3).flatten(1, 2)))


class EsvitSwinStage(nn.Module):
    """Blocks of one resolution; odd blocks shift their windows.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
        drop_path_rates: Stochastic depth rate of each block.
    """

    def __init__(self, config: EsvitSwinConfig, stage: int, drop_path_rates: list[float]) -> None:
        super().__init__()
        channels, heads = config.stage_channels[stage], config.num_heads[stage]
        window = config.stage_windows[stage]
        shift = 0 if min(config.stage_grids[stage]) <= config.window_size else window // 2
        self.blocks = nn.ModuleList(
            EsvitSwinBlock(config, channels, heads, window, shift * (block % 2), rate)
            for block, rate in enumerate(drop_path_rates)
        )
        last = stage == len(config.depths) - 1
        self.downsample = None if last else EsvitSwinDownsample(channels, config.layer_norm_eps)

    def forward(self, tokens: Tensor, grid: tuple[int, int], output_attentions: bool) -> StageOutput:
        """Run the blocks, not the downsampling.

        Args:
            tokens: (B, N, C), row-major.
            grid: (h, w) with h * w = N.
            output_attentions: Whether the attention probabilities are computed.

        Returns:
            The tokens behind the last block.
        """
        for block in self.blocks:
            tokens, _ = block(tokens, grid, output_attentions)
        return StageOutput(tokens, grid)


class EsvitSwinEmbeddings(nn.Module):
    """Cut the image into patches and project each to a token.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EsvitSwinConfig) -> None:
        super().__init__()
        self.patch_size = as_pair(config.patch_size, "patch_size")
        self.grid = config.stage_grids[0]
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.position_embeddings = (
            nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], config.embed_dim))
            if config.use_absolute_embeddings
            else None
        )

    def forward(self, pixel_values: Tensor) -> StageOutput:
        """Embed the patches.

        Pixels at the right and the bottom that do not fill a patch are left out, as in the reference.

        Args:
            pixel_values: (B, channels, H, W).

        Returns:
            (B, N, C) tokens and their grid.
        """
        patches = self.projection(pixel_values)
        grid = (patches.shape[2], patches.shape[3])
        tokens = self.norm(patches.flatten(2).transpose(1, 2))
        if self.position_embeddings is not None:
            tokens = tokens + self._positions(grid)
        return StageOutput(tokens, grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        assert self.position_embeddings is not None
        if grid == self.grid:
            return self.position_embeddings
        positions = self.position_embeddings.transpose(1, 2).unflatten(2, self.grid)
        positions = F.interpolate(positions, size=grid, mode="bicubic", align_corners=False)
        return positions.flatten(2).transpose(1, 2)


class EsvitSwinPreTrainedModel(EsvitPreTrainedModel):
    """Loading, saving and initialisation of the Swin networks."""

    config: EsvitSwinConfig
    _no_split_modules = ["EsvitSwinBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EsvitSwinAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
            # from_pretrained leaves buffers that are not saved uninitialised.
            init.copy_(module.relative_position_index, relative_position_index(module.window))
        elif isinstance(module, EsvitSwinEmbeddings) and module.position_embeddings is not None:
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)


class EsvitSwinModel(EsvitBaseModel, EsvitSwinPreTrainedModel):
    """Swin network without a head.

    Args:
        config: Configuration of the network.
    """

    _can_record_outputs = {
        "hidden_states": OutputRecorder(EsvitSwinBlock, index=0),
        "attentions": OutputRecorder(EsvitSwinBlock, index=1),
    }

    def __init__(self, config: EsvitSwinConfig) -> None:
        super().__init__(config)
        # from_pretrained(path, depths=...) sets fields on a finished configuration.
        config.validate_architecture()
        self.embeddings = EsvitSwinEmbeddings(config)
        rates = stochastic_depth_rates(config.depths, config.drop_path_rate)
        self.stages = nn.ModuleList(EsvitSwinStage(config, stage, rates[stage]) for stage in range(len(config.depths)))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward_stages(self, pixel_values: Tensor, *, output_attentions: bool = False) -> list[StageOutput]:
        """Run the network without its last norm (see the base class)."""
        self._check_images(pixel_values, self.embeddings.patch_size)
        outputs = [self.embeddings(pixel_values)]
        tokens, grid = outputs[0].tokens, outputs[0].grid
        for stage in self.stages:
            outputs.append(stage(tokens, grid, output_attentions))
            if stage.downsample is not None:
                tokens = stage.downsample(outputs[-1].tokens, grid)
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        return outputs

    def region_grid(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the regions for images of a size in pixels (see the base class)."""
        patch_height, patch_width = self.embeddings.patch_size
        grid = (height // patch_height, width // patch_width)
        for _ in range(len(self.config.depths) - 1):
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        return grid


class EsvitSwinForImageClassification(EsvitForImageClassification, EsvitSwinPreTrainedModel):
    """Swin network with a linear classifier on the view feature.

    Args:
        config: Configuration of the network; `num_labels` sets the number of classes.
    """

    network_class = EsvitSwinModel


class EsvitSwinBackbone(EsvitBackboneMixin, EsvitSwinModel):
    """Swin network that returns feature maps of the stages in `out_features`.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EsvitSwinConfig) -> None:
        super().__init__(config)
        self._add_stage_norms([config.embed_dim, *config.stage_channels], config.layer_norm_eps)
        self.post_init()


__all__ = ["EsvitSwinBackbone", "EsvitSwinForImageClassification", "EsvitSwinModel", "EsvitSwinPreTrainedModel"]
