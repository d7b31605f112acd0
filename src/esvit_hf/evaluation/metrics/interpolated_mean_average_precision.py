"""Mean of the 11-point interpolated average precision of PASCAL VOC 2007, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import precision_recall_curve

_DESCRIPTION = """
For each class, examples are ranked by score; at each of the recalls 0, 0.1, ..., 1 the best
precision at that recall or beyond counts; their mean is the average precision of the class.
Averaged over the classes with a positive example.
"""

_INPUTS = """
Args:
    predictions: for each example, one score a class; higher is more likely.
    references: for each example, one number a class: 1 present, 0 absent, -1 ignored
        ("difficult" in PASCAL VOC).

Returns:
    {"interpolated_mean_average_precision": float in [0, 1]}

Examples:
    >>> metric = evaluate.load("path/to/interpolated_mean_average_precision.py")
    >>> metric.compute(predictions=[[0.9], [0.8], [0.1]], references=[[1], [0], [1]])
    {'interpolated_mean_average_precision': 0.8484848484848485}
"""

_CITATION = """
@article{everingham2010pascal,
  title={The PASCAL Visual Object Classes (VOC) Challenge},
  author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John
          and Zisserman, Andrew},
  journal={International Journal of Computer Vision}, volume={88}, pages={303--338}, year={2010}
}
"""

# Tenths are divided, not multiplied up: 3 / 10 then equals a recall of 3 / 10 to the last bit.
_RECALLS = np.arange(11) / 10


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class InterpolatedMeanAveragePrecision(evaluate.Metric):
    """Mean of the 11-point interpolated average precision of each class."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[int]]
    ) -> dict[str, float]:
        scores, expected = np.asarray(predictions), np.asarray(references)
        if scores.ndim != 2 or scores.shape != expected.shape:
            raise ValueError(
                f"predictions have shape {scores.shape} and references {expected.shape}: pass one "
                f"number for each example and class"
            )
        if not np.isin(expected, (-1, 0, 1)).all():
            raise ValueError(
                f"references hold {np.unique(expected)[:5].tolist()}: use 1, 0, and -1 for ignored"
            )
        values = [
            _average_precision(scores[:, index], expected[:, index])
            for index in range(scores.shape[1])
        ]
        defined = [value for value in values if value is not None]
        if not defined:
            raise ValueError("no class has a positive reference: average precision needs one")
        return {"interpolated_mean_average_precision": float(np.mean(defined))}


def _average_precision(scores: np.ndarray, references: np.ndarray) -> float | None:
    """Average precision of one class, None without a positive example."""
    counted = references >= 0
    if not (references == 1).any():
        return None
    precision, recall, _ = precision_recall_curve(references[counted], scores[counted])
    # The curve ends in a made-up point of precision 1 at recall 0.
    precision, recall = precision[:-1], recall[:-1]
    return float(np.mean([precision[recall >= level].max() for level in _RECALLS]))
