"""Swin Transformer as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv 2103.14030)."""

from typing import cast

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
    AttentionLayout,
    EsvitBackboneMixin,
    EsvitBaseModel,
    EsvitForImageClassification,
    EsvitPreTrainedModel,
    MultilayerPerceptron,
    StageOutput,
    StochasticDepth,
    constant,
    fused_attention_is_slow,
    grid_of,
    softmax_type,
    stochastic_depth_rates,
)
from .modeling_esvit_windows import (
    WindowPlan,
    plan_windows,
    relative_position_index,
    window_attention_layout,
)


class EsvitSwinAttention(nn.Module):
    """Self-attention inside square windows with a learned bias for every relative position.

    Args:
        config: Configuration of the network.
        channels: C.
        num_heads: Attention heads; they share the channels evenly.
        window: Side of the window in tokens, w.
        shift: Tokens by which the map is rolled before it is cut into windows; 0 for none.
    """

    def __init__(
        self, config: EsvitSwinConfig, channels: int, num_heads: int, window: int, shift: int
    ) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_channels = channels // num_heads
        self.window = window
        self.shift = shift
        self.scaling = self.head_channels**-0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.projection = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window - 1) ** 2, num_heads)
        )

    def position_index(self) -> Tensor:
        """Row of the bias table for every pair of tokens in a window: (w^4,)."""
        return constant(
            relative_position_index, self.window, like=self.relative_position_bias_table
        )

    def relative_position_bias(self) -> Tensor:
        """Gather the bias table for the tokens of a window: (1, heads, w^2, w^2)."""
        bias = F.embedding(self.position_index(), self.relative_position_bias_table)
        bias = bias.view(1, self.window**2, self.window**2, self.num_heads)
        return bias.permute(0, 3, 1, 2).contiguous()

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
        plan = plan_windows(tokens, grid, self.window, self.shift, every_slot=output_attentions)
        qkv = plan.cut(tokens, self.qkv).unflatten(-1, (3, self.num_heads, self.head_channels))
        qkv = qkv.unflatten(1, (-1, plan.window_tokens))
        bias = plan.mask(self.relative_position_bias())
        bias = bias.to(softmax_type(qkv, plan.window_tokens))
        mixed, probabilities = self._attend(qkv, bias, output_attentions)
        mixed = plan.join(mixed.reshape(tokens.shape[0], -1, tokens.shape[2]))
        return self.projection(mixed), probabilities

    def _attend(
        self, qkv: Tensor, bias: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the configured implementation.

        Takes qkv (B, windows, slots, 3, heads, C / heads) and bias (1 or windows, heads, slots,
        slots); returns (B, windows, slots, heads, C / heads) and (B * windows, heads, slots, slots)
        probabilities or None.
        """
        implementation = self.config._attn_implementation
        by_products = implementation == "sdpa" and fused_attention_is_slow(qkv, bias)
        if output_attentions or implementation == "eager" or by_products:
            return self._attend_by_products(qkv, bias, output_attentions)
        if masked := bias.shape[0] > 1:
            # Windows as further heads: the images share the mask without its being repeated.
            query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
            bias = bias.flatten(0, 1)[None]
        else:
            query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)
        if implementation == "sdpa":
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, scale=self.scaling
            )
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, self._attend_by_products)
            mixed, _ = attend(
                self, query, key, value, bias, dropout=0.0, scaling=self.scaling, is_causal=False
            )
            mixed = mixed.transpose(1, 2)
        if masked:
            mixed = mixed.unflatten(1, (qkv.shape[1], self.num_heads))
        return mixed.transpose(-3, -2), None

    def _attend_by_products(
        self, qkv: Tensor, bias: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend step by step, as `_attend`; the scores have the type of the bias."""
        # Taken apart before they are transposed, so that the three gradients are written where they
        # belong at once.
        query, key, value = (part.transpose(2, 3) for part in qkv.unbind(3))
        scores = query.flatten(0, 2) @ key.flatten(0, 2).transpose(1, 2)
        scores = scores.to(bias.dtype).view(*query.shape[:-1], -1)
        # The values are mixed by what is returned, so that it has a gradient.
        probabilities = torch.add(bias, scores, alpha=self.scaling).softmax(dim=-1).flatten(0, 1)
        mixed = probabilities.to(value.dtype).flatten(0, 1) @ value.flatten(0, 2)
        mixed = mixed.view(query.shape).transpose(2, 3)
        return mixed, probabilities if output_attentions else None


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
        self,
        config: EsvitSwinConfig,
        channels: int,
        num_heads: int,
        window: int,
        shift: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = EsvitSwinAttention(config, channels, num_heads, window, shift)
        self.mlp_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = MultilayerPerceptron(
            channels, int(channels * config.mlp_ratio), config.hidden_act
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
        # The map is padded behind the norm: a padded token is what the projection makes of zeros.
        mixed, probabilities = self.attention(self.attention_norm(tokens), grid, output_attentions)
        tokens = tokens + self.stochastic_depth(mixed)
        tokens = tokens + self.stochastic_depth(self.mlp(self.mlp_norm(tokens)))
        return tokens, probabilities


class EsvitSwinDownsample(nn.Module):
    """Merge each 2 x 2 neighborhood into one token with twice the channels.

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
        odd = height % 2 + width % 2
        # The grid of an exported network is not known yet.
        if not isinstance(odd, int) or odd:
            token_map = F.pad(token_map, (0, 0, 0, width % 2, 0, height % 2))
        # The reference concatenates the neighborhood column by column: (0, 0), (1, 0), (0, 1), (1,
        # 1).
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

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], output_attentions: bool
    ) -> StageOutput:
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
        self.projection = nn.Conv2d(
            config.num_channels, config.embed_dim, self.patch_size, stride=self.patch_size
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.position_embeddings = (
            nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], config.embed_dim))
            if config.use_absolute_embeddings
            else None
        )

    def forward(self, pixel_values: Tensor) -> StageOutput:
        """Embed the patches.

        Pixels at the right and the bottom that do not fill a patch are left out, as in the
        reference.

        Args:
            pixel_values: (B, channels, H, W).

        Returns:
            (B, N, C) tokens and their grid.
        """
        patches = self.projection(pixel_values)
        grid = grid_of(patches)
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
    """Loading, saving and initialization of the Swin networks."""

    config: EsvitSwinConfig
    _no_split_modules = ["EsvitSwinBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EsvitSwinAttention):
            init.trunc_normal_(
                module.relative_position_bias_table, std=self.config.initializer_range
            )
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
    _first_convolution = "embeddings.projection"

    def __init__(self, config: EsvitSwinConfig) -> None:
        super().__init__(config)
        # from_pretrained(path, depths=...) sets fields on a finished configuration.
        config.validate_architecture()
        self.embeddings = EsvitSwinEmbeddings(config)
        rates = stochastic_depth_rates(config.depths, config.drop_path_rate)
        self.stages = nn.ModuleList(
            EsvitSwinStage(config, stage, rates[stage]) for stage in range(len(config.depths))
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward_stages(
        self, pixel_values: Tensor, *, output_attentions: bool = False
    ) -> list[StageOutput]:
        """Run the network without its last norm (see the base class)."""
        self._check_images(pixel_values, self.embeddings.patch_size)
        outputs = [self.embeddings(pixel_values)]
        tokens, grid = outputs[0].tokens, outputs[0].grid
        for stage in cast("list[EsvitSwinStage]", self.stages):
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

    def attention_layouts(self, height: int, width: int) -> list[AttentionLayout]:
        """Say which tokens `attentions` belong to (see the base class)."""
        stride = self.embeddings.patch_size
        grid = (height // stride[0], width // stride[1])
        layouts = []
        for stage in cast("list[EsvitSwinStage]", self.stages):
            for block in cast("list[EsvitSwinBlock]", stage.blocks):
                plan = WindowPlan(grid, block.attention.window, block.attention.shift)
                layouts.append(window_attention_layout(plan, stride))
            grid, stride = ((grid[0] + 1) // 2, (grid[1] + 1) // 2), (2 * stride[0], 2 * stride[1])
        return layouts


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


__all__ = [
    "EsvitSwinBackbone",
    "EsvitSwinForImageClassification",
    "EsvitSwinModel",
    "EsvitSwinPreTrainedModel",
]
