"""Accuracy averaged over classes, for `evaluate.load`."""

import datasets
import evaluate
from sklearn.metrics import recall_score

_DESCRIPTION = "Accuracy of each class that occurs in the references, averaged over these classes."

_INPUTS = """
Args:
    predictions: the predicted class index of each example.
    references: the true class index of each example.

Returns:
    {"mean_per_class_accuracy": float in [0, 1]}

Examples:
    >>> metric = evaluate.load("path/to/mean_per_class_accuracy.py")
    >>> metric.compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 1])
    {'mean_per_class_accuracy': 0.5}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MeanPerClassAccuracy(evaluate.Metric):
    """Accuracy averaged over classes, which a frequent class cannot dominate."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        classes = sorted(set(references))
        return {
            "mean_per_class_accuracy": float(
                recall_score(references, predictions, labels=classes, average="macro")
            )
        }
