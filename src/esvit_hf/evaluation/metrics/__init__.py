"""Metric scripts that `evaluate.load` takes by path; `load_metric` finds them by name."""

import importlib.resources
from typing import Any

__all__ = ["METRICS", "RANKED_CLASSES", "load_metric"]

# Top-5 is the deepest rank that anything here reports.
RANKED_CLASSES = 5
METRICS = (
    "interpolated_mean_average_precision",
    "mean_per_class_accuracy",
    "roc_auc",
    "top_k_accuracy",
)


def load_metric(name: str) -> Any:
    """Load a metric script of this package with `evaluate`, without the network.

    Args:
        name: one of `METRICS`.

    Returns:
        An `evaluate.Metric`: `compute`, or `add_batch` and then `compute`.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"no metric is called {name!r}: choose one of {', '.join(METRICS)}")
    import evaluate

    script = importlib.resources.files(__name__) / f"{name}.py"
    return evaluate.load(str(script), keep_in_memory=True)
