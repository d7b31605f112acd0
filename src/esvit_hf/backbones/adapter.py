"""Any vision network as a backbone: pixels in, a grid of region features and one view feature
out.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TimmWrapperModel

from esvit_hf.backbones.checks import (
    check_deterministic,
    check_order,
    check_spatial,
    check_tokens,
)
from esvit_hf.backbones.layouts import (
    BackboneFeatures,
    MapLayout,
    TokenLayout,
    find_hidden_layouts,
    find_layout,
    is_ambiguous,
)
from esvit_hf.common.errors import one_line
from esvit_hf.models.modeling_esvit_common import AttentionLayout, full_attention_layout

__all__ = ["RegionBackbone", "configured_image_size"]


@runtime_checkable
class _RegionModel(Protocol):
    """The contract of this project's own networks, which need no interpretation of their
    outputs.
    """

    def region_grid(self, height: int, width: int) -> tuple[int, int]: ...

    def pool_hidden_states(self, hidden_states: Sequence[Tensor]) -> list[Tensor]: ...

    def attention_layouts(self, height: int, width: int) -> list[AttentionLayout]: ...


class RegionBackbone(nn.Module):
    """One network of this project, or any vision `AutoModel`, behind one interface.

    The networks of this project state their grid themselves. How another network lays out its
    outputs is measured on one image when the adapter is built: feature maps (ResNet, ConvNeXt, most
    of timm) are flattened row-major; tokens lose the class, distillation and register tokens in
    front of them. The view feature is the class token where there is one (the rule of the DINO and
    EsViT papers for ViT), else the mean of the regions; a pooling head is ignored. Position
    embeddings are interpolated where the network offers it.

    Trainable parameters that cannot influence the outputs (pooling heads, mask tokens) are frozen,
    so that `DistributedDataParallel` needs no search for unused parameters. Settings of the network
    itself, such as `model.gradient_checkpointing_enable()`, stay available at `backbone.model`.

    Args:
        model: network whose main input is `pixel_values`.
        image_size: height and width, in pixels, of the image used to measure a foreign network; by
            default its own `config.image_size`.

    Attributes:
        model: the network.
        feature_dim: channels C of regions and view feature.
        native_size: height and width, in pixels, that the network was configured for; None if it
            does not say.

    Raises:
        ValueError: the network takes no images, has no spatial tokens, or gives random outputs in
            evaluation mode.
    """

    def __init__(self, model: PreTrainedModel, *, image_size: int | tuple[int, int] | None = None):
        super().__init__()
        self.model = model
        name = type(model).__name__
        if model.main_input_name != "pixel_values":
            raise ValueError(
                f"{name} takes {model.main_input_name!r}, not images (pixel_values): choose a "
                f"vision model, or pass the vision tower of a multimodal one"
            )
        self.native_size = configured_image_size(model)
        self._interpolates = (
            "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        )
        self._layout: MapLayout | TokenLayout | None = None
        self._hidden_layouts: list[MapLayout | TokenLayout | None] = []
        self._final_norm: str | None = None
        self.feature_dim: int
        if isinstance(model, _RegionModel):
            self.feature_dim = model.config.hidden_size
        else:
            self._measure(
                _pair(image_size) if image_size is not None else self.native_size or (224, 224)
            )

    def forward(self, pixel_values: Tensor) -> BackboneFeatures:
        """Region and view features of a batch.

        Args:
            pixel_values: (B, 3, H, W) normalized images.

        Returns:
            Regions (B, N, C), view feature (B, C), and the grid.

        Raises:
            ValueError: the network's tokens for this input size form no grid.
        """
        return self._read(self._run(pixel_values), pixel_values)

    @property
    def num_blocks(self) -> int:
        """Number of blocks that `block_features` knows."""
        if isinstance(self.model, _RegionModel):
            return int(sum(self.model.config.depths))
        return max(len(self._hidden_layouts) - 1, 1)

    def pooled_blocks(self, pixel_values: Tensor, count: int) -> Tensor:
        """View features of the last `count` blocks, concatenated from the earliest to the last: the
        linear-probe input.

        Args:
            pixel_values: (B, 3, H, W) normalized images.
            count: number of blocks.

        Returns:
            (B, sum of the blocks' channels).

        Raises:
            ValueError: `count` is not between 1 and the number of blocks.

        Source:
            EsViT section 4.1 and DINO appendix F.2: features of the last four blocks for small
            networks.
        """
        return torch.cat(self.block_features(pixel_values, count), dim=1)

    def block_features(self, pixel_values: Tensor, count: int) -> list[Tensor]:
        """View features of the last `count` blocks, one by one.

        The networks of this project follow the paper's rule for their family. For any other network
        a block is an entry of its `hidden_states` after the first (stages, for many hierarchical
        networks): class tokens are taken, maps averaged, after the network's final norm where its
        width fits. The last block's part is the view feature.

        Args:
            pixel_values: (B, 3, H, W) normalized images.
            count: number of blocks.

        Returns:
            One (B, C_l) for each block, from the earliest to the last.

        Raises:
            ValueError: `count` is not between 1 and the number of blocks.
        """
        if count < 1:
            raise ValueError(f"count is {count}: ask for at least one block")
        output = self._run(pixel_values, output_hidden_states=True)
        hidden_states = output.hidden_states
        if isinstance(self.model, _RegionModel):
            rows = self.model.pool_hidden_states(hidden_states)
            self._check_count(count, len(rows))
            return rows[-count:]
        self._check_count(count, len(hidden_states or ()) - 1)
        norm = self.model.get_submodule(self._final_norm) if self._final_norm else None
        layers = range(len(hidden_states or ()))[-count:-1]
        rows = [
            self._hidden_layout(layer, hidden_states).pool(_normalized(hidden_states[layer], norm))
            for layer in layers
        ]
        return [*rows, self._read(output, pixel_values).pooled]

    def layer_regions(
        self, pixel_values: Tensor, layer: int | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Regions of any layer.

        Args:
            pixel_values: (B, 3, H, W) normalized images.
            layer: index into the network's `hidden_states`, which are not normalized: 0 for the
                patch embeddings, -1 for the last; None for the regions of `forward`, behind the
                last norm.

        Returns:
            Regions (B, N, C), row-major, without class, register or global tokens, and their grid
            (h, w).

        Raises:
            ValueError: the network has no such layer, or its tokens form no grid.
        """
        if layer is None:
            features = self(pixel_values)
            return features.regions, features.grid
        height, width = pixel_values.shape[-2:]
        hidden_states = self._run(pixel_values, output_hidden_states=True).hidden_states or ()
        if not -len(hidden_states) <= layer < len(hidden_states):
            raise ValueError(
                f"layer {layer} asked for, {type(self.model).__name__} reports "
                f"{len(hidden_states)} hidden states: choose 0 to {len(hidden_states) - 1}, or "
                f"count from the end with -1"
            )
        state = hidden_states[layer]
        if isinstance(self.model, _RegionModel):
            layouts = self.model.attention_layouts(height, width)
            layout = [layouts[0], *layouts][layer]
            return state[:, layout.num_global_tokens :], layout.grid
        features = self._hidden_layout(layer, hidden_states).read(state, height, width)
        return features.regions, features.grid

    def _hidden_layout(
        self, layer: int, hidden_states: Sequence[Tensor]
    ) -> MapLayout | TokenLayout:
        layout, state = self._hidden_layouts[layer], hidden_states[layer]
        if layout is None:
            found = (
                f"has the shape {tuple(state.shape)}"
                if isinstance(state, Tensor)
                else f"is a {type(state).__name__}"
            )
            raise ValueError(
                f"hidden state {layer} of {type(self.model).__name__} {found}, which is no map of "
                f"regions: choose another layer or fewer blocks"
            )
        return layout

    def attention_maps(self, pixel_values: Tensor) -> list[tuple[Tensor, AttentionLayout]]:
        """Attention probabilities of every block.

        Args:
            pixel_values: (B, 3, H, W) normalized images.

        Returns:
            For each block (B * windows, heads, Q, K) probabilities, and which tokens their rows and
            columns belong to.

        Raises:
            ValueError: the network has no attention, or one whose layout is unknown.
        """
        height, width = pixel_values.shape[-2:]
        if isinstance(self.model, _RegionModel):
            attentions = self._run(pixel_values, output_attentions=True).attentions
            return list(zip(attentions, self.model.attention_layouts(height, width), strict=True))
        name, layout = type(self.model).__name__, self._layout
        remedy = (
            "choose a network of this project or a plain vision transformer such as ViT, DeiT or "
            "DINOv2"
        )
        attentions = self._foreign_attentions(pixel_values, remedy)
        if not attentions or not isinstance(layout, TokenLayout):
            raise ValueError(f"{name} reports no attention between tokens of a grid: {remedy}")
        maps = []
        for block, probabilities in enumerate(attentions):
            shape = tuple(probabilities.shape) if isinstance(probabilities, Tensor) else ()
            grid = (
                layout.grid(shape[-1] - layout.prefix, height, width) if len(shape) == 4 else None
            )
            if grid is None or shape[0] != len(pixel_values) or shape[2] != shape[3]:
                raise ValueError(
                    f"block {block} of {name} reports attention of shape {shape}, which is not "
                    f"from all tokens to all: {remedy}"
                )
            maps.append((probabilities, full_attention_layout(grid, layout.stride, layout.prefix)))
        return maps

    def _foreign_attentions(self, pixel_values: Tensor, remedy: str) -> Sequence[Any]:
        """Attentions of a network that is not of this project, computed step by step: fused kernels
        have none.
        """
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            output = self._run(pixel_values, output_attentions=True)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{type(self.model).__name__} reports no attention probabilities "
                f"({one_line(error)}): {remedy}"
            ) from error
        finally:
            self.model.set_attn_implementation(implementation)
        return getattr(output, "attentions", None) or ()

    def _check_count(self, count: int, available: int) -> None:
        if count > max(available, 1):
            raise ValueError(
                f"{count} blocks asked for, {type(self.model).__name__} reports "
                f"{max(available, 1)}: lower the number"
            )

    def _run(self, pixel_values: Tensor, **options: bool) -> Any:
        if self._interpolates:
            # At the native size interpolation is the identity, except in ViT with a non-square
            # grid, which it breaks.
            options["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != self.native_size
        return self.model(
            pixel_values=pixel_values.to(self.model.dtype), return_dict=True, **options
        )

    def _read(self, output: Any, pixel_values: Tensor) -> BackboneFeatures:
        height, width = pixel_values.shape[-2:]
        if isinstance(self.model, _RegionModel):
            grid = self.model.region_grid(height, width)
            return BackboneFeatures(output.last_hidden_state, output.pooler_output, grid)
        assert self._layout is not None
        return self._layout.read(output.last_hidden_state, height, width)

    @torch.enable_grad()
    def _measure(self, image_size: tuple[int, int]) -> None:
        """Learn layout, width, final norm and unused parameters of a foreign network from one
        image.
        """
        name = type(self.model).__name__
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"{name} ends in a decoder, whose queries are no regions of the image: choose its "
                f"encoder, or a network that gives features per region"
            )
        output, records, pixels = self._observe(image_size)
        last: Tensor = output.last_hidden_state
        stride = _first_stride(self.model)
        hidden_states = getattr(output, "hidden_states", None) or ()
        wider = None
        if any(is_ambiguous(state, image_size) for state in (last, *hidden_states)):
            wider = self._observe_wider(pixels)
        self._layout = find_layout(
            last, image_size, stride, name, wider and wider.last_hidden_state
        )
        check_tokens(hidden_states, self._layout, pixels, name)
        layouts = find_hidden_layouts(
            hidden_states,
            self._layout,
            image_size,
            stride,
            name,
            (wider and wider.hidden_states) or (),
        )
        self._hidden_layouts = check_order(hidden_states, layouts, pixels)
        features = self._layout.read(last, *image_size)
        self.feature_dim = features.pooled.shape[1]
        self._final_norm = _find_final_norm(output, records)
        _freeze_unused(self.model, features.regions.sum() + features.pooled.sum())

    @torch.no_grad()
    def _observe_wider(self, pixels: Tensor) -> Any:
        """Run a foreign network on an image of twice the width; None if it takes none."""
        was_training = self.model.training
        self.model.eval()
        try:
            return self._run(pixels.repeat(1, 1, 1, 2), output_hidden_states=True)
        # What networks raise for a size that they do not take.
        except (RuntimeError, AssertionError, IndexError, TypeError, ValueError):
            return None
        finally:
            self.model.train(was_training)

    def _observe(self, image_size: tuple[int, int]) -> tuple[Any, list["_Record"], Tensor]:
        """Run a foreign network on one image, record what its layers compute and check that its
        output can be read. The image, which has a gradient, is returned last.
        """
        model, (height, width) = self.model, image_size
        channels = getattr(model.config, "num_channels", None) or 3
        pixels = torch.linspace(-1, 1, channels * height * width, device=model.device)
        pixels = pixels.reshape(1, channels, height, width).requires_grad_()
        was_training = model.training
        model.eval()
        try:
            with _recorded(model) as records:
                output = self._run(pixels, output_hidden_states=True)
            repeated = self._run(pixels)
        # What networks raise for a size or an input that they miss.
        except (RuntimeError, AssertionError, AttributeError, IndexError, TypeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot process an image of {height} x {width} pixels "
                f"({one_line(error)}): pass image_size with a size that it takes"
            ) from error
        finally:
            model.train(was_training)
        check_spatial(output, type(model).__name__)
        check_deterministic(output, repeated, type(model).__name__)
        return output, records, pixels


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def configured_image_size(model: PreTrainedModel) -> tuple[int, int] | None:
    """Return the height and width in pixels that a network was made for; None if it says none."""
    config = model.config
    size = getattr(config, "image_size", None)
    if size is None and isinstance(model, TimmWrapperModel):
        size = getattr(getattr(model.timm_model, "patch_embed", None), "img_size", None)
    if size is None:
        settings = getattr(config, "pretrained_cfg", None)
        if not settings and isinstance(model, TimmWrapperModel):
            settings = getattr(model.timm_model, "pretrained_cfg", None)
        input_size = (settings or {}).get("input_size")
        size = input_size[-2:] if input_size else None
    return _pair(size) if size else None


def _normalized(hidden_state: Tensor, norm: nn.Module | None) -> Tensor:
    weight = getattr(norm, "weight", None)
    if (
        norm is None
        or weight is None
        or hidden_state.ndim != 3
        or hidden_state.shape[-1:] != weight.shape
    ):
        return hidden_state
    normalized: Tensor = norm(hidden_state)
    return normalized


class _Record(NamedTuple):
    """What a layer with weights took and gave."""

    name: str
    input: Tensor
    output: Tensor


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Record]]:
    """Record what the innermost layers with weights take and give."""
    records: list[_Record] = []

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            records.append(_Record(name, inputs[0], output))

    hooks = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and not list(module.children())
    ]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def _find_final_norm(output: Any, records: list[_Record]) -> str | None:
    """Name the layer between the last hidden state and the output, if there is one."""
    before_last = (getattr(output, "hidden_states", None) or [None])[-1]
    found = None
    for record in records:
        if record.output is output.last_hidden_state and record.input is before_last:
            found = record.name
    return found


def _freeze_unused(model: nn.Module, total: Tensor) -> None:
    """Freeze the parameters that a sum of all features does not depend on."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        return
    gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _first_stride(model: PreTrainedModel) -> tuple[int, int]:
    patch_size = getattr(model.config, "patch_size", None)
    if isinstance(patch_size, int):
        return _pair(patch_size)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return _pair(module.stride)
    return (1, 1)
