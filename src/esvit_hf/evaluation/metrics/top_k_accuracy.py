"""Top-k accuracy over ranked class predictions, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Share of examples whose reference is among the first k ranked predictions."

_INPUTS = """
Args:
    predictions: for each example, class indices from the most to the least likely, as many for
        each example; -1 fills up a list whose classifier named fewer classes.
    references: the true class index of each example.
    k: how many of the predictions count, 1 by default.

Returns:
    {"top_k_accuracy": float in [0, 1]}

Examples:
    >>> metric = evaluate.load("path/to/top_k_accuracy.py")
    >>> metric.compute(predictions=[[1, 0], [2, 1]], references=[1, 1], k=1)
    {'top_k_accuracy': 0.5}
    >>> metric.compute(predictions=[[1, 0], [2, 1]], references=[1, 1], k=2)
    {'top_k_accuracy': 1.0}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class TopKAccuracy(evaluate.Metric):
    """Top-k accuracy over ranked class predictions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self, predictions: list[list[int]], references: list[int], k: int = 1
    ) -> dict[str, float]:
        ranked, expected = np.asarray(predictions), np.asarray(references)
        if ranked.ndim != 2 or not 1 <= k <= ranked.shape[1]:
            raise ValueError(
                f"k is {k} and the predictions have shape {ranked.shape}: rank k classes or more "
                f"for each"
            )
        hits = (ranked[:, :k] == expected[:, None]).any(axis=1)
        return {"top_k_accuracy": float(hits.mean())}
