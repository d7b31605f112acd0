"""The verb `evaluate`: every protocol on shared features, and one report."""

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from esvit_hf.common.accelerator_state import own_accelerator_state, start_accelerator
from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.files import public_name
from esvit_hf.common.limits import check_least
from esvit_hf.common.options import Compute, DataSource
from esvit_hf.evaluation.command_words import flag, word
from esvit_hf.evaluation.report import Report, check_folder
from esvit_hf.evaluation.task import EvaluationData, Task, TaskResult, make_tasks

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel

    from esvit_hf.backbones.adapter import RegionBackbone

__all__ = ["evaluate"]

# How the work is done, not what is measured.
_PRIVATE = frozenset({"features_folder", "batch_size", "num_workers"})


@flat_arguments
@own_accelerator_state()
def evaluate(
    model: "str | Path | PreTrainedModel | RegionBackbone",
    dataset: "str | Path | Dataset | DatasetDict",
    *,
    tasks: str | Sequence[str] = "knn,linear,logistic,few_shot",
    report: str | Path | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    test_fraction: float | None = None,
    compare_random: bool = False,
    seed: int = 0,
    features_folder: str | Path | None = None,
    processor: str | Path | Callable[..., Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_image_pixels: int = DataSource.max_image_pixels,
    mask_column: str = "mask",
    batch_size: int = Compute.batch_size,
    num_workers: int = Compute.num_workers,
    mixed_precision: Literal["no", "bf16", "fp16"] = Compute.mixed_precision,
    **options: Any,
) -> dict[str, Any] | None:
    """Evaluate a vision model on labeled images with several protocols.

    Features are computed once, kept on disk and shared by all tasks; a second call reuses them.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads, or a loaded network,
            which is given back as it was.
        dataset: Hub name, folder of parquet files or images, a parquet file, or rows in memory; a
            single `Dataset` is the split "train".
        tasks: what to measure, separated by commas: knn, linear, logistic, few_shot,
            correspondence, attention, dense, or a task that was registered.
        report: folder for report.json, report.md, measurements.json, model_card_block.md and
            figures; files of an earlier report are replaced. Nothing is written if not given.
        train_split: labeled images to learn from, for example train or train[:10%].
        test_split: images to test on; the split test, else validation, else a fifth of every
            class of train_split if neither this nor test_fraction is given.
        test_fraction: share of every class of train_split to test on instead of a split.
        compare_random: measure a network of the same architecture with random weights as well,
            which takes as long again.
        seed: of all that is random.
        features_folder: where features are kept; ~/.cache/esvit_hf/features if not given. Those of
            a loaded network are not kept.
        processor: Hub name or folder whose image processor prepares the images, or an image
            processor; the model's own if not given, which a loaded network does not have.
        mask_column: column with the masks, for tasks that need them: encoded images or arrays with
            the class of each pixel.
        options: by a task's name the task, or a dictionary of its options such as
            `knn={"k": [20]}`.

    Returns:
        The content of report.json: what was measured on, and the numbers of each task; None on
        processes but the first.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """
    given = dict(locals())
    check_least(
        batch_size=(batch_size, 1),
        num_workers=(num_workers, 0),
        max_image_pixels=(max_image_pixels, 1),
    )
    names = [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    chosen = make_tasks([name for name in names if name], options)

    # Imported late: the help of the command line comes from this module, without torch.

    from esvit_hf.evaluation.masks import load_masks
    from esvit_hf.evaluation.report_figures import report_figures
    from esvit_hf.evaluation.running import (
        describe,
        open_network,
        overlap_notes,
        random_network,
        run_tasks,
    )
    from esvit_hf.evaluation.splits import IN_MEMORY_DATA, load_splits
    from esvit_hf.features.store import FeatureStore, default_features_folder

    accelerator = start_accelerator(mixed_precision)
    with open_network(model, revision) as network:
        images = str(dataset) if isinstance(dataset, str | Path) else dataset
        needs = [task.needs() for task in chosen]
        columns: dict[str, Any] = {
            "dataset": images,
            "train_split": train_split,
            "test_split": test_split,
            "test_fraction": test_fraction,
            "seed": seed,
            "config_name": config_name,
            "image_column": image_column,
            "label_column": label_column,
            "max_image_pixels": max_image_pixels,
        }
        splits = load_splits(**columns, labels=any(need.labels for need in needs))
        masks = (
            load_masks(mask_column, **columns)
            if any(need.masks for need in needs)
            else (None, None)
        )
        store = FeatureStore(
            Path(features_folder or default_features_folder()),
            network,
            processor=str(processor) if isinstance(processor, Path) else processor,
            revision=revision,
            trust_remote_code=trust_remote_code,
            batch_size=batch_size,
            num_workers=num_workers,
            accelerator=accelerator,
        )
        chosen = [task.for_network(store) for task in chosen]
        given["tasks"] = ",".join(task.name for task in chosen)
        given["model"] = network if isinstance(network, str) else word(network.model)
        given["dataset"] = images if isinstance(images, str) else IN_MEMORY_DATA
        data = EvaluationData(
            model=given["model"],
            dataset=given["dataset"],
            train_split=train_split,
            test_split=splits.test_name,
            command=_command(given, chosen),
            splits=splits,
            store=store,
            seed=seed,
            batch_size=batch_size,
            num_workers=num_workers,
            train_masks=masks[0],
            test_masks=masks[1],
        )
        for task in chosen:
            task.check(data)
        if report is not None:
            check_folder(Path(report))
        results, measured = run_tasks(chosen, data)
        random_results: dict[str, TaskResult] = {}
        if compare_random:
            without_files = [task.without_files() for task in chosen]
            random_results, _ = run_tasks(without_files, random_network(data))
    if not accelerator.is_main_process:
        return None
    written = Report(
        facts=describe(data),
        dataset=_last_part(data.dataset),
        test_split=data.test_split,
        command=shlex.join(data.command),
        notes=overlap_notes(splits),
        results=results,
        random_results=random_results,
        figures=report_figures(measured, results),
    )
    if report is not None:
        written.write(Path(report))
    return written.as_json()


def _last_part(dataset: str) -> str:
    return Path(public_name(dataset)).name if Path(dataset).exists() else dataset


def _command(given: Mapping[str, Any], tasks: Sequence[Task]) -> list[str]:
    """Words of the command line that repeats a call, without what is at its default."""
    words = ["esvit", "evaluate"]
    for name, parameter in inspect.signature(evaluate).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            words.append(word(given[name]))
        elif name in given and name not in _PRIVATE | {"options"}:
            words += flag(name, given[name], parameter.default)
    for task in tasks:
        for option in dataclasses.fields(task):
            value = getattr(task, option.name)
            words += flag(f"{task.name}.{option.name}", value, option.default)
    return words
