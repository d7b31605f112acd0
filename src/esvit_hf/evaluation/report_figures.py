"""Figures of a report that belong to no single task: classes, neighbors, errors, a map."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.task import EvaluationData, TaskResult
from esvit_hf.features.search import nearest_neighbors
from esvit_hf.figures.look import Picture
from esvit_hf.figures.neighbors import plot_image_rows
from esvit_hf.figures.report import plot_confusion, plot_feature_map

__all__ = ["report_figures"]

_MOST_IMAGES = 2000
_NEIGHBORS = 5
_ROWS = 5


def report_figures(
    data: EvaluationData, results: Mapping[str, TaskResult]
) -> dict[str, Callable[[], Picture]]:
    """Collect what plots the figures.

    Args:
        data: with features, if a task needed some.
        results: of the tasks.

    Returns:
        By the name of the file, what plots the figure.
    """
    figures = _confusion(data, results)
    if data.train is None or not data.splits.class_names:
        return figures
    chosen = _choose(len(data.splits.test), data.seed)
    figures["feature_map"] = partial(_plot_map, data, chosen)
    # Values beyond 8 bits and other channels are no photographs to show.
    if not getattr(data.store.processor, "keeps_values", False):
        figures["neighbors"] = partial(_plot_neighbors, data, chosen[:_ROWS])
        figures["worst_errors"] = partial(_plot_errors, data, chosen)
    return figures


def _choose(images: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(images, generator=generator)[:_MOST_IMAGES]


def _confusion(
    data: EvaluationData, results: Mapping[str, TaskResult]
) -> dict[str, Callable[[], Picture]]:
    """The confusion matrix of the classifier that is right most often."""
    labels = data.splits.test_labels
    classifiers = [
        (int((result.predicted == labels).sum()), result.title, result.predicted.tolist())
        for result in results.values()
        if result.predicted is not None
    ]
    if not classifiers:
        return {}
    _, title, predicted = max(classifiers, key=lambda classifier: classifier[0])
    names = data.splits.class_names
    title = f"Confusion of the {title}"
    return {"confusion_matrix": partial(plot_confusion, predicted, labels.tolist(), names, title)}


def _nearest(data: EvaluationData, chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the training images that are most similar to some test images."""
    train, _, test, _ = data.last_blocks(1)
    cosines, places = nearest_neighbors(
        train, test[chosen], min(count, len(train)), device=data.store.accelerator.device
    )
    return cosines.cpu(), places.cpu()


def _plot_neighbors(data: EvaluationData, chosen: Tensor) -> Picture:
    cosines, places = _nearest(data, chosen, _NEIGHBORS)
    return _plot_rows(data, chosen, cosines, places)


def _plot_errors(data: EvaluationData, chosen: Tensor) -> Picture:
    cosines, places = _nearest(data, chosen, 1)
    splits = data.splits
    wrong = splits.train_labels[places[:, 0]] != splits.test_labels[chosen]
    order = torch.where(wrong, cosines[:, 0], -2).argsort(descending=True, stable=True)
    shown = order[: min(_ROWS, int(wrong.sum()))]
    if not len(shown):
        # Every nearest image is of the right class: the least similar ones come closest to errors.
        shown = cosines[:, 0].argsort(stable=True)[:_ROWS]
    return _plot_rows(data, chosen[shown], cosines[shown], places[shown])


def _plot_rows(data: EvaluationData, chosen: Tensor, cosines: Tensor, places: Tensor) -> Picture:
    splits, names = data.splits, data.splits.class_names
    rows = []
    for image, found, near in zip(chosen.tolist(), places, cosines, strict=True):
        (shown,) = _read(splits.test, [image])
        row = [(shown, names[int(splits.test_labels[image])])]
        for place, other, cosine in zip(
            found.tolist(), _read(splits.train, found.tolist()), near.tolist(), strict=True
        ):
            row.append((other, f"{names[int(splits.train_labels[place])]} {cosine:.2f}"))
        rows.append(row)
    return plot_image_rows(rows)


def _read(source: ImageSource, places: list[int]) -> list[Image.Image]:
    images = source.read(places)
    for image in images:
        if isinstance(image, BrokenImage):
            raise ValueError(
                f"{image.name} can no longer be decoded ({image.reason}): repair it or remove it"
            )
    return [image for image in images if not isinstance(image, BrokenImage)]


def _plot_map(data: EvaluationData, chosen: Tensor) -> Picture:
    _, _, test, labels = data.last_blocks(1)
    rows = F.normalize(test[chosen].double(), dim=1)
    rows = rows - rows.mean(dim=0)
    places = rows @ torch.linalg.svd(rows, full_matrices=False).Vh[:2].T
    return plot_feature_map(places.numpy(), labels[chosen].numpy(), data.splits.class_names)
