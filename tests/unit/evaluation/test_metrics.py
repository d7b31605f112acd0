"""The metric scripts, loaded by path, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from esvit_hf.evaluation.metrics import load_metric
from esvit_hf.evaluation.scoring import score


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("batches", [1, 4])
def test_top_k_accuracy(k: int, batches: int) -> None:
    random = np.random.default_rng(0)
    scores, references = random.random((200, 12)), random.integers(0, 12, 200)
    predictions = np.argsort(-scores, axis=1)[:, :5]
    metric = load_metric("top_k_accuracy")
    for rows, expected in zip(
        np.array_split(predictions, batches), np.array_split(references, batches), strict=True
    ):
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
    value = load_metric("mean_per_class_accuracy").compute(
        predictions=predictions, references=references
    )
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        oracle = balanced_accuracy_score(references, predictions)
    assert value == {"mean_per_class_accuracy": pytest.approx(oracle, abs=1e-12)}


def test_the_two_differ_on_unbalanced_data() -> None:
    predictions, references = [0, 0, 0, 0], [0, 0, 0, 1]
    mean = load_metric("mean_per_class_accuracy").compute(
        predictions=predictions, references=references
    )
    top1 = load_metric("top_k_accuracy").compute(
        predictions=[[label] for label in predictions], references=references
    )
    assert (mean["mean_per_class_accuracy"], top1["top_k_accuracy"]) == (0.5, 0.75)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'accuracy'.*top_k_accuracy"):
        load_metric("accuracy")


def plain_eleven_points(scores: np.ndarray, references: np.ndarray) -> float:
    """Average precision of one class, image by image; scores must differ."""
    order = [index for index in np.argsort(-scores) if references[index] >= 0]
    positives = sum(int(references[index] == 1) for index in order)
    found, points = 0, []
    for rank, index in enumerate(order, 1):
        found += int(references[index] == 1)
        points.append((10 * found, found / rank))
    best = [
        max(precision for tenths, precision in points if tenths >= level * positives)
        for level in range(11)
    ]
    return sum(best) / 11


@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize("positive", [0.02, 0.1, 0.6])
def test_interpolated_mean_average_precision(positive: float, ignored: float) -> None:
    random = np.random.default_rng(2)
    references = (random.random((200, 4)) < positive).astype(int)
    references[:10] = np.arange(10)[:, None] < 3
    references[random.random((200, 4)) < ignored] = -1
    scores = random.random((200, 4)) + 0.3 * references
    oracle = np.mean(
        [plain_eleven_points(scores[:, index], references[:, index]) for index in range(4)]
    )
    value = load_metric("interpolated_mean_average_precision").compute(
        predictions=scores, references=references
    )
    assert value == {"interpolated_mean_average_precision": pytest.approx(oracle, abs=1e-12)}


def test_interpolated_mean_average_precision_by_hand() -> None:
    metric = load_metric("interpolated_mean_average_precision")
    # Ranks of the positives 1, 3, 5: precision 1 up to recall 1/3 (4 points), 2/3 up to 2/3 (3),
    # 3/5 up to 1 (4).
    scores, references = [[0.9], [0.8], [0.7], [0.6], [0.5]], [[1], [0], [1], [0], [1]]
    value = metric.compute(predictions=scores, references=references)[
        "interpolated_mean_average_precision"
    ]
    assert value == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)
    # A recall of exactly 3/10 reaches the point 0.3: positives at the ranks 1 to 3 and 11 to 17.
    references = [[1]] * 3 + [[0]] * 7 + [[1]] * 7
    scores = [[float(-rank)] for rank in range(17)]
    value = metric.compute(predictions=scores, references=references)[
        "interpolated_mean_average_precision"
    ]
    assert value == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


def test_interpolated_mean_average_precision_of_equal_scores_is_that_of_chance() -> None:
    metric = load_metric("interpolated_mean_average_precision")
    value = metric.compute(predictions=[[0.0]] * 4, references=[[1], [0], [0], [0]])
    assert value == {"interpolated_mean_average_precision": 0.25}


def test_classes_without_a_positive_do_not_count() -> None:
    metric = load_metric("interpolated_mean_average_precision")
    value = metric.compute(predictions=[[0.9, 0.1], [0.2, 0.3]], references=[[1, 0], [0, -1]])
    assert value == {"interpolated_mean_average_precision": 1.0}
    with pytest.raises(ValueError, match="no class has a positive reference"):
        metric.compute(predictions=[[0.9, 0.1]], references=[[0, -1]])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.1, 0.2]], [[1]], r"\(1, 2\).*\(1, 1\)"),
        ([[0.1], [0.2]], [[1], [2]], "use 1, 0, and -1"),
    ],
)
def test_interpolated_mean_average_precision_refuses(
    predictions: list, references: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_metric("interpolated_mean_average_precision").compute(
            predictions=predictions, references=references
        )


def test_roc_auc() -> None:
    random = np.random.default_rng(3)
    references = random.integers(0, 2, 300)
    scores = np.round(random.random(300) + 0.3 * references, 1)
    pairs = scores[references == 1][:, None] - scores[references == 0]
    oracle = np.mean(np.where(pairs == 0, 0.5, pairs > 0))
    value = load_metric("roc_auc").compute(predictions=scores, references=references)
    assert value == {"roc_auc": pytest.approx(oracle, abs=1e-12)}


@pytest.mark.parametrize("references", [[1, 1], [0, 2]])
def test_roc_auc_needs_both_classes(references: list[int]) -> None:
    with pytest.raises(ValueError, match="needs 0 and 1"):
        load_metric("roc_auc").compute(predictions=[0.1, 0.2], references=references)


def test_scores_are_handed_to_each_metric() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    labels = torch.tensor([1, 1, 0, 0])
    assert score("top_k_accuracy", scores, labels) == 0.5
    assert score("mean_per_class_accuracy", scores, torch.tensor([1, 0, 0, 0])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    # The margins are 1, -1, 2 and -2.
    assert score("roc_auc", scores, torch.tensor([1, 0, 1, 0])) == 1.0
    assert (
        score("roc_auc", scores, labels)
        == roc_auc_score(labels, scores[:, 1] - scores[:, 0])
        == 0.5
    )
    rows = torch.tensor([[1, 1], [0, 1], [0, 0], [0, 0]])
    scores = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, -2.0]])
    expected = (plain_eleven_points(scores[:, 1].numpy(), rows[:, 1].numpy()) + 0.25) / 2
    assert score("interpolated_mean_average_precision", scores, rows) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "scores", "labels", "message"),
    [
        ("top_k_accuracy", torch.zeros(2, 3), torch.zeros(2, 3), "pass one class an image"),
        (
            "interpolated_mean_average_precision",
            torch.zeros(2, 3),
            torch.zeros(2),
            "pass one row of 0 and 1",
        ),
        ("roc_auc", torch.zeros(2, 3), torch.zeros(2), "3 classes"),
    ],
)
def test_labels_must_suit_the_metric(
    metric: str, scores: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(metric, scores, labels)
