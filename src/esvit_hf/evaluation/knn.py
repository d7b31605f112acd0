"""The task `knn`: classification by the votes of the most similar training images."""

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


@dataclass(frozen=True)
class KnnTask(Task):
    """Weighted k-NN on the view feature, the protocol of DINO and EsViT.

    Args:
        k: numbers of neighbors.
        temperature: temperatures T of the neighbors' votes.
    """

    name = "knn"

    k: Sequence[int] = (10, 20, 100, 200)
    temperature: Sequence[float] = (0.07,)

    def __post_init__(self) -> None:
        check_above_zero("knn.k", self.k)
        check_above_zero("knn.temperature", self.temperature)

    def needs(self) -> Needs:
        """The view feature."""
        return Needs(blocks=1)

    def check(self, data: EvaluationData) -> None:
        """Refuse more neighbors than there are images."""
        from esvit_hf.features.search import check_neighbors

        check_neighbors(max(self.k), len(data.splits.train))

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure top-1 and top-5 for every number of neighbors and every temperature."""
        from esvit_hf.evaluation.classifiers.nearest_neighbors import (
            knn_predictions,
            ranked_accuracy,
        )

        train, train_labels, test, test_labels = data.last_blocks(1)
        ranked = knn_predictions(
            train,
            train_labels,
            test,
            k=self.k,
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
            predicted=ranked[self.k[0], self.temperature[0]][:, 0],
        )
