"""The recipe of a pretraining run: nested settings, each with its default, range and help."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from esvit_hf.common.files import expand_home
from esvit_hf.common.limits import MAX_IMAGE_PIXELS
from esvit_hf.common.settings import SettingsError, check_settings, setting
from esvit_hf.common.yaml_text import write_yaml
from esvit_hf.data.views import ViewSpec, dino_views
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings
from esvit_hf.pretraining.schedules import largest_weight, loss_weights

AUTOMATIC = (
    "run.mixed_precision",
    "model.name",
    "data.views",
    "heads.num_prototypes",
    "heads.hidden_dim",
    "heads.bottleneck_dim",
    "optimizer.learning_rate",
    "schedule.num_epochs",
    "optimizer.warmup_epochs",
    "schedule.warmup_teacher_temperature_epochs",
    "data.num_workers",
    "run.batch_size",
    "run.compile",
    "schedule.teacher_momentum",
)
"""Fields that may be `auto`, by the names of their sections."""


def _objective_settings() -> dict[str, type[ObjectiveSettings]]:
    # The objectives need PyTorch, which the help does without.
    from esvit_hf.pretraining.objectives.registry import objective_settings

    return objective_settings()


def _default_objectives() -> dict[str, ObjectiveSettings]:
    from esvit_hf.pretraining.objectives.registry import default_objectives

    return default_objectives()


def _expand_home(settings: Any, field: str) -> None:
    # Of anything else than a path `check_settings` says what is wrong.
    if isinstance(place := getattr(settings, field), (str, Path)):
        object.__setattr__(settings, field, expand_home(place))


@dataclass(frozen=True)
class DataSettings:
    """Images, and the views that are cut from them."""

    dataset: str = setting(
        "Hub name, folder of parquet files, or folder of images with or without class folders; in "
        "a recipe's file a ./ in front means the folder of that file or of the shipped recipes"
    )
    config_name: str | None = setting("configuration of a Hub data set", None)
    train_split: str = setting("split to pretrain on; its labels are never trained on", "train")
    image_column: str | None = setting(
        "column with the images; found by its type if not given", None
    )
    label_column: str | None = setting(
        "column with the labels, for the online k-NN alone; found by its type if not given", None
    )
    streaming: bool = setting(
        "read parquet or tar shards, on disk or remote, while they are needed; dataset may then "
        "also be an address, a pattern, or an index that `esvit index` wrote",
        False,
    )
    shuffle_buffer: int = setting(
        "with streaming, encoded images that each worker holds and shuffles together",
        1024,
        above=0,
    )
    max_broken_fraction: float = setting(
        "share of undecodable images above which the run stops", 0.01, at_least=0, at_most=1
    )
    max_image_pixels: int = setting(
        "images with more pixels count as undecodable", MAX_IMAGE_PIXELS, above=0
    )
    reduce_jpegs: bool = setting(
        "decode JPEG files at a half, a quarter or an eighth of their size where every crop is "
        "still to be made smaller than that",
        True,
    )
    value_range: tuple[float, float] | None = setting(
        "smallest and largest value of a pixel, for images that 8 bits do not hold; without it, "
        "8 and 16 bits have the range of their type and floating-point numbers are in 0..1",
        None,
    )
    image_mean: list[float] | None = setting(
        "mean of each channel, in units of the range of values; ImageNet's if not given, which is "
        "for three channels",
        None,
    )
    image_std: list[float] | None = setting(
        "standard deviation of each channel, in the same units", None, above=0
    )
    views: list[ViewSpec] = setting(
        "the crops of an image; those with teacher: true are seen by the teacher too",
        factory=dino_views,
    )
    eval_resize_ratio: float = setting(
        "shorter side of an evaluation image over its center crop, which is as large as the "
        "largest view",
        256 / 224,
        above=0,
    )
    num_workers: int = setting("data-loading processes of each training process", 8, at_least=0)

    def __post_init__(self) -> None:
        _expand_home(self, "dataset")

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return 3 if self.image_mean is None else len(self.image_mean)


@dataclass(frozen=True)
class ModelSettings:
    """The backbone."""

    name: str = setting(
        "model type to build from scratch (esvit_swin, vit, ...), or folder or Hub name to start "
        "from",
        "esvit_swin",
    )
    config: dict[str, Any] = setting(
        "fields of the model's configuration, and attn_implementation (eager is fast in bf16 on "
        "CPUs)",
        factory=dict,
    )
    revision: str | None = setting("branch, tag or commit of a Hub model", None)
    trust_remote_code: bool = setting("run code that a Hub model's repository ships", False)
    inflate: bool = setting(
        "start from weights for images of another number of channels than config.num_channels: "
        "those of the first layer are repeated over the channels",
        False,
    )

    def __post_init__(self) -> None:
        _expand_home(self, "name")


@dataclass(frozen=True)
class HeadSettings:
    """The projection heads; every objective has one of the student and one of the teacher."""

    num_prototypes: int = setting("prototypes K of each head", 65536, above=0)
    hidden_dim: int = setting("width of the hidden layers", 2048, above=0)
    bottleneck_dim: int = setting("width of the bottleneck", 256, above=0)
    num_layers: int = setting("linear layers before the prototypes", 3, above=0)
    batch_norm: bool = setting("batch norm between the layers", False)
    train_prototype_gain: bool = setting(
        "train the length of the student's prototypes (the reference's norm_last_layer=False)",
        True,
    )
    student_temperature: float = setting("temperature of the student's softmax", 0.1, above=0)
    center_momentum: float = setting(
        "share of the old center that is kept at each step", 0.9, at_least=0, at_most=1
    )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its learning rate, weight decay and clipping."""

    learning_rate: float = setting(
        "peak learning rate for a total batch of 256; scaled linearly with the total batch",
        5e-4,
        above=0,
    )
    min_learning_rate: float = setting("learning rate at the end of the cosine", 1e-6, at_least=0)
    warmup_epochs: float = setting("epochs of the linear learning-rate warm-up", 10.0, at_least=0)
    weight_decay: float = setting("weight decay at the start", 0.04, at_least=0)
    weight_decay_end: float = setting(
        "weight decay at the end (cosine in between)", 0.4, at_least=0
    )
    clip_gradient: float = setting("largest gradient norm; 0 turns clipping off", 3.0, at_least=0)
    clip_mode: Literal["parameter", "global"] = setting(
        "clip each parameter's gradient on its own, as the reference does, or all of them together",
        "parameter",
    )


@dataclass(frozen=True)
class ScheduleSettings:
    """How long the run is, and what changes on the way."""

    num_epochs: int = setting("passes over the data", 300, above=0)
    max_steps: int | None = setting(
        "stop after this many optimizer steps; schedules still span num_epochs", None, above=0
    )
    teacher_temperature: float = setting(
        "temperature of the teacher's softmax after its warm-up", 0.07, above=0
    )
    warmup_teacher_temperature: float = setting(
        "temperature of the teacher's softmax at the start", 0.04, above=0
    )
    warmup_teacher_temperature_epochs: int = setting(
        "epochs of the linear temperature warm-up", 30, at_least=0
    )
    teacher_momentum: float = setting(
        "share of the old teacher that is kept at each step, at the start",
        0.996,
        at_least=0,
        at_most=1,
    )
    teacher_momentum_end: float = setting(
        "the same at the end (cosine in between)", 1.0, at_least=0, at_most=1
    )
    freeze_last_layer_epochs: int = setting(
        "epochs during which the prototypes stay as they are", 1, at_least=0
    )


@dataclass(frozen=True)
class RunSettings:
    """Where and how it is computed, logged and saved."""

    output_dir: Path = setting("folder of the run", Path("outputs/pretraining"))
    batch_size: int = setting("images of one process in one forward pass", 64, above=0)
    accumulation_steps: int = setting("forward passes of an optimizer step", 1, above=0)
    mixed_precision: Literal["no", "fp16", "bf16"] = setting(
        "autocast dtype; losses, centers and the teacher's average stay float32", "no"
    )
    compile: bool = setting(
        "compile the blocks of student and teacher with torch.compile: the first step takes about "
        "a minute (needs a C++ compiler on a CPU)",
        False,
    )
    checkpointed_blocks: int = setting(
        "blocks of the student, from the first on, that the backward pass computes again instead "
        "of keeping what they computed: the first blocks of a multi-stage network hold the most "
        "memory",
        0,
        at_least=0,
    )
    seed: int = setting("seed of weights, order and crops", 0, at_least=0)
    resume: bool = setting(
        "continue from the newest complete checkpoint in the output folder", False
    )
    overwrite: bool = setting(
        "start anew in an output folder that holds a run, whose checkpoints are removed", False
    )
    logging_steps: int = setting("optimizer steps between two lines of metrics.jsonl", 10, above=0)
    checkpoint_steps: int = setting(
        "optimizer steps between two checkpoints; 0 keeps only the one at the end",
        1000,
        at_least=0,
    )
    checkpoints_kept: int = setting("number of checkpoints kept", 2, above=0)
    trackers: list[str] = setting(
        "Accelerate trackers (tensorboard, wandb, mlflow, ...), named after the output folder; "
        "auto is TensorBoard if it is installed",
        factory=lambda: ["auto"],
    )
    knn_every_epochs: int = setting(
        "epochs between two online k-NN evaluations of the teacher; 0 turns them off",
        0,
        at_least=0,
    )
    knn_dataset: str | None = setting(
        "labeled data set of the online k-NN; that of the training if not given", None
    )
    knn_train_split: str = setting(
        "split of knn_dataset whose labels classify; without knn_dataset those of the training "
        "images do",
        "train",
    )
    knn_split: str = setting("split whose images are classified by these labels", "test")
    knn_neighbors: int = setting("number of neighbors of the online k-NN", 20, above=0)

    def __post_init__(self) -> None:
        _expand_home(self, "output_dir")
        _expand_home(self, "knn_dataset")

    @property
    def knn_learns_from_training(self) -> bool:
        """Whether the images of the training, with their labels, classify in the online k-NN."""
        return self.knn_every_epochs > 0 and self.knn_dataset is None


@dataclass(frozen=True)
class HubSettings:
    """Publishing on the Hub."""

    push: bool = setting("publish the result, with the login of huggingface_hub or HF_TOKEN", False)
    model_id: str | None = setting(
        "NAME/MODEL to publish; resume looks there for a resume point if the output folder has "
        "none",
        None,
    )
    private: bool = setting("make the repository private", False)
    license: str | None = setting(
        "license of the weights as the Hub spells it, such as apache-2.0 or cc-by-nc-4.0; without "
        "one the card says that none is stated",
        None,
    )
    strategy: Literal["end", "every_save", "checkpoint"] = setting(
        "publish at the end, at every_save of a checkpoint, or at every save together with the "
        "resume point (checkpoint); publishing at saves runs beside the training",
        "end",
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a pretraining run does.

    Args:
        data: images and views.
        model: the backbone.
        heads: the projection heads.
        objectives: settings of each objective of the run, by its name.
        optimizer: learning rate, weight decay and clipping.
        schedule: length of the run, and what changes on the way.
        run: where and how it is computed, logged and saved.
        hub: publishing.

    Raises:
        SettingsError: a value has the wrong type or is out of range, or values do not fit together;
            all such problems together.
    """

    data: DataSettings
    model: ModelSettings = ModelSettings()
    heads: HeadSettings = HeadSettings()
    objectives: dict[str, ObjectiveSettings] = setting(
        "settings of each objective of the run by its NAME (view, region); one that is left out or "
        "null is not part of it; matching is a section of region alone",
        factory=_default_objectives,
        members=_objective_settings,
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    run: RunSettings = RunSettings()
    hub: HubSettings = HubSettings()

    def __post_init__(self) -> None:
        check_settings(self)
        problems = list(self._contradictions())
        if problems:
            raise SettingsError(problems)

    def heads_of(self, objective: str) -> HeadSettings:
        """Return the settings of the heads with those that an objective has of its own."""
        own = self.objectives[objective]
        names = ("num_prototypes", "student_temperature", "center_momentum")
        given = {name: getattr(own, name) for name in names if getattr(own, name) is not None}
        return replace(self.heads, **given)

    def _contradictions(self) -> Iterator[str]:
        """Say which values do not fit together."""
        yield from self._idle_objectives()
        epochs = self.schedule.num_epochs
        if self.optimizer.warmup_epochs > epochs:
            yield (
                f"optimizer.warmup_epochs must not exceed schedule.num_epochs ({epochs}); it is "
                f"{self.optimizer.warmup_epochs}"
            )
        if self.data.streaming and self.run.knn_learns_from_training:
            yield (
                f"run.knn_every_epochs must be 0 with data.streaming: true, as the online k-NN "
                f"reads images by index, or run.knn_dataset must name other data; it is "
                f"{self.run.knn_every_epochs}"
            )
        if self.model.inflate and "num_channels" not in self.model.config:
            yield "model.inflate needs model.config.num_channels, the number of channels"
        yield from self._wrong_channels()
        if not any(view.teacher for view in self.data.views):
            yield "data.views need at least one with teacher: true"
        if sum(view.count for view in self.data.views) < 2:
            yield "data.views need at least two crops of an image to compare"
        if self.run.resume and self.run.overwrite:
            yield "run.overwrite must be false with run.resume: true, which goes on with the run"
        if self.hub.push and self.hub.model_id is None:
            yield "hub.model_id must name the model to publish"
        if self.hub.model_id is not None:
            # What else is imported here takes seconds.
            from esvit_hf.hub.push import check_repo_id

            try:
                check_repo_id(self.hub.model_id)
            except ValueError as error:
                yield f"hub.model_id: {error}"

    def _wrong_channels(self) -> Iterator[str]:
        """Say what does not fit in the settings of the pixels."""
        mean, std, value_range = self.data.image_mean, self.data.image_std, self.data.value_range
        if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)):
            yield (
                f"data.image_mean and data.image_std must have one number for each channel; they "
                f"are {mean} and {std}"
            )
        if mean == []:
            yield "data.image_mean must not be empty"
        if value_range is not None and value_range[0] >= value_range[1]:
            yield f"data.value_range must have the smallest value first; it is {value_range}"

    def _idle_objectives(self) -> Iterator[str]:
        """Say which objectives never take part, and when none does."""
        epochs, changes = self.schedule.num_epochs, {0}
        for name, chosen in self.objectives.items():
            if largest_weight(chosen) == 0:
                yield (
                    f"objectives.{name}.weight is 0 and stays so: give it a weight_end above 0, or "
                    f"leave the objective out"
                )
            for field in ("start_epoch", "weight_hold_epochs"):
                epoch = getattr(chosen, field)
                changes.add(epoch)
                if epoch >= epochs:
                    yield (
                        f"objectives.{name}.{field} must be less than schedule.num_epochs "
                        f"({epochs}); it is {epoch}"
                    )
        if not self.objectives:
            yield f"objectives must name at least one of {', '.join(_objective_settings())}"
            return
        weights = loss_weights(self.objectives, epochs, steps_per_epoch=1)
        # Weights become 0, or cease to be, at these epochs alone.
        idle = [epoch for epoch in sorted(changes) if epoch < epochs and not weights(epoch)]
        if idle:
            yield (
                f"objectives need one that takes part in every epoch, but none does in epoch "
                f"{idle[0]}: lower a start_epoch, or give one a weight above 0"
            )


def recipe_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML that reads back equal."""
    values = asdict(recipe)
    values["run"]["output_dir"] = str(recipe.run.output_dir)
    return write_yaml(values)
