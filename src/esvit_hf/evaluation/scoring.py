"""From class scores to a number: what each metric script takes from a classifier."""

from torch import Tensor

from esvit_hf.evaluation.metrics import load_metric

__all__ = ["score"]


def score(metric: str, scores: Tensor, labels: Tensor) -> float:
    """Measure class scores with one of this package's metrics.

    Args:
        metric: one of `METRICS`; accuracy is `top_k_accuracy` with k = 1.
        scores: (M, C), higher is more likely; ties go to the lower class.
        labels: (M,) integer classes; (M, C) of 1, 0 and -1 (ignored) for
            `interpolated_mean_average_precision`.

    Returns:
        The value, in [0, 1].

    Raises:
        ValueError: an unknown metric, or labels that do not suit it.
    """
    multi_label = metric == "interpolated_mean_average_precision"
    if labels.shape != (scores.shape if multi_label else scores.shape[:1]):
        raise ValueError(
            f"{metric} of scores of shape {tuple(scores.shape)} got labels of shape "
            f"{tuple(labels.shape)}: pass one "
            + ("row of 0 and 1 an image" if multi_label else "class an image")
        )
    if metric == "roc_auc":
        if scores.shape[1] != 2:
            raise ValueError(
                f"roc_auc got scores of {scores.shape[1]} classes: it is for two classes"
            )
        predictions = scores[:, 1] - scores[:, 0]
    elif multi_label:
        predictions = scores
    else:
        predictions = scores.argmax(dim=1)
        if metric == "top_k_accuracy":
            predictions = predictions[:, None]
    result = load_metric(metric).compute(
        predictions=predictions.cpu().numpy(), references=labels.cpu().numpy()
    )
    return float(result[metric])
