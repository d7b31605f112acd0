"""Few-shot classification against scikit-learn, and its draws."""

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from esvit_hf.evaluation.classifiers.nearest_mean import _sample_training_images, few_shot_accuracy


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_all_images_of_balanced_classes_give_scikit_learns_centroids() -> None:
    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target)
    chosen = torch.cat([(labels == digit).nonzero()[:20, 0] for digit in range(10)])
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    train, train_labels, test, test_labels = (
        images[chosen],
        labels[chosen],
        images[1000:],
        labels[1000:],
    )
    (result,) = few_shot_accuracy(train, train_labels, test, test_labels, shots=(20,), draws=2)

    center = train.double().numpy().mean(axis=0)
    oracle = NearestCentroid().fit(normalize(train.double().numpy() - center), train_labels.numpy())
    predicted = cosine_similarity(test.double().numpy() - center, oracle.centroids_).argmax(axis=1)
    expected = (predicted == test_labels.numpy()).mean()
    assert expected > 0.7
    assert (result.shots, result.draws) == (20, pytest.approx((expected, expected)))
    assert (result.mean, result.spread) == (pytest.approx(expected), 0)


def test_more_images_help_and_draws_differ() -> None:
    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target)
    inputs = (images[:1000], labels[:1000], images[1000:], labels[1000:])
    one, ten = few_shot_accuracy(*inputs, shots=(10, 1), draws=5)
    assert (one.shots, ten.shots) == (1, 10)
    assert ten.mean > one.mean + 0.1
    assert one.spread == pytest.approx(float(torch.tensor(one.draws, dtype=torch.float64).std()))
    assert len(set(one.draws)) > 1
    assert few_shot_accuracy(*inputs, shots=(1, 10), draws=5) == [one, ten]
    assert few_shot_accuracy(*inputs, shots=(1, 10), draws=5, seed=1) != [one, ten]


def test_classes_need_not_be_numbered_without_gaps() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    labels = torch.tensor([3, 3, 7, 7])
    (result,) = few_shot_accuracy(train, labels, train, labels, shots=(1,), draws=3)
    assert result.draws == (1.0, 1.0, 1.0)


def test_a_draw_takes_different_images_of_the_right_class() -> None:
    labels = torch.tensor([2, 0, 5] * 4 + [5] * 3)
    classes = labels.unique()
    draws = [
        _sample_training_images(labels, classes, 4, torch.Generator().manual_seed(seed))
        for seed in range(30)
    ]
    for draw in draws:
        assert (labels[draw] == classes[:, None]).all()
        assert all(len(row.unique()) == 4 for row in draw)
    assert {int(index) for draw in draws for index in draw[2]} == set(
        (labels == 5).nonzero()[:, 0].tolist()
    )


GOOD: dict[str, Any] = {
    "train": torch.eye(6),
    "train_labels": torch.arange(6) % 2,
    "test": torch.eye(6),
    "test_labels": torch.arange(6) % 2,
    "shots": (1, 3),
    "draws": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": (4,)}, "class 0 has 3 training images, and 4 shots.*lower shots"),
        ({"shots": ()}, "above 0"),
        ({"shots": (0, 1)}, "above 0"),
        ({"draws": 0}, "above 0"),
        ({"train": torch.full((6, 6), torch.nan)}, "train features are not all finite"),
        ({"train_labels": torch.zeros(6, dtype=torch.int64)}, "two classes"),
        ({"test_labels": torch.full((6,), 4)}, "no training image.*class 4"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        few_shot_accuracy(**{**GOOD, **change})
