"""The job `esvit evaluate`: every protocol on shared features, and one report."""

import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from esvit_hf.evaluation.linear_probe import LEARNING_RATES
from esvit_hf.evaluation.region_tasks import check_regions, run_attention, run_correspondence
from esvit_hf.evaluation.report import Report, command_of, public_name
from esvit_hf.evaluation.splits import (
    LabeledSplits,
    check_images_per_class,
    load_splits,
    overlapping_images,
)
from esvit_hf.evaluation.tasks import (
    FrozenData,
    TaskResult,
    run_few_shot,
    run_knn,
    run_linear_probe,
    run_logistic,
)
from esvit_hf.features.extraction import Features
from esvit_hf.features.search import check_neighbors
from esvit_hf.features.store import FeatureStore, default_features_folder
from esvit_hf.figures.report import draw_confusion

__all__ = ["TASKS", "evaluate"]

TASKS = ("knn", "linear", "logistic", "few_shot", "correspondence", "attention")
_ON_FEATURES = frozenset({"knn", "linear", "logistic", "few_shot"})
_OVERLAPS_SHOWN = 3
_SOFTWARE = ("esvit-hf", "torch", "transformers", "datasets")
# How the work is done, not what is measured.
_PRIVATE = frozenset({"features_folder", "batch_size", "num_workers"})


def evaluate(
    model: str,
    dataset: str,
    *,
    report: Path,
    tasks: str = "knn,linear,logistic,few_shot",
    train_split: str = "train",
    test_split: str = "test",
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    k: int | list[int] = [10, 20, 100, 200],  # noqa: B006 - shown by --help, never changed
    temperature: float | list[float] = 0.07,
    blocks: int | list[int] = [1, 4],  # noqa: B006 - shown by --help, never changed
    learning_rates: float | list[float] = list(LEARNING_RATES),  # noqa: B006 - shown by --help, never changed
    epochs: int = 100,
    shots: int | list[int] = [1, 5, 10],  # noqa: B006 - shown by --help, never changed
    draws: int = 5,
    seed: int = 0,
    features_folder: Path | None = None,
    processor: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    mixed_precision: Literal["no", "bf16", "fp16"] = "no",
) -> dict[str, Any] | None:
    """Evaluate a vision model on labeled images with several protocols, and write a report with
    figures.

    Features are computed once, kept on disk and shared by all tasks; a second call reuses them. The
    report's folder gets report.json, report.md, measurements.json, model_card_block.md and figures.
    The last line of the output is the content of report.json.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        report: folder for the report; files of an earlier one are replaced.
        tasks: what to measure, separated by commas: knn, linear, logistic, few_shot,
            correspondence, attention.
        train_split: labeled images to learn from, for example train or train[:10%].
        test_split: images to test on.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels, integers or strings; found by its type if not given.
        k: number of neighbors, or several as '[10,20]'.
        temperature: temperature T of the neighbors' votes, or several as '[0.05,0.07]'.
        blocks: numbers of last blocks that the linear probe chooses from.
        learning_rates: rates for a batch of 256 that the linear probe chooses from.
        epochs: passes of the linear probe over the features.
        shots: images a class of the few-shot task.
        draws: random choices of those images.
        seed: of all that is random.
        features_folder: where features are kept; ~/.cache/esvit_hf/features if not given.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
        mixed_precision: number format of the features' computation.

    Returns:
        The content of report.json; None on processes but the first.

    Raises:
        ValueError: the model, its image processor, the data or a setting does not work; the message
            names the remedy.
    """
    command = command_of("evaluate", evaluate, locals(), private=_PRIVATE)
    chosen = _read_tasks(tasks)
    counts, temperatures = _as_list("k", k), _as_list("temperature", temperature)
    block_counts, rates = _as_list("blocks", blocks), _as_list("learning_rates", learning_rates)
    shot_counts = _as_list("shots", shots)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    splits = load_splits(
        dataset,
        train_split=train_split,
        test_split=test_split,
        config_name=config_name,
        image_column=image_column,
        label_column=label_column,
    )
    if "knn" in chosen:
        check_neighbors(max(counts), len(splits.train))
    if "few_shot" in chosen:
        check_images_per_class(splits.train_labels, max(shot_counts), splits.class_names)
    _prepare_folder(report)
    store = FeatureStore(
        features_folder or default_features_folder(),
        model,
        processor=processor,
        revision=revision,
        trust_remote_code=trust_remote_code,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
    )
    check_regions(store, splits.test, chosen)
    notes = _overlap_notes(splits) if accelerator.is_main_process else []

    extracted: list[Features] = []
    if _ON_FEATURES & set(chosen):
        most = max(block_counts) if "linear" in chosen else 1
        extracted = [store.features(source, blocks=most) for source in (splits.train, splits.test)]
    results: dict[str, TaskResult] = {}
    # What runs the network is every process's work, the rest the first one's.
    if "correspondence" in chosen:
        results["correspondence"] = run_correspondence(store, splits.test, seed, num_workers)
    if "attention" in chosen:
        results["attention"] = run_attention(store, splits.test, num_workers)
    if not accelerator.is_main_process:
        return None
    if extracted:
        data = FrozenData(splits, extracted[0], extracted[1], accelerator.device, seed)
        if "knn" in chosen:
            results["knn"] = run_knn(data, k=counts, temperature=temperatures)
        if "linear" in chosen:
            results["linear"] = run_linear_probe(
                data, blocks=block_counts, learning_rates=rates, epochs=epochs
            )
        if "logistic" in chosen:
            results["logistic"] = run_logistic(data)
        if "few_shot" in chosen:
            results["few_shot"] = run_few_shot(data, shots=shot_counts, draws=draws)
    written = Report(
        facts=_facts(store, dataset, splits, train_split, test_split, mixed_precision),
        dataset=Path(public_name(dataset)).name if Path(dataset).exists() else dataset,
        test_split=test_split,
        command=command,
        notes=notes,
        results={task: results[task] for task in TASKS if task in results},
        pictures=_confusion(results, splits),
    )
    written.write(report)
    return written.as_json()


def _as_list(name: str, value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values or min(values) <= 0:
        raise ValueError(f"--{name} is {value}: give one value above 0 or more")
    return values


def _read_tasks(tasks: str) -> list[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(
            f"--tasks is {tasks!r}: choose from {','.join(TASKS)}, separated by commas"
        )
    return names


def _prepare_folder(report: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the report's figures need matplotlib: pip install 'esvit-hf[plots]'")
    try:
        report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the report cannot be written to {report} ({error}): name another folder"
        ) from error


def _overlap_notes(splits: LabeledSplits) -> list[str]:
    overlap = overlapping_images(splits.train, splits.test)
    if not overlap:
        return []
    shown = ", ".join(map(str, overlap[:_OVERLAPS_SHOWN])) + (
        ", ..." if len(overlap) > _OVERLAPS_SHOWN else ""
    )
    note = (
        f"{len(overlap)} of {len(splits.test)} test images are training images too (image "
        f"{shown}), so the accuracies are too high: remove them, or choose splits that do not "
        f"overlap"
    )
    warnings.warn(note, stacklevel=3)
    return [note]


def _facts(
    store: FeatureStore,
    dataset: str,
    splits: LabeledSplits,
    train_split: str,
    test_split: str,
    mixed_precision: str,
) -> dict[str, Any]:
    device = store.accelerator.device
    return {
        "model": public_name(store.model),
        "model_revision": store.model_revision,
        "dataset": public_name(dataset),
        "train_split": train_split,
        "test_split": test_split,
        "train_images": len(splits.train),
        "test_images": len(splits.test),
        "classes": len(splits.class_names),
        "mixed_precision": mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
    }


def _confusion(results: dict[str, TaskResult], splits: LabeledSplits) -> dict[str, Any]:
    """The confusion matrix of the strongest classifier that was asked for."""
    for task in ("linear", "logistic", "knn"):
        predicted = results[task].predicted if task in results else None
        if predicted is not None:
            title = f"Confusion of the {results[task].title}"
            return {
                "confusion_matrix": draw_confusion(
                    predicted, splits.test_labels, splits.class_names, title
                )
            }
    return {}
