"""Vision Longformer (ViL) as EsViT trains it (arXiv 2106.09785, section 3.1; arXiv 2103.15358)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_esvit_vil import EsvitVilConfig
from .modeling_esvit_common import (
    AttentionLayout,
    EsvitBackboneMixin,
    EsvitBaseModel,
    EsvitForImageClassification,
    EsvitPreTrainedModel,
    MultilayerPerceptron,
    StageOutput,
    StochasticDepth,
    attention_probabilities,
    constant,
    eager_attention,
    full_attention_layout,
    fused_attention_is_slow,
    grid_of,
    stochastic_depth_rates,
)

# A chunk and the 8 around it, row by row; the chunk itself is in the middle.
_NEIGHBORHOOD = 9
_OWN_CHUNK = _NEIGHBORHOOD // 2


class ChunkTables(NamedTuple):
    """Where the tokens of a grid lie when it is cut into square chunks, w tokens wide.

    Attributes:
        queries: (chunks * w^2,) token at every place of every chunk. Places outside the grid repeat
            a token inside.
        keys: (chunks, G + 9 w^2) what a chunk attends to: global tokens, then the chunks around it
            row by row. Numbers count the G global tokens first, then the grid row-major. Places
            outside the grid repeat a token inside.
        mask: (chunks, 1, G + 9 w^2) what is added to the scores: minus infinity outside the grid,
            else 0.
        places: (N,) for every token of the grid its entry in `queries`.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    places: Tensor


def chunk_tables(
    grid: tuple[int, int],
    window: int,
    num_global_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> ChunkTables:
    """Say where the tokens of a grid lie when it is cut into chunks.

    Args:
        grid: (h, w) of the tokens, any size; chunks at the right and the bottom may stick out.
        window: Side of a chunk in tokens.
        num_global_tokens: G, tokens in front of the grid.
        dtype: Type of the mask.
        device: Device of the tables.

    Returns:
        The tables.
    """
    height, width = grid
    rows, columns = (height + window - 1) // window, (width + window - 1) // window
    neighbors = torch.arange(-1, 2, device=device)[None, :, None] * window
    row = torch.arange(rows * window, device=device).view(rows, 1, window) + neighbors
    column = torch.arange(columns * window, device=device).view(columns, 1, window) + neighbors
    row_inside = ((row >= 0) & (row < height))[:, None, :, None, :, None]
    column_inside = ((column >= 0) & (column < width))[None, :, None, :, None, :]
    row_start = (row.clamp(0, height - 1) * width)[:, None, :, None, :, None]
    tokens = row_start + column.clamp(0, width - 1)[None, :, None, :, None, :]
    tokens = tokens.reshape(rows * columns, _NEIGHBORHOOD * window**2) + num_global_tokens
    outside = ~(row_inside & column_inside).reshape(rows * columns, 1, _NEIGHBORHOOD * window**2)
    mask = torch.zeros(outside.shape, dtype=dtype, device=device).masked_fill_(
        outside, float("-inf")
    )
    own = slice(_OWN_CHUNK * window**2, (_OWN_CHUNK + 1) * window**2)
    global_tokens = torch.arange(num_global_tokens, device=device).expand(rows * columns, -1)

    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    chunk = (row // window)[:, None] * columns + column // window
    places = chunk * window**2 + (row % window)[:, None] * window + column % window
    return ChunkTables(
        queries=tokens[:, own].flatten(),
        keys=torch.cat([global_tokens, tokens], dim=1),
        mask=F.pad(mask, (num_global_tokens, 0)),
        places=places.flatten(),
    )


def chunk_position_index(window: int, device: torch.device | None = None) -> Tensor:
    """Row of the bias table for every token of a chunk and every token of the 3 x 3 chunks around
    it.

    Args:
        window: Side of a chunk in tokens, w.
        device: Device of the result.

    Returns:
        (w^2 * 9 w^2,) int64, query-major, keys chunk by chunk, values in [0, (4w - 1)^2).
    """
    position = torch.arange(window, device=device)
    key = torch.arange(-1, 2, device=device)[:, None] * window + position
    offset = position[:, None, None] - key + 2 * window - 1
    row = offset[:, None, :, None, :, None] * (4 * window - 1)
    return (row + offset[None, :, None, :, None, :]).flatten()


def grid_position_index(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Row of the bias table for every pair of tokens of a grid.

    Args:
        grid: (h, w).
        device: Device of the result.

    Returns:
        (N^2,) int64 with N = h * w, query-major, values in [0, (2h - 1)(2w - 1)).
    """
    offsets = []
    for size in grid:
        position = torch.arange(size, device=device)
        offsets.append(position[:, None] - position[None, :] + size - 1)
    row = offsets[0][:, None, :, None] * (2 * grid[1] - 1)
    return (row + offsets[1][None, :, None, :]).flatten()


class EsvitVilAttention(nn.Module):
    """What sparse and full attention share: the biases of the global tokens and the choice of the
    implementation.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
        table_rows: Rows of the table of relative position biases.
    """

    def __init__(self, config: EsvitVilConfig, stage: int, table_rows: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads[stage]
        self.num_global_tokens = config.num_global_tokens[stage]
        self.relative = config.stage_positions[stage] == "relative"
        if not self.relative:
            return
        self.relative_position_bias_table = nn.Parameter(torch.empty(table_rows, self.num_heads))
        if self.num_global_tokens:
            # First row: global queries and keys of the grid. Second row: queries of the grid and
            # global keys.
            self.global_to_grid_bias = nn.Parameter(
                torch.empty(2, self.num_heads, self.num_global_tokens)
            )
            self.global_to_global_bias = nn.Parameter(
                torch.empty(self.num_heads, self.num_global_tokens, self.num_global_tokens)
            )

    def position_index(self) -> Tensor:
        """Row of the bias table for every query and key of the grid."""
        raise NotImplementedError

    def layout(self, grid: tuple[int, int], stride: tuple[int, int]) -> AttentionLayout:
        """Say which tokens the probabilities belong to, in evaluation mode.

        Args:
            grid: (h, w) of the tokens.
            stride: Pixels of the image from one token to the next, vertically and horizontally.

        Returns:
            The layout.
        """
        raise NotImplementedError

    def gather_bias(self, queries: int) -> Tensor:
        """Read the bias table.

        Args:
            queries: Number of queries that `position_index` is made for.

        Returns:
            (heads, queries, keys).
        """
        bias = F.embedding(self.position_index(), self.relative_position_bias_table)
        return bias.view(queries, -1, self.num_heads).permute(2, 0, 1)

    def with_global_keys(self, bias: Tensor) -> Tensor:
        """Prepend what queries of the grid add to their scores with global tokens.

        Args:
            bias: (heads, queries, keys).

        Returns:
            (heads, queries, G + keys).
        """
        if not self.num_global_tokens:
            return bias
        global_keys = self.global_to_grid_bias[1][:, None, :].expand(-1, bias.shape[1], -1)
        return torch.cat([global_keys, bias], dim=-1)

    def global_query_bias(self, keys: int) -> Tensor:
        """What global queries add to their scores with all tokens.

        Args:
            keys: N, tokens of the grid.

        Returns:
            (heads, G, G + N).
        """
        grid_keys = self.global_to_grid_bias[0][:, :, None].expand(-1, -1, keys)
        return torch.cat([self.global_to_global_bias, grid_keys], dim=-1)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values by the softmax of the scaled and biased scores.

        Args:
            query: (B, A, queries, d).
            key: (B, A, keys, d).
            value: (B, A, keys, d).
            bias: Added to the scaled scores; broadcasts to (B, A, queries, keys).
            output_attentions: Whether the probabilities are wanted.

        Returns:
            (B, A, queries, d) and (B, A, queries, keys) probabilities or None.
        """
        implementation = self.config._attn_implementation
        fused = implementation == "sdpa" and not fused_attention_is_slow(query, bias)
        if fused and not output_attentions:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias), None
        attention = eager_attention
        if implementation != "sdpa" and not output_attentions:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        scaling = query.shape[-1] ** -0.5
        mixed, probabilities = attention(
            self, query, key, value, bias, scaling=scaling, dropout=0.0, is_causal=False
        )
        return mixed.transpose(1, 2), probabilities if output_attentions else None


class EsvitVilSparseAttention(EsvitVilAttention):
    """Attention inside 3 x 3 neighborhoods of chunks and with the global tokens, which attend to
    everything.

    Cost grows linearly with the number of tokens. Global tokens use the projections of all others.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
    """

    def __init__(self, config: EsvitVilConfig, stage: int) -> None:
        window, channels = config.stage_windows[stage], config.hidden_sizes[stage]
        super().__init__(config, stage, (4 * window - 1) ** 2)
        self.window = window
        self.query = nn.Linear(channels, channels, bias=config.qkv_bias)
        self.key_value = nn.Linear(channels, 2 * channels, bias=config.qkv_bias)
        self.projection = nn.Linear(channels, channels)

    def position_index(self) -> Tensor:
        """Row of the bias table for every query and key of a chunk: (w^2 * 9 w^2,)."""
        return constant(chunk_position_index, self.window, like=self.relative_position_bias_table)

    def layout(self, grid: tuple[int, int], stride: tuple[int, int]) -> AttentionLayout:
        """Say which tokens the probabilities belong to, chunk by chunk (see the base class)."""
        tables = chunk_tables(
            grid, self.window, self.num_global_tokens, torch.float32, torch.device("cpu")
        )
        queries = torch.full_like(tables.queries, -1)
        queries[tables.places] = torch.arange(len(tables.places)) + self.num_global_tokens
        queries = queries.view(-1, self.window**2)
        allowed = tables.mask == 0
        keys = tables.keys.masked_fill(~allowed[:, 0], -1)
        return AttentionLayout(grid, stride, self.num_global_tokens, queries, keys, allowed)

    def _draw_keys(self, device: torch.device) -> Tensor | None:
        """Choose the columns of the key tables that this call attends to; None means all."""
        if not self.training or self.config.sparse_training_mode == "all":
            return None
        # Drawn on the device: reading the number back would stall it and break compiled graphs.
        neighbor = torch.randint(_NEIGHBORHOOD - 1, (1,), device=device)
        chunks = torch.cat(
            [torch.full_like(neighbor, _OWN_CHUNK), neighbor + (neighbor >= _OWN_CHUNK)]
        )
        places = chunks[:, None] * self.window**2 + torch.arange(self.window**2, device=device)
        global_tokens = torch.arange(self.num_global_tokens, device=device)
        return torch.cat([global_tokens, places.flatten() + self.num_global_tokens])

    def _score_bias(self, mask: Tensor, columns: Tensor | None) -> Tensor:
        """Sum relative bias and border mask: (1, heads * chunks, w^2 or 1, keys)."""
        chunks = mask.shape[0]
        if self.relative:
            bias = self.with_global_keys(self.gather_bias(self.window**2)).to(mask.dtype)
            bias = bias if columns is None else bias.index_select(-1, columns)
            mask = bias[:, None] + mask
        else:
            mask = mask.expand(self.num_heads, *mask.shape)
        return mask.reshape(1, self.num_heads * chunks, *mask.shape[-2:])

    def _attend_visibly(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend as `attend` with heads * chunks for A; the probabilities are (B * chunks, heads,
        queries, keys).
        """
        probabilities = attention_probabilities(query, key, bias, query.shape[-1] ** -0.5)
        probabilities = probabilities.unflatten(1, (self.num_heads, -1)).transpose(1, 2)
        probabilities = probabilities.flatten(0, 1)
        # The values are mixed by what is returned, so that it has a gradient.
        by_head = probabilities.unflatten(0, (query.shape[0], -1)).transpose(1, 2)
        return by_head.flatten(1, 2) @ value, probabilities

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Let tokens attend to their neighborhood and the global tokens to all.

        Args:
            tokens: (B, G + N, C), global tokens first, then the grid row-major.
            grid: (h, w) with h * w = N.
            output_attentions: Whether the attention probabilities are wanted.

        Returns:
            (B, G + N, C) and (B * chunks, heads, w^2, G + keys) probabilities of the tokens of each
            chunk, or None. Keys outside the grid have probability 0; rows of queries outside the
            grid are meaningless. The rows of the global tokens, whose keys are the whole image, are
            not among them.
        """
        batch, length, channels = tokens.shape
        heads, num_global = self.num_heads, self.num_global_tokens
        query = self.query(tokens).view(batch, length, heads, -1).transpose(1, 2)
        # One copy brings all tokens of a head together, which makes the gathers below cheap.
        key_value = (
            self.key_value(tokens)
            .view(batch, length, 2, heads, -1)
            .permute(2, 0, 3, 1, 4)
            .contiguous()
        )
        tables = constant(chunk_tables, grid, self.window, num_global, query.dtype, like=query)
        keys, mask = tables.keys, tables.mask
        if (columns := self._draw_keys(query.device)) is not None:
            keys, mask = keys.index_select(1, columns), mask.index_select(2, columns)

        chunks = keys.shape[0]
        chunk_query = query.index_select(2, tables.queries).view(
            batch, heads * chunks, self.window**2, -1
        )
        chunk_key, chunk_value = (
            key_value.index_select(3, keys.flatten())
            .view(2, batch, heads * chunks, keys.shape[1], -1)
            .unbind(0)
        )
        bias = self._score_bias(mask, columns)
        attend = self._attend_visibly if output_attentions else self.attend
        mixed, probabilities = attend(chunk_query, chunk_key, chunk_value, bias)
        mixed = mixed.reshape(batch, heads, chunks * self.window**2, -1).index_select(
            2, tables.places
        )
        if num_global:
            global_bias = None
            if self.relative:
                global_bias = self.global_query_bias(length - num_global).to(query.dtype)[None]
            key, value = key_value.unbind(0)
            global_mixed, _ = self.attend(query[:, :, :num_global], key, value, global_bias)
            mixed = torch.cat([global_mixed, mixed], dim=2)
        return self.projection(
            mixed.transpose(1, 2).reshape(batch, length, channels)
        ), probabilities


class EsvitVilFullAttention(EsvitVilAttention):
    """Attention of everything to everything.

    The bias table covers the grid of the stage at `image_size`.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
    """

    def __init__(self, config: EsvitVilConfig, stage: int) -> None:
        grid, channels = config.stage_grids[stage], config.hidden_sizes[stage]
        super().__init__(config, stage, (2 * grid[0] - 1) * (2 * grid[1] - 1))
        self.grid = grid
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.projection = nn.Linear(channels, channels)

    def position_index(self) -> Tensor:
        """Row of the bias table for every pair of tokens of the grid at `image_size`: (N^2,)."""
        return constant(grid_position_index, self.grid, like=self.relative_position_bias_table)

    def layout(self, grid: tuple[int, int], stride: tuple[int, int]) -> AttentionLayout:
        """Say which tokens the probabilities belong to (see the base class)."""
        return full_attention_layout(grid, stride, self.num_global_tokens)

    def relative_position_bias(self, grid: tuple[int, int]) -> Tensor:
        """Bias between the tokens of a grid.

        A grid with the proportions of the table's own is served as the reference does it: the
        matrix of all pairs is resized like an image. The reference knows no other proportions, for
        which that matrix would mix up rows; there the table itself is resized.

        Args:
            grid: (h, w).

        Returns:
            (heads, N, N) with N = h * w.
        """
        height, width = grid
        same_proportions = height * self.grid[1] == width * self.grid[0]
        if isinstance(same_proportions, bool):
            return self._resize_pairs(grid) if same_proportions else self._resize_table(grid)
        # The grid of an exported network is not known yet.
        return torch.cond(
            same_proportions,
            lambda: self._resize_pairs(grid),
            lambda: self._resize_table(grid),
        )

    def _resize_pairs(self, grid: tuple[int, int]) -> Tensor:
        own_tokens, tokens = self.grid[0] * self.grid[1], grid[0] * grid[1]
        bias = self.gather_bias(own_tokens)
        if grid == self.grid:
            return bias
        size = (tokens, tokens)
        return F.interpolate(bias[None], size=size, mode="bicubic", align_corners=False)[0]

    def _resize_table(self, grid: tuple[int, int]) -> Tensor:
        rows, columns = (2 * side - 1 for side in self.grid)
        table = self.relative_position_bias_table.view(rows, columns, -1)
        size = (2 * grid[0] - 1, 2 * grid[1] - 1)
        table = F.interpolate(
            table.permute(2, 0, 1)[None], size=size, mode="bicubic", align_corners=False
        )
        index = constant(grid_position_index, grid, like=table)
        tokens = grid[0] * grid[1]
        return table.flatten(2)[0].index_select(1, index).view(-1, tokens, tokens)

    def _score_bias(self, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Bias between all tokens, global ones first: (1, heads, G + N, G + N)."""
        bias = self.with_global_keys(self.relative_position_bias(grid))
        if self.num_global_tokens:
            bias = torch.cat([self.global_query_bias(grid[0] * grid[1]), bias], dim=1)
        return bias.to(dtype).contiguous()[None]

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Let all tokens attend to each other.

        Args:
            tokens: (B, G + N, C), global tokens first, then the grid row-major.
            grid: (h, w) with h * w = N.
            output_attentions: Whether the attention probabilities are wanted.

        Returns:
            (B, G + N, C) and (B, heads, G + N, G + N) probabilities or None.
        """
        batch, length, channels = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        bias = self._score_bias(grid, query.dtype) if self.relative else None
        mixed, probabilities = self.attend(query, key, value, bias, output_attentions)
        return self.projection(
            mixed.transpose(1, 2).reshape(batch, length, channels)
        ), probabilities


class EsvitVilBlock(GradientCheckpointingLayer):
    """Attention and MLP, each behind a norm and added to its input.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
        drop_path_rate: Rate of stochastic depth.
    """

    def __init__(self, config: EsvitVilConfig, stage: int, drop_path_rate: float) -> None:
        super().__init__()
        channels = config.hidden_sizes[stage]
        self.attention_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        attention = (
            EsvitVilSparseAttention if config.sparse_stages[stage] else EsvitVilFullAttention
        )
        self.attention: EsvitVilAttention = attention(config, stage)
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
            tokens: (B, G + N, C), global tokens first, then the grid row-major.
            grid: (h, w) with h * w = N.
            output_attentions: Whether the attention probabilities are wanted.

        Returns:
            (B, G + N, C) and the probabilities of the attention or None.
        """
        mixed, probabilities = self.attention(self.attention_norm(tokens), grid, output_attentions)
        tokens = tokens + self.stochastic_depth(mixed)
        tokens = tokens + self.stochastic_depth(self.mlp(self.mlp_norm(tokens)))
        return tokens, probabilities


def _resize_line(positions: Tensor, size: int, stretch: Tensor) -> Tensor:
    """Resize positions along an axis by the bicubic rule of PyTorch, and stretch them.

    Args:
        positions: (1, n, C).
        size: Positions that are wanted.
        stretch: Scalar by which they lie closer together than n / size says.

    Returns:
        (1, size, C).
    """
    count, device = positions.shape[1], positions.device
    places = (torch.arange(size, device=device) + 0.5) * (count / size) / stretch - 0.5
    first = places.floor()
    weights = torch.zeros(size, count, device=device)
    for tap in range(-1, 3):
        distance = (places - first - tap).abs()
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        # Places outside repeat the outermost position.
        taken = (first + tap).clamp(0, count - 1)[:, None] == torch.arange(count, device=device)
        weights = weights + torch.where(distance <= 1, near, far)[:, None] * taken
    return (weights[..., None] * positions).sum(1, dtype=positions.dtype)[None]


class EsvitVilEmbeddings(nn.Module):
    """Cut the image, or the map of the stage before, into patches and prepend the global tokens of
    the stage.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
    """

    def __init__(self, config: EsvitVilConfig, stage: int) -> None:
        super().__init__()
        inputs = config.hidden_sizes[stage - 1] if stage else config.num_channels
        channels, patch = config.hidden_sizes[stage], config.patch_sizes[stage]
        self.grid = config.stage_grids[stage]
        self.projection = nn.Conv2d(inputs, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        count = self.num_global_tokens = config.num_global_tokens[stage]
        absolute = config.stage_positions[stage] == "absolute"
        self.global_tokens = nn.Parameter(torch.empty(1, count, channels)) if count else None
        self.global_positions = (
            nn.Parameter(torch.empty(1, count, channels)) if count and absolute else None
        )
        self.row_positions = (
            nn.Parameter(torch.empty(1, self.grid[0], channels // 2)) if absolute else None
        )
        self.column_positions = (
            nn.Parameter(torch.empty(1, self.grid[1], channels // 2)) if absolute else None
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed the patches.

        Rows and columns at the bottom and the right that do not fill a patch are left out, as in
        the reference.

        Args:
            pixel_values: (B, C_in, H, W) image or map.

        Returns:
            (B, G + N, C) global tokens and tokens of the grid, and the grid (h, w).
        """
        patches = self.projection(pixel_values)
        grid = grid_of(patches)
        tokens = self.norm(patches.flatten(2).transpose(1, 2))
        if self.row_positions is not None:
            tokens = tokens + self._positions(grid)
        if self.global_tokens is not None:
            global_tokens: Tensor = self.global_tokens
            if self.global_positions is not None:
                global_tokens = global_tokens + self.global_positions
            tokens = torch.cat(
                [global_tokens.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1
            )
        return tokens, grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of a grid, (1, N, C).

        The reference counts global tokens as part of the grid, so that with them the positions are
        stretched a little at every size, even at the one of training.
        """
        assert self.row_positions is not None and self.column_positions is not None
        tokens = torch.scalar_tensor(grid[0] * grid[1], device=self.row_positions.device)
        stretch = ((tokens + self.num_global_tokens) / tokens).sqrt()
        rows = _resize_line(self.row_positions, grid[0], stretch)
        columns = _resize_line(self.column_positions, grid[1], stretch)
        rows = rows[:, :, None].expand(-1, -1, grid[1], -1)
        columns = columns[:, None].expand(-1, grid[0], -1, -1)
        return torch.cat([rows, columns], dim=-1).flatten(1, 2)


class EsvitVilStage(nn.Module):
    """Embeddings and blocks of one resolution.

    Args:
        config: Configuration of the network.
        stage: Index of the stage.
        drop_path_rates: Stochastic depth rate of each block.
    """

    def __init__(self, config: EsvitVilConfig, stage: int, drop_path_rates: list[float]) -> None:
        super().__init__()
        self.num_global_tokens = config.num_global_tokens[stage]
        self.embeddings = EsvitVilEmbeddings(config, stage)
        self.blocks = nn.ModuleList(EsvitVilBlock(config, stage, rate) for rate in drop_path_rates)

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
        tokens, grid = self.embeddings(features)
        embedded = self._split(tokens, grid)
        for block in self.blocks:
            tokens, _ = block(tokens, grid, output_attentions)
        return embedded, self._split(tokens, grid)

    def _split(self, tokens: Tensor, grid: tuple[int, int]) -> StageOutput:
        count = self.num_global_tokens
        return StageOutput(tokens[:, count:], grid, tokens[:, :count] if count else None)


class EsvitVilPreTrainedModel(EsvitPreTrainedModel):
    """Loading, saving and initialization of the ViL networks."""

    config: EsvitVilConfig
    _no_split_modules = ["EsvitVilBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EsvitVilAttention | EsvitVilEmbeddings):
            for parameter in module.parameters(recurse=False):
                init.trunc_normal_(parameter, std=self.config.initializer_range)


class EsvitVilModel(EsvitBaseModel, EsvitVilPreTrainedModel):
    """Vision Longformer without a head.

    `hidden_states` hold the global tokens of their stage in front of those of the grid.

    Args:
        config: Configuration of the network.
    """

    _can_record_outputs = {
        "hidden_states": OutputRecorder(EsvitVilBlock, index=0),
        "attentions": OutputRecorder(EsvitVilBlock, index=1),
    }

    def __init__(self, config: EsvitVilConfig) -> None:
        super().__init__(config)
        # from_pretrained(path, depths=...) sets fields on a finished configuration.
        config.validate_architecture()
        rates = stochastic_depth_rates(config.depths, config.drop_path_rate)
        self.stages = nn.ModuleList(
            EsvitVilStage(config, stage, rates[stage]) for stage in range(len(config.depths))
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward_stages(
        self, pixel_values: Tensor, *, output_attentions: bool = False
    ) -> list[StageOutput]:
        """Run the network without its last norm (see the base class)."""
        stride = self.config.total_stride
        self._check_images(pixel_values, (stride, stride))
        outputs: list[StageOutput] = []
        features = pixel_values
        for stage in self.stages:
            embedded, last = stage(features, output_attentions)
            outputs += [last] if outputs else [embedded, last]
            features = last.tokens.transpose(1, 2).unflatten(2, last.grid)
        return outputs

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Compute regions and view feature.

        Args:
            pixel_values: (B, channels, H, W) normalized images of any size.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` as in transformers.

        Returns:
            `last_hidden_state` (B, N, C): regions, row-major, after the last norm, without global
            tokens. `pooler_output` (B, C): view feature, the first global token of the last stage
            or, if that has none, the mean of the regions. `hidden_states`: patch embeddings, then
            the output of every block (B, G_l + N_l, C_l), global tokens first, before downsampling
            and not normalized. `attentions`: probabilities of every block; a sparse block has one
            matrix for each chunk (see `EsvitVilSparseAttention`).

        Raises:
            ValueError: If the images have the wrong number of channels or are too small.
        """
        output_attentions = bool(kwargs.get("output_attentions", self.config.output_attentions))
        last = self.forward_stages(pixel_values, output_attentions=output_attentions)[-1]
        regions = self.norm(last.tokens)
        view = (
            regions.mean(dim=1)
            if last.global_tokens is None
            else self.norm(last.global_tokens)[:, 0]
        )
        return BaseModelOutputWithPooling(last_hidden_state=regions, pooler_output=view)

    def region_grid(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the regions for images of a size in pixels (see the base class)."""
        for patch in self.config.patch_sizes:
            height, width = height // patch, width // patch
        return height, width

    def attention_layouts(self, height: int, width: int) -> list[AttentionLayout]:
        """Say which tokens `attentions` belong to (see the base class)."""
        stride, layouts = 1, []
        for stage, patch in zip(
            cast("list[EsvitVilStage]", self.stages), self.config.patch_sizes, strict=True
        ):
            height, width, stride = height // patch, width // patch, stride * patch
            for block in cast("list[EsvitVilBlock]", stage.blocks):
                layouts.append(block.attention.layout((height, width), (stride, stride)))
        return layouts

    def pool_hidden_states(self, hidden_states: Sequence[Tensor | None]) -> list[Tensor]:
        """Reduce the output of every block to one feature an image (see the base class).

        In stages with global tokens that is the first of them, elsewhere the mean of the tokens.
        """
        counts = [
            count
            for count, depth in zip(self.config.num_global_tokens, self.config.depths, strict=True)
            for _ in range(depth)
        ]
        if len(hidden_states) == len(counts) + 1:
            hidden_states = [
                tokens[:, :1] if count and tokens is not None else tokens
                for tokens, count in zip(hidden_states, [0, *counts], strict=True)
            ]
        return super().pool_hidden_states(hidden_states)


class EsvitVilForImageClassification(EsvitForImageClassification, EsvitVilPreTrainedModel):
    """Vision Longformer with a linear classifier on the view feature.

    Args:
        config: Configuration of the network; `num_labels` sets the number of classes.
    """

    network_class = EsvitVilModel


class EsvitVilBackbone(EsvitBackboneMixin, EsvitVilModel):
    """Vision Longformer that returns feature maps of the stages in `out_features`, without global
    tokens.

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: EsvitVilConfig) -> None:
        super().__init__(config)
        self._add_stage_norms([config.hidden_sizes[0], *config.hidden_sizes], config.layer_norm_eps)
        self.post_init()


__all__ = [
    "EsvitVilBackbone",
    "EsvitVilForImageClassification",
    "EsvitVilModel",
    "EsvitVilPreTrainedModel",
]
