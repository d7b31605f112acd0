"""The task `knn`: classification by the votes of the most similar training images."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from esvit_hf.evaluation.task import (
    EvaluationData,
    Needs,
    Score,
    Task,
    TaskResult,
    accuracy_answer,
    check_above_zero,
    percent,
)
from esvit_hf.figures.report import plot_knn

__all__ = ["KnnTask"]

_USUAL_NEIGHBORS = (10, 20, 100, 200)


@dataclass(frozen=True)
class KnnTask(Task):
    """Weighted k-NN on the view feature, the protocol of DINO and EsViT.

    Args:
        k: numbers of neighbors; of the usual ones those that the training images allow.
        temperature: temperatures T of the neighbors' votes.
    """

    name = "knn"

    k: Sequence[int] = _USUAL_NEIGHBORS
    temperature: Sequence[float] = (0.07,)

    def __post_init__(self) -> None:
        check_above_zero("knn.k", self.k)
        check_above_zero("knn.temperature", self.temperature)

    def needs(self) -> Needs:
        """The view feature."""
        return Needs(blocks=1)

    def check(self, data: EvaluationData) -> None:
        """Refuse more neighbors than there are images; of the usual ones leave them out."""
        from esvit_hf.features.search import check_neighbors

        neighbors = self._neighbors(data)
        check_neighbors(max(neighbors), len(data.splits.train))
        if left_out := sorted({*self.k} - {*neighbors}):
            warnings.warn(
                f"knn: k {', '.join(map(str, left_out))} is left out, as there are "
                f"{len(data.splits.train)} training images",
                stacklevel=2,
            )

    def _neighbors(self, data: EvaluationData) -> Sequence[int]:
        if tuple(self.k) != _USUAL_NEIGHBORS:
            return self.k
        images = len(data.splits.train)
        return [k for k in self.k if k <= images] or [images]

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure top-1 and top-5 for every number of neighbors and every temperature."""
        from esvit_hf.evaluation.classifiers.nearest_neighbors import (
            knn_predictions,
            ranked_accuracy,
        )

        train, train_labels, test, test_labels = data.last_blocks(1)
        neighbors = self._neighbors(data)
        ranked = knn_predictions(
            train,
            train_labels,
            test,
            k=neighbors,
            temperature=self.temperature,
            device=data.store.accelerator.device,
        )
        accuracies = {
            setting: ranked_accuracy(predictions, test_labels)
            for setting, predictions in ranked.items()
        }
        rows, scores = [], []
        for (count, value), shares in accuracies.items():
            top1, top5 = map(percent, shares)
            rows.append({"k": count, "temperature": value, "top1": top1, "top5": top5})
            protocol = f"weighted k-NN on the view feature, k = {count}, T = {value:g}"
            first = not rows[1:]
            scores.append(accuracy_answer("top1", top1, protocol, data, is_first=first))
            scores.append(Score("top5", top5, protocol))
        return TaskResult(
            title="k-NN",
            protocol=(
                "Every test image takes the votes of its k most similar training images (cosine "
                "of the view features), weighted by exp(cos / T)."
            ),
            numbers={"accuracies": rows},
            scores=scores,
            figures={"knn": partial(plot_knn, accuracies)},
            predicted=ranked[neighbors[0], self.temperature[0]][:, 0],
        )
