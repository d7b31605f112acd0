"""What every evaluation does around its tasks: open the network, check, compute features, run."""

import dataclasses
import importlib.metadata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.common.accelerator_state import device_name
from esvit_hf.common.files import public_name
from esvit_hf.common.places import check_model_place
from esvit_hf.data.decoding import BrokenImage
from esvit_hf.evaluation.splits import LabeledSplits, overlapping_images
from esvit_hf.evaluation.task import EvaluationData, Task, TaskResult
from esvit_hf.features.input_format import apply_processor
from esvit_hf.features.store import FeatureStore

__all__ = ["describe", "open_network", "overlap_notes", "random_network", "run_tasks"]

_OVERLAPS_SHOWN = 3
_SOFTWARE = ("esvit-hf", "torch", "transformers", "datasets")


@contextmanager
def open_network(
    model: str | Path | PreTrainedModel | RegionBackbone, revision: str | None
) -> Iterator[Any]:
    """Take a network by name or as it is.

    Args:
        model: Hub name, folder, or loaded network.
        revision: branch, tag or commit on the Hub.

    Yields:
        The name as it is given, or the loaded network as a `RegionBackbone`. Afterwards a loaded
        network is on its device again, in its mode, and trains what it trained before.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(model, str | Path):
        check_model_place(str(model), revision=revision)
        yield str(model)
        return
    if not isinstance(model, PreTrainedModel | RegionBackbone):
        raise ValueError(
            f"model is of type {type(model).__name__}: give a name, a folder, a network of "
            f"transformers, or a RegionBackbone"
        )
    module: torch.nn.Module = model
    was_training, device = module.training, next(module.parameters()).device
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        yield model if isinstance(model, RegionBackbone) else RegionBackbone(model)
    finally:
        module.to(device).train(was_training)
        for parameter in trained:
            parameter.requires_grad_(True)


def run_tasks(
    tasks: Sequence[Task], data: EvaluationData
) -> tuple[dict[str, TaskResult], EvaluationData]:
    """Run tasks on features that are computed once; every process must call this.

    Args:
        tasks: in the order of the report.
        data: without features.

    Returns:
        Results by the tasks' names, in their order, complete on the first process alone; and the
        data with features.

    Raises:
        ValueError: the network cannot do a task; the message names the remedy.
    """
    _check_network(tasks, data)
    blocks = max(task.needs().blocks for task in tasks)
    if blocks:
        splits = data.splits
        train, test = (
            data.store.features(source, blocks=blocks) for source in (splits.train, splits.test)
        )
        data = dataclasses.replace(data, train=train, test=test)
    # What runs the network comes first: the other processes would wait for what the first does
    # alone.
    results = {task.name: task.run(data) for task in tasks if task.needs().network}
    if data.store.accelerator.is_main_process:
        results |= {task.name: task.run(data) for task in tasks if not task.needs().network}
    return {task.name: results[task.name] for task in tasks if task.name in results}, data


def random_network(data: EvaluationData) -> EvaluationData:
    """Replace the network by one of its architecture with random weights.

    Args:
        data: without features.

    Returns:
        The same images; features of the random network are not kept.
    """
    model = data.store.backbone.model
    with torch.random.fork_rng():
        torch.manual_seed(data.seed)
        other = RegionBackbone(type(model)(model.config))
    store = FeatureStore(
        data.store.folder,
        other,
        processor=data.store.processor,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        accelerator=data.store.accelerator,
    )
    return dataclasses.replace(data, store=store)


@torch.no_grad()
def _check_network(tasks: Sequence[Task], data: EvaluationData) -> None:
    """Run the network on one image, to refuse tasks that it cannot do before anything long is
    computed.
    """
    if not any(task.needs().regions or task.needs().attention for task in tasks):
        return
    store = data.store
    image = data.splits.test.read([0])[0]
    # The measurement itself names every broken image.
    if isinstance(image, BrokenImage):
        return
    pixel_values = apply_processor(store.processor, [image]).to(store.accelerator.device)
    for task in tasks:
        if task.needs().regions and store.backbone(pixel_values).grid == (1, 1):
            height, width = pixel_values.shape[-2:]
            raise ValueError(
                f"{data.model!r} turns {height} x {width} pixels into a single region, which "
                f"leaves nothing to match: name an image processor of a larger size with "
                f"--processor, or leave {task.name} out of --tasks"
            )
        if task.needs().attention:
            try:
                store.backbone.attention_maps(pixel_values)
            except ValueError as error:
                raise ValueError(f"{error}, or leave {task.name} out of --tasks") from error


def overlap_notes(splits: LabeledSplits) -> list[str]:
    """Say which test images are training images too.

    Args:
        splits: images of both.

    Returns:
        One sentence, also given as a warning; none if there is no such image.
    """
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


def describe(data: EvaluationData) -> dict[str, Any]:
    """Say what was measured on what, without folders of a machine.

    Args:
        data: of the evaluation.

    Returns:
        Model, images, number format, device and versions, as JSON knows them.
    """
    device = data.store.accelerator.device
    classes = len(data.splits.class_names)
    return {
        "model": public_name(data.model),
        "model_revision": data.store.model_revision,
        "dataset": public_name(data.dataset),
        "train_split": data.train_split,
        "test_split": data.test_split,
        "train_images": len(data.splits.train),
        "test_images": len(data.splits.test),
        **({"classes": classes} if classes else {}),
        "mixed_precision": data.store.accelerator.mixed_precision,
        "device": device_name(device),
        "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
    }
