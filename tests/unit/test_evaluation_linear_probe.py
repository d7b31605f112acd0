"""The linear probe against PyTorch's own optimizer and scikit-learn's logistic regression."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from esvit_hf.evaluation.linear_probe import LinearProbeResult, _held_out, _Training, linear_probe


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real 8 x 8 images of handwritten digits, 1347 to train on and 450 to test."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    features, labels = torch.from_numpy(bunch.data).float()[order] / 16, torch.from_numpy(bunch.target)[order]
    return features[:1347], labels[:1347], features[1347:], labels[1347:]


@pytest.fixture(scope="module")
def probed() -> LinearProbeResult:
    return linear_probe(*digits(), learning_rates=(0.01, 0.1, 1.0, 10.0), epochs=40)


def test_is_as_good_as_logistic_regression(probed: LinearProbeResult) -> None:
    train, train_labels, test, test_labels = digits()
    oracle = LogisticRegression(C=10, max_iter=1000).fit(train.numpy(), train_labels.numpy())
    expected = oracle.score(test.numpy(), test_labels.numpy())
    assert expected > 0.94
    assert probed.top1 > expected - 0.01
    assert probed.top5 > 0.99
    assert probed.mean_per_class == pytest.approx(probed.top1, abs=0.01)


def test_the_chosen_rate_is_the_best_on_validation(probed: LinearProbeResult) -> None:
    assert list(probed.validation) == [0.01, 0.1, 1.0, 10.0]
    assert probed.validation[probed.learning_rate] == max(probed.validation.values())
    assert probed.validation[0.01] < probed.validation[1.0]


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_one_rate_alone_gives_what_it_gives_among_others(probed: LinearProbeResult) -> None:
    alone = linear_probe(*digits(), learning_rates=(probed.learning_rate,), epochs=40)
    assert alone.validation[probed.learning_rate] == probed.validation[probed.learning_rate]
    assert (alone.top1, alone.top5, alone.mean_per_class) == (probed.top1, probed.top5, probed.mean_per_class)


def test_training_is_sgd_with_momentum_on_a_cosine() -> None:
    features, labels, _, _ = digits()
    rates, epochs, batch_size = [0.05, 0.5], 3, 128
    ours = _Training(rates, epochs, batch_size, seed=7).train(features, labels, 10, "test")

    for index, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(7)
        layer = nn.Linear(64, 10)
        with torch.no_grad():
            start = torch.randn(64, 1, 10, generator=generator) * 0.01
            layer.weight.copy_(start[:, 0].T)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate * batch_size / 256, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for batch in torch.randperm(len(labels), generator=generator).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(layer(features[batch]), labels[batch]).backward()
                optimizer.step()
            scheduler.step()
        torch.testing.assert_close(ours.weight[:, index], layer.weight.detach().T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.bias[index], layer.bias.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_separable_classes_are_separated() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] * 4 + 0.1 * torch.randn(60, 3, generator=generator)
    result = linear_probe(features, labels, features, labels, learning_rates=(0.01, 0.1, 1.0), epochs=60, batch_size=16)
    assert (result.top1, result.top5, result.mean_per_class) == (1.0, 1.0, 1.0)


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_same_seed_same_result() -> None:
    train, train_labels, test, test_labels = digits()
    settings: dict[str, Any] = {"learning_rates": (0.003, 0.03, 0.3), "epochs": 2}
    first, again, other = (
        linear_probe(train, train_labels, test, test_labels, seed=seed, **settings) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.validation != other.validation


def test_a_rate_that_diverges_loses() -> None:
    train, train_labels, test, test_labels = digits()
    result = linear_probe(train, train_labels, test, test_labels, learning_rates=(0.1, 1.0, 1e38), epochs=5)
    assert result.validation[1e38] == 0.0
    assert result.learning_rate == 1.0
    with pytest.raises(ValueError, match="diverged"):
        linear_probe(train, train_labels, test, test_labels, learning_rates=(1e38,), epochs=5)


def test_a_best_rate_at_the_edge_is_reported() -> None:
    with pytest.warns(UserWarning, match=r"0\.01, is at the edge"):
        linear_probe(*digits(), learning_rates=(1e-6, 0.01), epochs=2)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_the_held_out_part_is_stratified(fraction: float) -> None:
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 7 + [3] + [5] * 2)[torch.randperm(150)]
    mask = _held_out(labels, fraction, seed=0)
    for label, count in zip(*np.unique(labels.numpy(), return_counts=True), strict=True):
        held = int(mask[labels == label].sum())
        assert abs(held - fraction * count) <= 1
        assert held < count
    assert not torch.equal(mask, _held_out(labels, fraction, seed=1))


GOOD: dict[str, Any] = {
    "train_features": torch.eye(4),
    "train_labels": torch.arange(4) % 2,
    "test_features": torch.eye(4),
    "test_labels": torch.arange(4) % 2,
    "validation_fraction": 0.5,
    "epochs": 1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": torch.full((4, 4), torch.nan)}, "train features are not all finite"),
        ({"test_features": torch.full((4, 4), torch.inf)}, "test features are not all finite"),
        ({"test_features": torch.eye(5)}, r"\(4, 4\).*\(5, 5\)"),
        ({"train_labels": torch.zeros(4, dtype=torch.int64)}, "two classes"),
        ({"test_labels": torch.tensor([0, 1, 3, 3])}, "1 test classes have no training image.*class 3"),
        ({"train_labels": torch.arange(3)}, "pass one integer"),
        ({"train_labels": torch.arange(4) - 1}, "pass one integer"),
        ({"test_labels": torch.ones(4)}, "pass one integer"),
        ({"learning_rates": ()}, "above 0"),
        ({"learning_rates": (0.1, -0.1)}, "above 0"),
        ({"epochs": 0}, "above 0"),
        ({"batch_size": 0}, "above 0"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
        ({"validation_fraction": 0.01}, "leaves none"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_probe(**{**GOOD, **change})
