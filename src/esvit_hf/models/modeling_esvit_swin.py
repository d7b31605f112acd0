"""Swin Transformer as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv 2103.14030)."""

from functools import lru_cache

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


def _build_shift_mask(
    grid: tuple[int, int], window: int, shift: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    bands = []
    for size in grid:
        position = torch.arange(size, device=device)
        bands.append((position >= size - window).long() + (position >= size - shift).long())
    regions = bands[0][:, None] * 3 + bands[1][None, :]
    regions = regions.view(grid[0] // window, window, grid[1] // window, window).transpose(1, 2)
    regions = regions.reshape(-1, 1, window * window)
    apart = regions != regions.transpose(1, 2)
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill_(apart, _MASKED_SCORE)


@lru_cache(maxsize=128)
def _cached_shift_mask(
    grid: tuple[int, int], window: int, shift: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # A mask first built under inference_mode would be refused by a later training step.
    with torch.inference_mode(False):
        return _build_shift_mask(grid, window, shift, dtype, device)


def shift_mask(grid: tuple[int, int], window: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask that keeps tokens apart which the cyclic shift brought together.

    Args:
        grid: (h, w) of the padded token map, multiples of `window`.
        window: Side of the window in tokens.
        shift: Tokens by which the map was rolled, up and to the left.
        dtype: Type of the scores.
        device: Device of the scores.

    Returns:
        (windows, window^2, window^2), 0 or -100.
    """
    # While tracing, a cached tensor would leak from or into the graph.
    if torch.compiler.is_compiling():
        return _build_shift_mask(grid, window, shift, dtype, device)
    return _cached_shift_mask(grid, window, shift, dtype, device)


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
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.projection = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def relative_position_bias(self) -> Tensor:
        """Gather the bias table for the tokens of a window.

        Returns:
            (heads, w^2, w^2).
        """
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)
        return bias.view(self.window**2, self.window**2, self.num_heads).permute(2, 0, 1)

    def score_bias(self, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Everything that is added to the scaled scores: the relative position bias and the shift mask.

        Args:
            grid: (h, w) of the padded token map.
            dtype: Type of the scores.
            device: Device of the scores.

        Returns:
            (1 or windows, heads, w^2, w^2).
        """
        bias = self.relative_position_bias().to(dtype)
        if not self.shift:
            return bias.contiguous()[None]
        return bias + shift_mask(grid, self.window, self.shift, dtype, device)[:, None]

    def forward(self, token_map: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        """Let the tokens of each window attend to each other.

        Args:
            token_map: (B, h, w, C) with h and w multiples of the window.
            output_attentions: Whether the attention probabilities are wanted.

        Returns:
            (B, h, w, C) and (B * windows, heads, w^2, w^2) probabilities or None.
        """
        batch, height, width, channels = token_map.shape
        window, heads, tokens = self.window, self.num_heads, self.window**2
        rows, columns = height // window, width // window
        if self.shift:
            token_map = token_map.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = token_map.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        qkv = self.qkv(windows.reshape(batch * rows * columns, tokens, channels))
        qkv = qkv.view(batch * rows * columns, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.score_bias((height, width), qkv.dtype, qkv.device)
        probabilities = None
        if self.shift:
            query, key, value = qkv.contiguous().view(3, batch, rows * columns * heads, tokens, -1).unbind(0)
            bias = bias.flatten(0, 1)[None]
        else:
            query, key, value = qkv.unbind(0)
        if output_attentions or self.config._attn_implementation == "eager":
            scores = query @ key.transpose(-1, -2) * self.scaling + bias
            probabilities = scores.softmax(dim=-1)
            mixed = probabilities @ value
            probabilities = probabilities.view(-1, heads, tokens, tokens)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scaling)
        mixed = mixed.reshape(-1, heads, tokens, channels // heads).transpose(1, 2)
        output = self.projection(mixed.reshape(batch * rows * columns, tokens, channels))
        output = output.view(batch, rows, columns, window, window, channels).transpose(2, 3)
        output = output.reshape(batch, height, width, channels)
        if self.shift:
            output = output.roll((self.shift, self.shift), dims=(1, 2))
        return output, probabilities


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
        self.window = window
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
        height, width = grid
        bottom, right = -height % self.window, -width % self.window
        token_map = self.attention_norm(tokens).unflatten(1, grid)
        if bottom or right:
            # Padded tokens are zero only here: the projections give them keys and values that others attend to.
            token_map = F.pad(token_map, (0, 0, 0, right, 0, bottom))
        mixed, probabilities = self.attention(token_map, output_attentions)
        if bottom or right:
            mixed = mixed[:, :height, :width]
        tokens = tokens + self.stochastic_depth(mixed.flatten(1, 2))
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
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

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
