"""What all EsViT networks share: the contract of the base model, stochastic depth, the classifier
and the backbone.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

# Auto classes that load a saved network, and how its class for each is called behind the name of
# the family.
_AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForImageClassification": "ForImageClassification",
    "AutoBackbone": "Backbone",
}

# What a network has beside its base model: another class may leave it out.
_HEADS = ("classifier", "stage_norms")

_CPU_BLOCK_TOKENS = 4096
"""Tokens that a perceptron maps at once on CPU where nothing is kept for a backward pass."""


class StageOutput(NamedTuple):
    """Tokens that a stage, or the patch embedding in front of the stages, hands on.

    A tuple, because tools that hook into modules look for tensors in tuples.

    Attributes:
        tokens: (B, N, C) spatial tokens, row-major, before any downsampling and not normalized.
        grid: (h, w) with h * w = N.
        global_tokens: (B, G, C), not normalized, of networks that have some.
    """

    tokens: Tensor
    grid: tuple[int, int]
    global_tokens: Tensor | None = None


@dataclass(frozen=True)
class AttentionLayout:
    """Which tokens the attention probabilities of a block belong to.

    The number of a token is its place in the block's hidden state: global tokens first, then the
    grid row-major.

    Attributes:
        grid: (h, w) of the tokens.
        stride: Pixels of the image from one token to the next, vertically and horizontally.
        num_global_tokens: G, tokens in front of the grid.
        queries: (windows, Q) int64 token of every row of probabilities; -1 if the row belongs to
            none.
        keys: (windows, K) int64 token of every column; -1 for padding.
        allowed: (windows, Q, K), or (windows, 1, K) for all queries alike, whether a query may
            attend to a key. It may to padding where the network does not mask it.
    """

    grid: tuple[int, int]
    stride: tuple[int, int]
    num_global_tokens: int
    queries: Tensor
    keys: Tensor
    allowed: Tensor


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are there and what is done to it is computed at once: it is not
    traced, compiled, exported, fake, without memory, wrapped or under a function transform.

    Args:
        tensor: Any tensor.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type != "meta"
    )


def grid_of(feature_map: Tensor) -> tuple[int, int]:
    """Read the grid (h, w) off a map (B, C, h, w).

    `torch.jit.trace` makes tensors of sizes; a trace is for images of one size.
    """
    height, width = feature_map.shape[-2:]
    return (int(height), int(width)) if torch.jit.is_tracing() else (height, width)


Built = TypeVar("Built")


def constant(build: Callable[..., Built], *sizes: Any, like: Tensor) -> Built:
    """Build what depends on sizes alone, such as indices, and keep it for the next call.

    It is kept for plain tensors only: what is built while another tensor is traced or faked is part
    of that graph and useless outside.

    Args:
        build: Function of the sizes and of a device.
        *sizes: Hashable arguments of the function.
        like: Tensor that the result is used with.

    Returns:
        What the function builds on the device of the tensor; shared, so not to be changed.
    """
    if is_plain(like):
        return cast("Built", _kept(build, *sizes, like.device))
    return build(*sizes, like.device)


@lru_cache(maxsize=256)
def _kept(build: Callable[..., Any], *arguments: Any) -> Any:
    # Tensors first built under inference_mode would be refused by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return build(*arguments)


def softmax_type(scores_like: Tensor, keys: int) -> torch.dtype:
    """Type in which the softmax over a number of keys is fast, for scores on the device and in the
    type of a tensor.
    """
    # PyTorch's 16-bit softmax on CPU is up to 5 times slower than its 32-bit one for rows this
    # short.
    short_rows = keys < 64 and scores_like.device.type == "cpu" and scores_like.element_size() == 2
    return torch.float32 if short_rows else scores_like.dtype


def fused_attention_is_slow(query: Tensor, bias: Tensor | None) -> bool:
    """Whether plain matrix products are faster than `scaled_dot_product_attention` with its
    derivatives, or the only way to have them.
    """
    # The fused kernels have no derivative in forward mode, and a function transform hides whether
    # the bias needs one.
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    # On CPU the fused kernel has no gradient for the bias, and its backward pass is several times
    # slower in 16 bits.
    return query.device.type == "cpu" and (
        query.element_size() == 2 or (bias is not None and bias.requires_grad)
    )


def attention_probabilities(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """Softmax of the scaled and biased scores.

    Args:
        query: (B, A, queries, d).
        key: (B, A, keys, d).
        attention_mask: Added to the scaled scores; broadcasts to (B, A, queries, keys).
        scaling: Factor of the scores.

    Returns:
        (B, A, queries, keys), of the type of the query.
    """
    scores = (query @ key.transpose(-1, -2)).to(softmax_type(query, key.shape[-2]))
    scores = (
        scores * scaling
        if attention_mask is None
        else torch.add(attention_mask, scores, alpha=scaling)
    )
    return scores.softmax(dim=-1).to(query.dtype)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by plain matrix products, with the signature of the attention functions of
    transformers.

    Args:
        module: The calling module.
        query: (B, A, queries, d).
        key: (B, A, keys, d).
        value: (B, A, keys, d).
        attention_mask: Added to the scaled scores; broadcasts to (B, A, queries, keys).
        scaling: Factor of the scores.
        **kwargs: Settings of other implementations.

    Returns:
        (B, queries, A, d) and (B, A, queries, keys) probabilities.
    """
    probabilities = attention_probabilities(query, key, attention_mask, scaling)
    return (probabilities @ value).transpose(1, 2), probabilities


def full_attention_layout(
    grid: tuple[int, int], stride: tuple[int, int], num_global_tokens: int
) -> AttentionLayout:
    """Describe attention of all tokens to all tokens.

    Args:
        grid: (h, w) of the tokens.
        stride: Pixels from one token to the next, vertically and horizontally.
        num_global_tokens: G, tokens in front of the grid.

    Returns:
        The layout of (B, heads, G + h * w, G + h * w) probabilities.
    """
    tokens = torch.arange(num_global_tokens + grid[0] * grid[1])[None]
    allowed = torch.ones(1, 1, tokens.shape[1], dtype=torch.bool)
    return AttentionLayout(grid, stride, num_global_tokens, tokens, tokens, allowed)


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole images during training (arXiv 1603.09382).

    Args:
        rate: Probability of dropping the branch, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Scale the branch by 0 or 1 / (1 - rate), one draw for each image.

        Args:
            branch: (B, ...) output of a residual branch.

        Returns:
            (B, ...) the same tensor outside training, its randomly dropped and rescaled copy in
            training.
        """
        if not self.training or self.rate == 0.0:
            return branch
        keep = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        """Show the rate when the module is printed."""
        return f"rate={self.rate:.3g}"


def stochastic_depth_rates(depths: Sequence[int], last_rate: float) -> list[list[float]]:
    """Spread stochastic depth linearly over the blocks: 0 at the first, `last_rate` at the last.

    Args:
        depths: Blocks of each stage.
        last_rate: Rate of the last block, in [0, 1).

    Returns:
        One list a stage with one rate a block.
    """
    steps = max(sum(depths) - 1, 1)
    rates = [last_rate * block / steps for block in range(sum(depths))]
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x) by PyTorch's SiLU, which keeps one tensor less for the backward pass."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the activation to tensors of any shape."""
        return F.silu(1.702 * tokens) / 1.702


class MultilayerPerceptron(nn.Module):
    """Two linear layers with an activation between, applied to each token.

    Args:
        channels: C of input and output.
        hidden_channels: Channels between the layers.
        activation: Name of an activation known to transformers.
    """

    def __init__(self, channels: int, hidden_channels: int, activation: str) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden_channels)
        self.activation = QuickGelu() if activation == "quick_gelu" else ACT2FN[activation]
        self.contract = nn.Linear(hidden_channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map every token on its own.

        Args:
            tokens: (..., C).

        Returns:
            (..., C).
        """
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if tokens.device.type != "cpu" or torch.is_grad_enabled() or tracing:
            return self.contract(self.activation(self.expand(tokens)))
        # What the backward pass does not need stays in the cache: fresh pages for it cost as much
        # as the products do.
        blocks = tokens.flatten(0, -2).split(_CPU_BLOCK_TOKENS)
        mapped = [self.contract(self.activation(self.expand(block))) for block in blocks]
        return (mapped[0] if len(mapped) == 1 else torch.cat(mapped)).view(tokens.shape)


class EsvitPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization of the EsViT networks."""

    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let only classes that are registered themselves bring their file along, no class made
        from them (FSDP).
        """
        super().__init_subclass__(**kwargs)
        cls._auto_class = None

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load what was saved (see transformers), completely.

        Args:
            *args: As in transformers.
            output_loading_info: Whether what was missing and left over is returned, too.
            **kwargs: As in transformers.

        Returns:
            The network in evaluation mode and, if asked for, the report.

        Raises:
            ValueError: If tensors are left over that are not of a head, such as blocks that the
                configuration does not have.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        left = sorted(
            name
            for name in report["unexpected_keys"]
            if name.removeprefix(f"{cls.base_model_prefix}.").split(".")[0] not in _HEADS
        )
        if left:
            raise ValueError(
                f"{len(left)} tensors have no place in this {cls.__name__}, for example "
                f"{left[0]!r}: load them with the configuration that they were saved with."
            )
        return (model, report) if output_loading_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save weights, configuration and, from a registered class, the code of the network.

        Args:
            save_directory: Folder to write.
            *args: As in transformers.
            **kwargs: As in transformers.
        """
        if self._auto_class is not None:
            # transformers lists the saved class alone, so that AutoModel would find nothing beside
            # a classifier.
            module, family = (
                type(self).__module__.rpartition(".")[2],
                type(self.config).__name__.removesuffix("Config"),
            )
            self.config.auto_map = {
                auto: f"{module}.{family}{suffix}" for auto, suffix in _AUTO_CLASSES.items()
            }
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start a module as the reference does: truncated normal linear layers, PyTorch's default
        for convolutions.
        """
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def _check_images(self, pixel_values: Tensor, smallest: tuple[int, int]) -> None:
        """Refuse inputs that are not a batch of images with the configured channels and at least
        the smallest size.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (B, "
                f"{self.config.num_channels}, H, W): num_channels={self.config.num_channels}."
            )
        height, width = pixel_values.shape[-2:]
        if height < smallest[0] or width < smallest[1]:
            raise ValueError(
                f"pixel_values are {height} x {width} pixels; this network needs {smallest[0]} x "
                f"{smallest[1]} or more."
            )


class EsvitBaseModel(EsvitPreTrainedModel):
    """The contract of every EsViT network: pixels in, normalized regions and the view feature out.

    A network implements `forward_stages`, `region_grid` and `attention_layouts` and owns the last
    norm as `norm`.
    """

    norm: nn.Module
    # Where the convolution is that turns pixels into channels.
    _first_convolution = "stages.0.embeddings.projection"

    def get_input_embeddings(self) -> nn.Module:
        """Return the convolution that turns pixels into channels (see transformers)."""
        return self.get_submodule(self._first_convolution)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the convolution that turns pixels into channels.

        Args:
            value: Module that takes (B, channels, H, W) images.
        """
        self.set_submodule(self._first_convolution, value)

    def forward_stages(
        self, pixel_values: Tensor, *, output_attentions: bool = False
    ) -> list[StageOutput]:
        """Run the network without its last norm.

        Args:
            pixel_values: (B, channels, H, W) images.
            output_attentions: Whether attention probabilities are computed for the hooks that
                record them.

        Returns:
            The patch embeddings, then the output of each stage.
        """
        raise NotImplementedError

    def region_grid(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the regions in `last_hidden_state` for images of a size.

        Args:
            height: Image height in pixels.
            width: Image width in pixels.

        Returns:
            (h, w) with h * w = N.
        """
        raise NotImplementedError

    def attention_layouts(self, height: int, width: int) -> list[AttentionLayout]:
        """Say which tokens `attentions` belong to for images of a size, in evaluation mode.

        The layout of a block also describes its hidden state: global tokens, then the grid.

        Args:
            height: Image height in pixels.
            width: Image width in pixels.

        Returns:
            One layout for each block.
        """
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Compute regions and view feature.

        Args:
            pixel_values: (B, channels, H, W) normalized images of any size.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` as in transformers.

        Returns:
            `last_hidden_state` (B, N, C): regions, row-major, after the last norm. `pooler_output`
            (B, C): view feature. `hidden_states`: patch embeddings, then the output of every block
            (B, N_l, C_l), before downsampling and not normalized. `attentions`: probabilities of
            every block (see `attention_layouts`).

        Raises:
            ValueError: If the images have the wrong number of channels or are too small.
        """
        output_attentions = bool(kwargs.get("output_attentions", self.config.output_attentions))
        last = self.forward_stages(pixel_values, output_attentions=output_attentions)[-1]
        regions = self.norm(last.tokens)
        return BaseModelOutputWithPooling(
            last_hidden_state=regions, pooler_output=regions.mean(dim=1)
        )

    def pool_hidden_states(self, hidden_states: Sequence[Tensor | None]) -> list[Tensor]:
        """Reduce the output of every block to one feature an image, as the linear probe of the
        paper does.

        Tokens are averaged; those of the last stage after the last norm (reference:
        `features.last4` is the concatenation of the last four).

        Args:
            hidden_states: `hidden_states` of the model's output, first the patch embeddings.
                Entries that were not selected (None) are left out.

        Returns:
            One (B, C_l) feature for each block, in order.

        Raises:
            ValueError: If the number of hidden states is not that of this network.
        """
        depths = self.config.depths
        if len(hidden_states) != sum(depths) + 1:
            raise ValueError(
                f"pool_hidden_states got {len(hidden_states)} hidden states; this network has "
                f"{sum(depths) + 1} (patch embeddings and every block): pass `hidden_states` of a "
                f"call with output_hidden_states=True."
            )
        pooled = []
        for block, tokens in enumerate(hidden_states[1:]):
            if tokens is None:
                continue
            last_stage = block >= sum(depths[:-1])
            pooled.append((self.norm(tokens) if last_stage else tokens).mean(dim=1))
        return pooled


class EsvitForImageClassification(EsvitPreTrainedModel):
    """A linear classifier on the view feature of an EsViT network.

    Args:
        config: Configuration of the network; `num_labels` sets the number of classes.
    """

    network_class: ClassVar[type[EsvitBaseModel]]
    # The loss is the mean over the images of a call. Because of **kwargs, Trainer would take it as
    # divided by the number of images of all accumulated calls on all devices.
    accepts_loss_kwargs = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.network = self.network_class(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, channels, H, W) normalized images.
            labels: (B,) class indices, (B,) targets of a regression or (B, classes) several labels
                an image.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` as in transformers.

        Returns:
            `logits` (B, classes) and, with labels, `loss`.
        """
        outputs = self.network(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class EsvitBackboneMixin(BackboneMixin):
    """Feature maps of the asked stages, for detection and segmentation heads.

    Mixed in front of a base model, whose parameter names it keeps. Every returned stage is
    normalized: the last one by the pretrained last norm, the others by norms of their own.
    """

    config: Any
    norm: nn.Module
    forward_stages: Callable[..., list[StageOutput]]

    def _add_stage_norms(self, channels: Sequence[int], eps: float) -> None:
        """Create the norms of the returned stages; `channels` are those of the stem and of each
        stage.
        """
        self.num_features = list(channels)
        own = [name for name in self.out_features if name != self.stage_names[-1]]
        self.stage_norms = nn.ModuleDict(
            {name: nn.LayerNorm(self.out_feature_channels[name], eps=eps) for name in own}
        )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """Compute the feature maps of the stages in `out_features`.

        Args:
            pixel_values: (B, channels, H, W) normalized images of any size.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` as in transformers.

        Returns:
            `feature_maps`: (B, C_l, h_l, w_l) for each asked stage.

        Raises:
            ValueError: If the images have the wrong number of channels or are too small.
        """
        output_attentions = bool(kwargs.get("output_attentions", self.config.output_attentions))
        stages = self.forward_stages(pixel_values, output_attentions=output_attentions)
        maps = []
        for name, stage in zip(self.stage_names, stages, strict=True):
            if name in self.out_features:
                norm = self.norm if name == self.stage_names[-1] else self.stage_norms[name]
                maps.append(
                    norm(stage.tokens).transpose(1, 2).unflatten(2, stage.grid).contiguous()
                )
        return BackboneOutput(feature_maps=tuple(maps))
