"""The task `few_shot`: classification from a few training images a class."""

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
    check_above_zero,
    percent,
)
from esvit_hf.figures.report import plot_few_shot

__all__ = ["FewShotTask"]

_USUAL_SHOTS = (1, 5, 10)


@dataclass(frozen=True)
class FewShotTask(Task):
    """Nearest class mean of the view features of a few images a class (SimpleShot).

    Args:
        shots: images a class; of the usual numbers those that every class has.
        draws: random choices of those images.
    """

    name = "few_shot"

    shots: Sequence[int] = _USUAL_SHOTS
    draws: int = 5

    def __post_init__(self) -> None:
        check_above_zero("few_shot.shots", self.shots)
        check_above_zero("few_shot.draws", [self.draws])

    def needs(self) -> Needs:
        """The view feature."""
        return Needs(blocks=1)

    def check(self, data: EvaluationData) -> None:
        """Refuse more shots than a class has images; of the usual ones leave them out."""
        from esvit_hf.evaluation.splits import check_images_per_class

        splits, shots = data.splits, self._shots(data)
        check_images_per_class(splits.train_labels, max(shots), splits.class_names)
        if left_out := sorted({*self.shots} - {*shots}):
            warnings.warn(
                f"few_shot: shots {', '.join(map(str, left_out))} are left out, as a class has "
                f"fewer training images",
                stacklevel=2,
            )

    def _shots(self, data: EvaluationData) -> Sequence[int]:
        if tuple(self.shots) != _USUAL_SHOTS:
            return self.shots
        fewest = int(data.splits.train_labels.unique(return_counts=True)[1].min())
        return [shots for shots in self.shots if shots <= fewest]

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure mean and spread for every number of shots."""
        from esvit_hf.evaluation.classifiers.nearest_mean import few_shot_accuracy

        results = few_shot_accuracy(
            *data.last_blocks(1),
            shots=self._shots(data),
            draws=self.draws,
            seed=data.seed,
            device=data.store.accelerator.device,
        )
        scores = [
            Score(
                f"top1_{result.shots}_shot",
                percent(result.mean),
                f"nearest class mean (centered, cosine) of {result.shots} images a class, mean of "
                f"{self.draws} draws, standard deviation {100 * result.spread:.2f}",
                in_answer=result.shots == max(self.shots),
                chance=percent(1 / len(data.splits.class_names)),
            )
            for result in results
        ]
        return TaskResult(
            title="few-shot",
            protocol=(
                "Nearest class mean (cosine of the view features, centered on the labeled images) "
                f"of a few training images a class, over {self.draws} random draws; the spread is "
                f"the standard deviation of a draw."
            ),
            numbers={
                "accuracies": [
                    {
                        "shots": result.shots,
                        "top1": percent(result.mean),
                        "spread": percent(result.spread),
                        "draws": [percent(share) for share in result.draws],
                    }
                    for result in results
                ]
            },
            scores=scores,
            figures={
                "few_shot": partial(
                    plot_few_shot,
                    [result.shots for result in results],
                    [result.mean for result in results],
                    [result.spread for result in results],
                )
            },
        )
