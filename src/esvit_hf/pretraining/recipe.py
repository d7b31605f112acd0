"""The recipe of a pretraining run: one typed dataclass, filled from a YAML file and the command
line.
"""

import math
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from esvit_hf.data.views import ViewSpec, dino_views
from esvit_hf.hub.push import check_repo_id

MAX_INTEGER = 2**31 - 1


@dataclass
class PretrainingArguments:
    """Everything that decides what a pretraining run does.

    Args:
        dataset: Hub name, folder of parquet files, or folder of images with or without class
            folders.
        dataset_config: configuration of a Hub data set.
        train_split: split to pretrain on; labels are never read for training.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels, for the online k-NN alone.
        streaming: read parquet or tar shards, on disk or remote, while they are needed; `dataset`
            may then also be an address, a pattern, or an index that `esvit index` wrote.
        shuffle_buffer: with streaming, encoded images that each worker holds and shuffles together.
        max_broken_fraction: share of undecodable images above which the run stops.
        model: a model type to build from scratch (`esvit_swin`, `vit`, ...), or a folder or Hub
            name to start from.
        model_config: fields of the model's configuration, and `attn_implementation` (`eager` is
            fast in bf16 on CPUs).
        revision: revision of a Hub model.
        trust_remote_code: allow a Hub model to run its own code.
        num_prototypes: prototypes K of each head.
        head_hidden_dim: width of the heads' hidden layers.
        head_bottleneck_dim: width of the heads' bottleneck.
        head_layers: linear layers of a head before its prototypes.
        head_batch_norm: batch norm in the heads.
        train_prototype_gain: train the length of the student's prototypes (the reference's
            `norm_last_layer=False`).
        view_weight: weight of the view loss; 0 leaves it out.
        region_weight: weight of the region loss; 0 leaves it out.
        region_start_epoch: epoch at which the region loss joins; before it the view loss carries
            both weights.
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperature of the teacher's softmax after its warm-up.
        warmup_teacher_temperature: temperature of the teacher's softmax at the start.
        warmup_teacher_temperature_epochs: epochs of the linear temperature warm-up.
        center_momentum: share of the old center that is kept at each step.
        teacher_momentum: share of the old teacher that is kept at each step, at the start.
        teacher_momentum_end: the same at the end (cosine in between).
        views: the crops of an image; those with `teacher: true` are seen by the teacher too.
        num_epochs: passes over the data.
        max_steps: stop after this many optimizer steps; schedules still span `num_epochs`.
        batch_size: images of one process in one forward pass.
        accumulation_steps: forward passes of an optimizer step.
        learning_rate: peak learning rate for a total batch of 256; scaled linearly with the total
            batch.
        min_learning_rate: learning rate at the end of the cosine.
        warmup_epochs: epochs of the linear learning-rate warm-up.
        weight_decay: weight decay at the start.
        weight_decay_end: weight decay at the end (cosine in between).
        clip_gradient: largest gradient norm; 0 turns clipping off.
        clip_mode: clip each parameter's gradient on its own, as the reference does, or all of them
            together.
        freeze_last_layer_epochs: epochs during which the prototypes stay as they are.
        mixed_precision: autocast dtype; losses, centers and the teacher's average stay float32.
        compile: compile the student's and the teacher's backbone with torch.compile (needs a C++
            compiler).
        checkpointed_blocks: blocks of the student, from the first on, that the backward pass
            computes again instead of keeping what they computed: the first blocks of a multi-stage
            network hold the most memory.
        num_workers: data-loading processes of each training process.
        seed: seed of weights, order and crops.
        output_dir: folder of the run.
        resume: continue from the newest complete checkpoint in the output folder.
        logging_steps: optimizer steps between two lines of `metrics.jsonl`.
        checkpoint_steps: optimizer steps between two checkpoints; 0 keeps only the one at the end.
        checkpoints_kept: number of checkpoints kept.
        trackers: Accelerate trackers (`tensorboard`, `wandb`, ...); `auto` is TensorBoard if it is
            installed.
        knn_every_epochs: epochs between two online k-NN evaluations of the teacher; 0 turns them
            off.
        knn_split: split whose images are classified by the training split's labels.
        knn_neighbors: number of neighbors of the online k-NN.
        push_to_hub: publish the result on the Hub, with the login of huggingface_hub or HF_TOKEN.
        hub_model_id: NAME/MODEL to publish; `resume` looks there for a resume point if the output
            folder has none.
        hub_private_repo: make the repository private.
        hub_strategy: publish at the `end`, at `every_save` of a checkpoint, or at every save
            together with the resume point (`checkpoint`); publishing at saves runs beside the
            training.
        eval_resize_ratio: shorter side of an evaluation image over its center crop; the crop is as
            large as the largest view.
    """

    dataset: str
    dataset_config: str | None = None
    train_split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 1024
    max_broken_fraction: float = 0.01
    model: str = "esvit_swin"
    model_config: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    trust_remote_code: bool = False
    num_prototypes: int = 65536
    head_hidden_dim: int = 2048
    head_bottleneck_dim: int = 256
    head_layers: int = 3
    head_batch_norm: bool = False
    train_prototype_gain: bool = True
    view_weight: float = 0.5
    region_weight: float = 0.5
    region_start_epoch: int = 0
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    warmup_teacher_temperature: float = 0.04
    warmup_teacher_temperature_epochs: int = 30
    center_momentum: float = 0.9
    teacher_momentum: float = 0.996
    teacher_momentum_end: float = 1.0
    views: list[ViewSpec] = field(default_factory=lambda: list(dino_views()))
    num_epochs: int = 300
    max_steps: int | None = None
    batch_size: int = 64
    accumulation_steps: int = 1
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_gradient: float = 3.0
    clip_mode: Literal["parameter", "global"] = "parameter"
    freeze_last_layer_epochs: int = 1
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    checkpointed_blocks: int = 0
    num_workers: int = 8
    seed: int = 0
    output_dir: Path = Path("outputs/pretraining")
    resume: bool = False
    logging_steps: int = 10
    checkpoint_steps: int = 1000
    checkpoints_kept: int = 2
    trackers: list[str] = field(default_factory=lambda: ["auto"])
    knn_every_epochs: int = 0
    knn_split: str = "test"
    knn_neighbors: int = 20
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_strategy: Literal["end", "every_save", "checkpoint"] = "end"
    eval_resize_ratio: float = 256 / 224

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            self._require(
                value is not None or entry.default is None, entry.name, "must not be null"
            )
            self._require(value != "", entry.name, "must not be empty")
            if isinstance(value, float):
                self._require(math.isfinite(value), entry.name, "must be a finite number")
            if isinstance(value, int):
                self._require(value <= MAX_INTEGER, entry.name, f"must not exceed {MAX_INTEGER}")
        positive = (
            "num_prototypes head_hidden_dim head_bottleneck_dim head_layers student_temperature "
            "teacher_temperature warmup_teacher_temperature num_epochs batch_size "
            "accumulation_steps learning_rate logging_steps checkpoints_kept knn_neighbors "
            "eval_resize_ratio shuffle_buffer"
        )
        for name in positive.split():
            self._require(getattr(self, name) > 0, name, "must be greater than 0")
        not_negative = (
            "view_weight region_weight region_start_epoch warmup_teacher_temperature_epochs "
            "min_learning_rate warmup_epochs weight_decay weight_decay_end clip_gradient "
            "freeze_last_layer_epochs num_workers checkpointed_blocks checkpoint_steps "
            "knn_every_epochs seed"
        )
        for name in not_negative.split():
            self._require(getattr(self, name) >= 0, name, "must be 0 or greater")
        for name in (
            "center_momentum",
            "teacher_momentum",
            "teacher_momentum_end",
            "max_broken_fraction",
        ):
            self._require(0 <= getattr(self, name) <= 1, name, "must lie between 0 and 1")
        self._require(
            self.max_steps is None or self.max_steps > 0, "max_steps", "must be greater than 0"
        )
        self._require(
            self.view_weight + self.region_weight > 0,
            "view_weight",
            "and region_weight must not both be 0",
        )
        self._require(
            self.region_start_epoch == 0 or self.view_weight > 0,
            "region_start_epoch",
            "needs a view loss for the epochs before it: give view_weight a value above 0",
        )
        self._require(
            self.region_weight == 0 or self.region_start_epoch < self.num_epochs,
            "region_start_epoch",
            f"must be less than num_epochs ({self.num_epochs}), or region_weight 0",
        )
        self._require(
            self.warmup_epochs <= self.num_epochs,
            "warmup_epochs",
            f"must not exceed num_epochs ({self.num_epochs})",
        )
        self._require(
            not (self.streaming and self.knn_every_epochs),
            "knn_every_epochs",
            "must be 0 with streaming: true, as the online k-NN reads images by index",
        )
        self._require(
            any(view.teacher for view in self.views),
            "views",
            "need at least one with teacher: true",
        )
        self._require(
            sum(view.count for view in self.views) > 1,
            "views",
            "need at least two crops of an image to compare",
        )
        self._require(
            not self.push_to_hub or self.hub_model_id is not None,
            "hub_model_id",
            "must name the model to publish",
        )
        if self.hub_model_id is not None:
            try:
                check_repo_id(self.hub_model_id)
            except ValueError as error:
                raise ValueError(f"hub_model_id: {error}") from error

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"{name} {rule}; it is {getattr(self, name)!r}")


def argument_parser() -> ArgumentParser:
    """Build the parser of `esvit pretrain RECIPE.yaml [--field value ...]`."""
    parser = ArgumentParser(
        prog="esvit pretrain",
        usage="esvit pretrain [RECIPE.yaml] [--field value ...]",
        description="Pretrain a vision backbone with EsViT's view loss and region loss.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", action="config", help="YAML file with any of the fields below")
    parser.add_class_arguments(PretrainingArguments)
    return parser


def parse_arguments(command_line: Sequence[str]) -> PretrainingArguments:
    """Read a recipe and the fields that override it.

    Args:
        command_line: `[RECIPE.yaml] [--field value ...]`.

    Returns:
        The checked arguments.

    Raises:
        ValueError: for an unknown field, a value of the wrong type or out of range, or a missing
            recipe.
    """
    words = list(command_line)
    if words and not words[0].startswith("-"):
        if not Path(words[0]).is_file():
            raise ValueError(f"recipe {words[0]!r} is not a file: give the path of a YAML recipe")
        words = ["--recipe", *words]
    parser = argument_parser()
    try:
        namespace = parser.instantiate(parser.parse_args(words))
    except OverflowError as error:
        raise ValueError(f"a number in the recipe is too large ({error})") from error
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    del namespace["recipe"]
    if words[:1] == ["--recipe"]:
        # The parser overlooks an unknown field whose value is an empty mapping.
        names = {entry.name for entry in fields(PretrainingArguments)}
        for name in yaml.safe_load(Path(words[1]).read_text()) or {}:
            if str(name).partition(".")[0] not in names:
                raise ValueError(
                    f"recipe {words[1]!r} has a field {name!r}, which does not exist: see --help"
                )
    return PretrainingArguments(**namespace.as_dict())
