"""The contract of an evaluation task and the registry: what a protocol needs, and what it finds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from esvit_hf.common.command_line import check_options

if TYPE_CHECKING:
    from torch import Tensor

    from esvit_hf.evaluation.masks import MaskSource
    from esvit_hf.evaluation.splits import LabeledSplits
    from esvit_hf.features.extraction import Features
    from esvit_hf.features.store import FeatureStore
    from esvit_hf.figures.look import Picture

__all__ = [
    "TASKS",
    "EvaluationData",
    "Needs",
    "Score",
    "Task",
    "TaskResult",
    "check_above_zero",
    "make_tasks",
    "percent",
    "register_task",
]


@dataclass(frozen=True)
class Needs:
    """What a task takes from network and data; it is checked before anything long is computed.

    Attributes:
        blocks: pooled features of at least that many last blocks, for every training and test
            image; 0 for none. They are computed once for all tasks.
        network: the task runs the network itself, which every process does with a share of the
            images. A task on features alone runs on the first process.
        regions: the network gives several regions an image.
        attention: the network gives attention maps.
        labels: a class for every image.
        masks: a mask for every image, with the class of each pixel.
    """

    blocks: int = 0
    network: bool = False
    regions: bool = False
    attention: bool = False
    labels: bool = True
    masks: bool = False


@dataclass(frozen=True)
class EvaluationData:
    """What a task works on.

    Attributes:
        model: name of the network.
        dataset: name of the images.
        train_split: name of the images to learn from.
        test_split: name of the images to test on.
        command: words of the command line that repeats the evaluation.
        splits: images and labels.
        store: network, image processor and processes.
        seed: of all that is random.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
        train: features of the training images; None before they are computed, and if no task needs
            any.
        test: features of the test images, of as many blocks.
        train_masks: masks of the training images; None if no task needs any.
        test_masks: masks of the test images.
    """

    model: str
    dataset: str
    train_split: str
    test_split: str
    command: Sequence[str]
    splits: "LabeledSplits"
    store: "FeatureStore"
    seed: int
    batch_size: int
    num_workers: int
    train: "Features | None" = None
    test: "Features | None" = None
    train_masks: "MaskSource | None" = None
    test_masks: "MaskSource | None" = None

    def last_blocks(self, count: int) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
        """Return the features of some last blocks, side by side, with the labels.

        Args:
            count: number of blocks, at most what the task needs; 1 is the view feature.

        Returns:
            Training features (N, D) float32 and labels (N,) int64, test features (M, D) and labels
            (M,), on the CPU.
        """
        assert self.train is not None and self.test is not None, "the task's needs say no blocks"
        train, test = self.train.last_blocks(count).values, self.test.last_blocks(count).values
        return train, self.splits.train_labels, test, self.splits.test_labels


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        metric: its name.
        value: the number; shares are in percent.
        protocol: how it was measured, in one line.
        in_answer: whether it stands in the table that a report begins with.
        chance: what guessing gives.
        images: number of images that the share is of; gives a confidence interval.
    """

    metric: str
    value: float
    protocol: str
    in_answer: bool = False
    chance: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class TaskResult:
    """What a task found.

    Attributes:
        title: name of the task, as a reader knows it.
        protocol: how it was measured, in one paragraph.
        numbers: everything that was measured, as JSON knows it. The report shows a list of
            dictionaries as a table.
        scores: the numbers that stand for the model.
        figures: by the name of their file, what plots them; called only if a report is written.
        predicted: (M,) int64 class of each test image, None for tasks that do not classify.
    """

    title: str
    protocol: str
    numbers: dict[str, Any]
    scores: list[Score]
    figures: "Mapping[str, Callable[[], Picture]]" = field(default_factory=dict)
    predicted: "Tensor | None" = None

    @property
    def answers(self) -> list[Score]:
        """The scores that a report begins with; the first one if the task chooses none."""
        return [score for score in self.scores if score.in_answer] or self.scores[:1]


@dataclass(frozen=True)
class Task(ABC):
    """One protocol: a frozen dataclass whose fields are its options.

    Every option has a type, a default, and a line under "Args" of the class's docstring, which is
    its help on the command line. A file of a task should import torch inside `run`, so that the
    help needs no torch.

    Attributes:
        name: what `--tasks`, the report and the flags of the options (`--name.option`) call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def needs(self) -> Needs:
        """Say what the task takes from the network, with these options."""

    def for_network(self, store: "FeatureStore") -> "Task":
        """Return the task without those of its default settings that the network cannot do.

        Args:
            store: features of the network.

        Raises:
            ValueError: the network cannot be loaded.
        """
        return self

    def check(self, data: EvaluationData) -> None:  # noqa: B027 - most tasks have nothing to check
        """Refuse options that do not fit the data or the network, before features are computed.

        Args:
            data: without features.

        Raises:
            ValueError: they do not fit; the message names the remedy.
        """

    def without_files(self) -> "Task":
        """Return the task such that it measures the same and writes nothing."""
        return self

    @abstractmethod
    def run(self, data: EvaluationData) -> TaskResult:
        """Measure.

        Args:
            data: with the features that the task needs.

        Returns:
            What was found. If the task runs the network, what processes but the first return is
            not used.
        """


TASKS: dict[str, type[Task]] = {}
"""All tasks by name, in the order of the report."""

AnyTask = TypeVar("AnyTask", bound=type[Task])


def register_task(task: AnyTask) -> AnyTask:
    """Make a task known to `evaluate` and its command line; serves as a decorator.

    Args:
        task: the class; one of the same name that was registered before is replaced.

    Returns:
        The class.

    Raises:
        ValueError: its name cannot be the name of an argument.
    """
    if not task.name.isidentifier():
        raise ValueError(
            f"a task is named {task.name!r}: use letters, digits and underscores, for example "
            f"few_shot"
        )
    TASKS[task.name] = task
    return task


def make_tasks(names: Sequence[str], options: Mapping[str, Any]) -> list[Task]:
    """Make tasks with their options.

    Args:
        names: of the tasks.
        options: for some of the tasks, by name: a task, or a dictionary with values of its options.

    Returns:
        The tasks, in the order of the report.

    Raises:
        ValueError: an unknown task or option, a value of another type or out of range, or options
            of a task that is not among the names.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(
            f"--tasks is {','.join(names)!r}: choose from {','.join(TASKS)}, separated by commas"
        )
    for name in options:
        if name not in TASKS:
            raise ValueError(
                f"evaluate has no argument {name!r}: correct its name; the tasks are "
                f"{', '.join(TASKS)}"
            )
        if name not in names:
            raise ValueError(
                f"options of {name} are given, but --tasks is {','.join(names)!r}: add {name}, or "
                f"leave its options out"
            )
    return [
        _make_task(task, options.get(name, {})) for name, task in TASKS.items() if name in names
    ]


def _make_task(task: type[Task], options: Any) -> Task:
    if isinstance(options, task):
        return options
    if not isinstance(options, Mapping):
        raise ValueError(
            f"{task.name} is {options!r}: give a dictionary of its options, or a {task.__name__}"
        )
    return task(**check_options(task, options, task.name))


def check_above_zero(name: str, values: Sequence[float]) -> None:
    """Check an option that takes several numbers.

    Args:
        name: of the option, with that of its task.
        values: its numbers.

    Raises:
        ValueError: there is none, or one that is not above 0.
    """
    if not values or min(values) <= 0:
        raise ValueError(f"--{name} is {list(values)}: give one value above 0 or more")


def accuracy_answer(
    metric: str, value: float, protocol: str, data: EvaluationData, *, is_first: bool = True
) -> Score:
    """Describe the accuracy of a classifier on all test images.

    Args:
        metric: its name.
        value: in percent.
        protocol: how it was measured, in one line.
        data: what it was measured on.
        is_first: whether it stands in the table that a report begins with.

    Returns:
        The score, with the accuracy of guessing.
    """
    chance = percent(1 / len(data.splits.class_names))
    return Score(metric, value, protocol, is_first, chance, len(data.splits.test))


def percent(share: float) -> float:
    """Turn a share into percent with three decimals."""
    return round(100 * share, 3)
