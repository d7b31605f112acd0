"""The metric scripts, loaded by path, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from esvit_hf.evaluation import load_metric


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("batches", [1, 4])
def test_top_k_accuracy(k: int, batches: int) -> None:
    random = np.random.default_rng(0)
    scores, references = random.random((200, 12)), random.integers(0, 12, 200)
    predictions = np.argsort(-scores, axis=1)[:, :5]
    metric = load_metric("top_k_accuracy")
    for rows, expected in zip(np.array_split(predictions, batches), np.array_split(references, batches), strict=True):
        metric.add_batch(predictions=rows, references=expected)
    oracle = top_k_accuracy_score(references, scores, k=k, labels=np.arange(12))
    assert metric.compute(k=k) == {"top_k_accuracy": pytest.approx(oracle, abs=1e-12)}


@pytest.mark.parametrize("k", [0, 3])
def test_top_k_accuracy_needs_k_ranks(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}"):
        load_metric("top_k_accuracy").compute(predictions=[[0, 1], [1, 0]], references=[0, 1], k=k)


def test_mean_per_class_accuracy() -> None:
    random = np.random.default_rng(1)
    references = random.choice(5, 300, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    # A class 7 that is predicted, though it never occurs, must not count as a class of its own.
    predictions = np.where(random.random(300) < 0.6, references, random.choice([0, 3, 7], 300))
    value = load_metric("mean_per_class_accuracy").compute(predictions=predictions, references=references)
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        oracle = balanced_accuracy_score(references, predictions)
    assert value == {"mean_per_class_accuracy": pytest.approx(oracle, abs=1e-12)}


def test_the_two_differ_on_unbalanced_data() -> None:
    predictions, references = [0, 0, 0, 0], [0, 0, 0, 1]
    mean = load_metric("mean_per_class_accuracy").compute(predictions=predictions, references=references)
    top1 = load_metric("top_k_accuracy").compute(predictions=[[label] for label in predictions], references=references)
    assert (mean["mean_per_class_accuracy"], top1["top_k_accuracy"]) == (0.5, 0.75)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'accuracy'.*top_k_accuracy"):
        load_metric("accuracy")
