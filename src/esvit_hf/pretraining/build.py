"""From a recipe to student, teacher and centres."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig

from esvit_hf.backbones import RegionBackbone, load_backbone
from esvit_hf.pretraining.arguments import PretrainingArguments
from esvit_hf.pretraining.centering import TeacherCentre
from esvit_hf.pretraining.ema import set_teacher_mode
from esvit_hf.pretraining.heads import ProjectionHead
from esvit_hf.pretraining.model import DistillationNetwork

HEADS_FILE = "pretraining_heads.safetensors"
"""Heads and centres of the teacher, beside the model of a pretraining run."""


@dataclass
class DistillationParts:
    """Student, teacher and the centres of both tasks, all on the CPU.

    Attributes:
        student: the network that is trained.
        teacher: its moving average.
        centres: `view` and `region`, as far as the recipe has the task.
    """

    student: DistillationNetwork
    teacher: DistillationNetwork
    centres: nn.ModuleDict


def build_backbone(arguments: PretrainingArguments) -> RegionBackbone:
    """Build the recipe's backbone: a model type with random weights, or a folder or Hub name with its weights.

    Raises:
        ValueError: if the name is neither, or a configuration field does not exist.
    """
    if arguments.model not in CONFIG_MAPPING or Path(arguments.model).exists():
        return load_backbone(
            arguments.model,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            **arguments.model_config,
        )
    known = AutoConfig.for_model(arguments.model).to_dict()
    unknown = sorted(set(arguments.model_config) - set(known))
    if unknown:
        raise ValueError(
            f"model_config has no field {', '.join(unknown)} for model {arguments.model!r}; "
            f"its fields are {', '.join(sorted(known))}"
        )
    config: PretrainedConfig = AutoConfig.for_model(arguments.model, **arguments.model_config)
    return RegionBackbone(AutoModel.from_config(config))


def build_parts(arguments: PretrainingArguments) -> DistillationParts:
    """Build student, teacher and centres, with the heads of `arguments.model` where it brings some.

    Raises:
        ValueError: if heads that come along do not fit the recipe.
    """
    backbone = build_backbone(arguments)
    heads: dict[str, ProjectionHead | None] = {}
    centres = nn.ModuleDict()
    for task, weight in (("view", arguments.view_weight), ("region", arguments.region_weight)):
        if weight == 0:
            heads[task] = None
            continue
        heads[task] = ProjectionHead(
            backbone.feature_dim,
            arguments.num_prototypes,
            hidden_dim=arguments.head_hidden_dim,
            bottleneck_dim=arguments.head_bottleneck_dim,
            num_layers=arguments.head_layers,
            batch_norm=arguments.head_batch_norm,
            train_prototype_gain=arguments.train_prototype_gain,
        )
        centres[task] = TeacherCentre(
            arguments.num_prototypes, arguments.head_bottleneck_dim, arguments.centre_momentum
        )
    student = DistillationNetwork(backbone, heads["view"], heads["region"])
    load_heads(arguments, student, centres)
    teacher = copy.deepcopy(student)
    set_teacher_mode(teacher)
    if arguments.gradient_checkpointing:
        backbone.model.gradient_checkpointing_enable()
    return DistillationParts(student, teacher, centres)


def find_heads(arguments: PretrainingArguments) -> Path | None:
    """Return the heads file of the folder or Hub repository that the recipe starts from, if it has one."""
    if arguments.model in CONFIG_MAPPING and not Path(arguments.model).exists():
        return None
    local = Path(arguments.model)
    if local.is_dir():
        return local / HEADS_FILE if (local / HEADS_FILE).is_file() else None
    try:
        return Path(hf_hub_download(arguments.model, HEADS_FILE, revision=arguments.revision))
    except EntryNotFoundError:
        return None


def load_heads(arguments: PretrainingArguments, student: DistillationNetwork, centres: nn.ModuleDict) -> None:
    """Load heads and centres from the starting checkpoint: each task that it brings, completely."""
    path = find_heads(arguments)
    if path is None:
        return
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for task, head in (("view", student.view_head), ("region", student.region_head)):
        prefix = f"{task}_head."
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if head is None or not state:
            continue
        expected = {name: list(value.shape) for name, value in head.state_dict().items()}
        found = {name: list(value.shape) for name, value in state.items()}
        if expected != found:
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(
                f"{path}: the {task} head does not fit the recipe ({differing[0]}: the file has "
                f"{found.get(differing[0])}, the recipe asks for {expected.get(differing[0])}); set num_prototypes "
                "and the head_ fields to those of the checkpoint, or remove the file to start with new heads"
            )
        head.load_state_dict(state)
        centres[task].load_state_dict({"centre": tensors[f"{task}_centre"]})


def heads_state(teacher: DistillationNetwork, centres: nn.ModuleDict) -> dict[str, Any]:
    """Return the tensors of `HEADS_FILE`: `view_head.*`, `region_head.*`, `view_centre`, `region_centre`."""
    state = {}
    for name, head in teacher.heads().items():
        state.update({f"{name}.{key}": value.cpu().contiguous() for key, value in head.state_dict().items()})
    for task, centre in centres.items():
        state[f"{task}_centre"] = centre.get_buffer("centre").cpu()
    return state


def describe_model(backbone: RegionBackbone) -> str:
    """Return one line about a backbone for logs and cards."""
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return f"{backbone.model.config.model_type}, {json.dumps(parameters)} parameters"
