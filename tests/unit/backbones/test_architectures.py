"""Every vision architecture of transformers and one of every timm family: right, or refused."""

import math
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    DetrConfig,
    DetrModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    YolosConfig,
    YolosModel,
)

from esvit_hf.backbones.adapter import RegionBackbone

MOST_PARAMETERS = 120_000_000
LARGEST_IMAGE = 256
SMALL = ("atto", "femto", "pico", "nano", "xxs", "xx_small", "tiny", "mini", "18", "_050", "small")


def shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    """Leave two blocks, or one a stage, and images that are not large."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            shortened(value)
        elif name in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers"):
            setattr(config, name, min(value or 0, 2))
        elif name == "depths":
            setattr(config, name, [1] * len(value))
        elif name == "image_size" and isinstance(value, int) and value > LARGEST_IMAGE:
            # Maps of 600 x 600 pixels take 8 GB.
            setattr(config, name, LARGEST_IMAGE)
    return config


def built(create: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A network with random weights, unless it is large."""
    with torch.device("meta"):
        number = sum(parameter.numel() for parameter in create().parameters())
    if number > MOST_PARAMETERS:
        raise ValueError(f"{number / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    return create().eval()


def architectures_of_transformers() -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
    for name, config_class in CONFIG_MAPPING.items():
        try:
            found = MODEL_MAPPING.get(config_class, ())
        except ValueError:
            # transformers 5.24 lists a class that it does not have.
            continue
        for model_class in found if isinstance(found, tuple) else (found,):
            # Where a package is missing, something else stands for the class.
            if not issubclass(model_class, PreTrainedModel):
                continue
            takes_images = model_class.main_input_name == "pixel_values"
            if takes_images and not name.startswith(("esvit", "timm_wrapper")):
                yield (
                    name,
                    lambda make=model_class, config=config_class: make(shortened(config())),
                )


def families_of_timm() -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        names.sort(key=lambda name: not any(size in name for size in SMALL))
        if names:
            config = TimmWrapperConfig(architecture=names[0])
            yield names[0], lambda config=config: TimmWrapperModel(config)


def reading(state: object, wide: Tensor | None) -> tuple[Tensor, int] | None:
    """Regions (B, N, C) of a hidden state and the number of tokens in front; None if unknown.

    `wide` is the state for images of twice the width: the axis that has grown is the width.
    """
    if not isinstance(state, Tensor):
        return None
    if state.ndim == 4 and wide is not None:
        grown = [axis for axis in (1, 2, 3) if wide.shape[axis] > state.shape[axis]]
        if grown == [3]:
            return state.flatten(2).mT, 0
        return (state.flatten(1, 2), 0) if grown == [2] else None
    if state.ndim == 4 and state.shape[2] == state.shape[3] != state.shape[1]:
        return state.flatten(2).mT, 0
    if state.ndim == 4 and state.shape[1] == state.shape[2] != state.shape[3]:
        return state.flatten(1, 2), 0
    if state.ndim == 3:
        tokens = state.shape[1]
        prefix = tokens - math.isqrt(tokens) ** 2 if wide is None else 2 * tokens - wide.shape[1]
        return (state[:, prefix:], prefix) if prefix >= 0 else None
    return None


def average(state: Tensor, regions: Tensor, prefix: int) -> Tensor:
    return state[:, 0] if prefix else regions.mean(dim=1)


def assert_right(model: PreTrainedModel) -> None:
    """Compare what is read off a network with averages by hand."""
    backbone = RegionBackbone(model).eval()
    height, width = backbone.native_size or (224, 224)
    channels = getattr(model.config, "num_channels", None) or 3
    pixels = torch.randn(2, channels, height, width)
    output = backbone._run(pixels, output_hidden_states=True)
    try:
        wider = backbone._run(pixels.repeat(1, 1, 1, 2), output_hidden_states=True)
    except (RuntimeError, AssertionError, IndexError, TypeError, ValueError):
        wider = None
    read = reading(output.last_hidden_state, wider and wider.last_hidden_state)
    assert read is not None, tuple(output.last_hidden_state.shape)
    last = average(output.last_hidden_state, *read)
    features = backbone(pixels)
    torch.testing.assert_close(features.regions, read[0])
    torch.testing.assert_close(features.pooled, last)
    states = getattr(output, "hidden_states", None) or ()
    norm = model.get_submodule(backbone._final_norm) if backbone._final_norm else None
    corner = pixels.clone()
    # Larger than what is cut off where patches do not fill the image.
    corner[..., -32:, -32:] += 1
    for layer, state in enumerate(states):
        read = reading(state, wider and wider.hidden_states[layer])
        try:
            regions, grid = backbone.layer_regions(pixels, layer)
        except ValueError as refused:
            assert "\n" not in str(refused)
            continue
        assert read is not None, f"layer {layer}: {tuple(state.shape)}"
        torch.testing.assert_close(regions, read[0])
        assert grid[0] * grid[1] == regions.shape[1]
        if layer == 0:
            moved, _ = backbone.layer_regions(corner, layer)
            assert not torch.equal(moved[:, -1], regions[:, -1]), "last token is no region"
        if 0 < layer < len(states) - 1:
            row = backbone.block_features(pixels, len(states) - layer)[0]
            fits = norm is not None and state.ndim == 3 and state.shape[2:] == norm.weight.shape
            normed = norm(state) if fits else state
            regions = normed[:, read[1] :] if state.ndim == 3 else read[0]
            torch.testing.assert_close(row, average(normed, regions, read[1]))


def outcome(create: Callable[[], PreTrainedModel]) -> str:
    try:
        model = built(create)
    except Exception as error:  # Whatever keeps a network from being made.
        return f"not built: {type(error).__name__} {' '.join(str(error).split())[:120]}"
    try:
        with torch.no_grad():
            assert_right(model)
    except ValueError as refused:
        return f"refused: {refused}" if "\n" not in str(refused) else f"WRONG: {refused!r}"
    except Exception as error:  # Named with the architecture.
        return f"WRONG: {type(error).__name__} {' '.join(str(error).split())[:300]}"
    return "right"


@pytest.mark.slow
@pytest.mark.parametrize("architectures", [architectures_of_transformers, families_of_timm])
def test_every_architecture_is_read_right_or_refused(
    architectures: Callable[[], Iterator[tuple[str, Callable[[], PreTrainedModel]]]],
) -> None:
    found = {}
    for name, create in architectures():
        found[name] = outcome(create)
        print(name, found[name], flush=True)
    counts = Counter(result.split(":")[0] for result in found.values())
    print(dict(counts))
    assert not {name: result for name, result in found.items() if result.startswith("WRONG")}
    assert counts["right"] > 30


def test_queries_of_a_decoder_are_no_regions() -> None:
    convolutions = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "num_queries": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DetrConfig(backbone_config=convolutions, **layers, **heads)
    with pytest.raises(ValueError, match="DetrModel ends in a decoder.*choose its encoder"):
        RegionBackbone(DetrModel(config), image_size=64)


def test_tokens_behind_the_regions_are_refused() -> None:
    sizes = {"image_size": [64, 64], "hidden_size": 16, "intermediate_size": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_detection_tokens": 5}
    with pytest.raises(ValueError, match="YolosModel puts tokens that belong to no region behind"):
        RegionBackbone(YolosModel(YolosConfig(**sizes, **layers)))
