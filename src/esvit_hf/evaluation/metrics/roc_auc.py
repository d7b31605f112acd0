"""Area under the receiver operating characteristic of a binary classifier, for `evaluate.load`."""

import datasets
import evaluate
from sklearn.metrics import roc_auc_score

_DESCRIPTION = (
    "Share of pairs of a positive and a negative example whose positive one scores higher; ties "
    "count half."
)

_INPUTS = """
Args:
    predictions: a score of each example; higher is more likely positive.
    references: 1 for positive, 0 for negative examples; both must occur.

Returns:
    {"roc_auc": float in [0, 1]}

Examples:
    >>> metric = evaluate.load("path/to/roc_auc.py")
    >>> metric.compute(predictions=[0.9, 0.4, 0.6, 0.1], references=[1, 1, 0, 0])
    {'roc_auc': 0.75}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RocAuc(evaluate.Metric):
    """Area under the receiver operating characteristic."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        classes = sorted(set(references))
        if classes != [0, 1]:
            raise ValueError(
                f"references hold the classes {classes[:5]}: ROC AUC needs 0 and 1, both at least "
                f"once"
            )
        return {"roc_auc": float(roc_auc_score(references, predictions))}
