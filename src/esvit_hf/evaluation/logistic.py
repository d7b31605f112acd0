"""The task `logistic`: logistic regression, its strength chosen on held-out training images."""

from dataclasses import dataclass
from functools import partial

from esvit_hf.evaluation.task import (
    EvaluationData,
    Needs,
    Score,
    Task,
    TaskResult,
    accuracy_answer,
    percent,
)
from esvit_hf.figures.report import plot_logistic

__all__ = ["LogisticTask"]

_METRICS = ("top_k_accuracy", "mean_per_class_accuracy")


@dataclass(frozen=True)
class LogisticTask(Task):
    """L2-regularized logistic regression on the view feature, the protocol of `esvit transfer`."""

    name = "logistic"

    def needs(self) -> Needs:
        """The view feature."""
        return Needs(blocks=1)

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure the accuracies of the chosen strength, and what it was chosen by."""
        from esvit_hf.evaluation.classifiers.logistic_regression import logistic_probe
        from esvit_hf.evaluation.scoring import score

        train, train_labels, test, test_labels = data.last_blocks(1)
        result = logistic_probe(
            train, train_labels, test, seed=data.seed, device=data.store.accelerator.device
        )
        top1, mean = (percent(score(metric, result.scores, test_labels)) for metric in _METRICS)
        share = f"{100 * result.validation_share:.2g} % of the training images"
        protocol = (
            f"logistic regression on the view feature, L2 strength {result.strength:.3g} chosen "
            f"on {share}"
        )
        return TaskResult(
            title="logistic regression",
            protocol=(
                f"L2-regularized logistic regression on the view feature (L-BFGS, to convergence). "
                f"The strength is the one that is best on a held-out {share}; the last fit is on "
                f"all of them."
            ),
            numbers={
                "top1": top1,
                "mean_per_class": mean,
                "strength": result.strength,
                "validation": [
                    {"strength": strength, "top1": percent(share)}
                    for strength, share in sorted(result.validation.items())
                ],
            },
            scores=[
                accuracy_answer("top1", top1, protocol, data),
                Score("mean_per_class", mean, protocol),
            ],
            figures={"logistic": partial(plot_logistic, result.validation, result.strength)},
            predicted=result.scores.argmax(dim=1),
        )
