"""From a recipe to student, teacher and centers."""

import copy
import difflib
import json
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from esvit_hf.acceleration.linear import use_fast_linear
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.channels import inflate_channels
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.common.errors import one_line
from esvit_hf.common.places import check_model_place, find_path
from esvit_hf.hub.heads_file import SavedHead, find_heads, read_heads
from esvit_hf.pretraining.distillation import DistillationNetwork, DistillationParts
from esvit_hf.pretraining.ema import set_teacher_mode
from esvit_hf.pretraining.objectives.registry import build_objectives
from esvit_hf.pretraining.recipe import Recipe


def starts_from_scratch(recipe: Recipe) -> bool:
    """Say whether the recipe's model is a type to build, not a folder or Hub name with weights."""
    return recipe.model.name in CONFIG_MAPPING and not Path(recipe.model.name).exists()


def build_backbone(recipe: Recipe) -> RegionBackbone:
    """Build the recipe's backbone: a model type with random weights, or a folder or Hub name with
    its weights.

    Raises:
        ValueError: if the name is neither, or a configuration field does not exist.
    """
    check_model(recipe)
    if not starts_from_scratch(recipe):
        fields = dict(recipe.model.config)
        channels = fields.pop("num_channels", None) if recipe.model.inflate else None
        backbone = load_backbone(
            recipe.model.name,
            revision=recipe.model.revision,
            trust_remote_code=recipe.model.trust_remote_code,
            **fields,
        )
        if channels is None:
            return backbone
        return RegionBackbone(inflate_channels(backbone.model, channels))
    config: PretrainedConfig = AutoConfig.for_model(recipe.model.name, **recipe.model.config)
    try:
        return RegionBackbone(AutoModel.from_config(config))
    except ValueError as error:
        raise _unfit(recipe, error) from error


def check_model(recipe: Recipe) -> None:
    """Refuse a model that is not there, or fields that it does not have, without loading it.

    Args:
        recipe: the recipe.

    Raises:
        ValueError: it is not there, or lacks a field.
    """
    name = recipe.model.name
    if not starts_from_scratch(recipe):
        _check_type(name)
        check_model_place(name, revision=recipe.model.revision)
        return
    if recipe.model.inflate:
        raise ValueError(
            f"model.inflate is true, but model.name {name!r} is a type without weights: leave "
            f"model.inflate out, or name a folder or Hub model"
        )
    known = {*AutoConfig.for_model(name).to_dict(), "attn_implementation"}
    unknown = sorted(set(recipe.model.config) - set(known))
    if unknown:
        raise ValueError(
            f"model.config has no field {', '.join(unknown)} for model {name!r}; its fields are "
            f"{', '.join(sorted(known))}"
        )
    try:
        AutoConfig.for_model(name, **recipe.model.config)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise _unfit(recipe, error) from error


def _unfit(recipe: Recipe, error: Exception) -> ValueError:
    return ValueError(
        f"model.config does not fit a network of type {recipe.model.name!r} ({one_line(error)}): "
        f"correct that field"
    )


def _check_type(name: str) -> None:
    """Refuse a mistyped model type, before the Hub is asked for it.

    Raises:
        ValueError: it is that.
    """
    near = difflib.get_close_matches(name, CONFIG_MAPPING, 1, cutoff=0.8)
    if near and find_path(name) is None:
        raise ValueError(
            f"model.name {name!r} is no folder and no model type: did you mean {near[0]}?"
        )


def build_parts(recipe: Recipe) -> DistillationParts:
    """Build student, teacher and centers, with the heads that the recipe's model brings.

    Raises:
        ValueError: if heads that come along do not fit the recipe, or the network cannot take its
            crops.
    """
    # Small steps do not change 16-bit weights, which the model's folder or fields may bring.
    backbone = build_backbone(recipe).to(torch.get_default_dtype())
    _check_channels(recipe, backbone)
    check_crops(recipe, backbone)
    objectives = build_objectives(recipe.objectives)
    heads, centers = {}, nn.ModuleDict()
    for name, objective in objectives.items():
        settings = recipe.heads_of(name)
        heads[name] = objective.build_head(backbone.feature_dim, settings)
        centers[name] = objective.build_center(settings)
    student = DistillationNetwork(backbone, heads)
    load_heads(recipe, student, centers)
    use_fast_linear(student)
    teacher = copy.deepcopy(student)
    set_teacher_mode(teacher)
    if recipe.run.checkpointed_blocks:
        checkpoint_blocks(backbone.model, recipe.run.checkpointed_blocks)
    return DistillationParts(objectives, student, teacher, centers)


@torch.no_grad()
def check_crops(recipe: Recipe, backbone: RegionBackbone) -> None:
    """Run a network once on a crop of every size of the recipe.

    Args:
        recipe: the recipe.
        backbone: the network, which keeps its mode.

    Raises:
        ValueError: it cannot take one.
    """
    was_training = backbone.training
    backbone.eval()
    for size in sorted({view.size for view in recipe.data.views}):
        try:
            backbone(torch.zeros(1, recipe.data.channels, size, size))
        # What networks of others raise for a size or channels that they do not take.
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"model.name {recipe.model.name!r} cannot take crops of {size} x {size} pixels and "
                f"{recipe.data.channels} channels "
                f"({one_line(error)}): change the size in data.views or fields of model.config "
                f"(image_size, num_channels), or take a network for any size, such as esvit_swin, "
                f"vit or convnext"
            ) from error
    backbone.train(was_training)


def _check_channels(recipe: Recipe, backbone: RegionBackbone) -> None:
    """Refuse images of another number of channels than the network takes.

    Raises:
        ValueError: they are.
    """
    taken, given = getattr(backbone.model.config, "num_channels", None) or 3, recipe.data.channels
    if taken != given:
        raise ValueError(
            f"the network takes {taken} channels, and data.image_mean and data.image_std are for "
            f"{given}: give {taken} numbers for each of them, in units of the range of values"
        )


def checkpoint_blocks(model: PreTrainedModel, count: int) -> None:
    """Compute the first blocks again in the backward pass instead of keeping what they computed
    (arXiv 1604.06174).

    Args:
        model: network of transformers.
        count: number of blocks.

    Raises:
        ValueError: if the network has fewer blocks that can be computed again.
    """
    blocks = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if count > len(blocks):
        raise ValueError(
            f"run.checkpointed_blocks is {count}, but {type(model).__name__} has {len(blocks)} "
            f"blocks that can be computed again: lower it"
        )
    model.gradient_checkpointing_enable()
    for block in blocks[count:]:
        block.gradient_checkpointing = False


def load_heads(recipe: Recipe, student: DistillationNetwork, centers: nn.ModuleDict) -> None:
    """Load heads and centers from the starting checkpoint: each objective that it brings,
    completely.
    """
    path = (
        None
        if starts_from_scratch(recipe)
        else find_heads(recipe.model.name, recipe.model.revision)
    )
    if path is None:
        return
    saved = read_heads(path)
    for objective in student.heads:
        if objective not in saved:
            continue
        head, center, brought = student.head(objective), centers[objective], saved[objective]
        expected = {name: list(value.shape) for name, value in head.state_dict().items()}
        expected["center"] = list(center.get_buffer("center").shape)
        found = {name: list(value.shape) for name, value in brought.state.items()}
        found["center"] = list(brought.center.shape)
        if expected != found:
            differing = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            raise ValueError(
                f"{path}: the {objective} head does not fit the recipe ({differing[0]}: the file "
                f"has {found.get(differing[0])}, the recipe asks for "
                f"{expected.get(differing[0])}); set the fields of heads to those of the "
                f"checkpoint, or remove the file to start with new heads"
            )
        head.load_state_dict(brought.state)
        center.load_state_dict({"center": brought.center})


def saved_heads(teacher: DistillationNetwork, centers: nn.ModuleDict) -> dict[str, SavedHead]:
    """Return the heads and centers that pretraining continues from, by objective."""
    return {
        name: SavedHead(head.state_dict(), centers[name].get_buffer("center"))
        for name, head in teacher.heads.items()
    }


def describe_model(backbone: RegionBackbone) -> str:
    """Return one line about a backbone for logs and cards."""
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return f"{backbone.model.config.model_type}, {json.dumps(parameters)} parameters"
