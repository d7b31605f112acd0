"""The linear probe against PyTorch's own optimizer and scikit-learn's logistic regression."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from esvit_hf.evaluation.classifiers.linear_probe import (
    LinearProbeResult,
    _Schedule,
    _Training,
    linear_probe,
)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real 8 x 8 images of handwritten digits, 1347 to train on and 450 to test."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    features, labels = (
        torch.from_numpy(bunch.data).float()[order] / 16,
        torch.from_numpy(bunch.target)[order],
    )
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
    assert list(probed.validation) == [(1, 0.01), (1, 0.1), (1, 1.0), (1, 10.0)]
    assert probed.validation[1, probed.learning_rate] == max(probed.validation.values())
    assert probed.validation[1, 0.01] < probed.validation[1, 1.0]
    assert {setting: len(shares) for setting, shares in probed.history.items()} == dict.fromkeys(
        probed.validation, 40
    )
    assert probed.history[1, 0.01][0] < probed.history[1, 0.01][-1]


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_one_rate_alone_gives_what_it_gives_among_others(probed: LinearProbeResult) -> None:
    alone = linear_probe(*digits(), learning_rates=(probed.learning_rate,), epochs=40)
    assert alone.history[1, probed.learning_rate] == probed.history[1, probed.learning_rate]
    assert (alone.top1, alone.top5, alone.mean_per_class) == (
        probed.top1,
        probed.top5,
        probed.mean_per_class,
    )


def test_training_is_sgd_with_momentum_on_a_cosine() -> None:
    features, labels, _, _ = digits()
    rates, epochs, batch_size, columns = [0.05, 0.5], 3, 128, {1: 24, 2: 64}
    ours = _Training(columns, rates, _Schedule(epochs, batch_size, 7, 10), torch.device("cpu"))
    for _ in range(epochs):
        ours.run_epoch(features, labels)

    for count, rate in ours.settings():
        width = columns[count]
        generator = torch.Generator().manual_seed(7)
        layer = nn.Linear(width, 10)
        with torch.no_grad():
            start = torch.randn(64, 1, 10, generator=generator) * 0.01
            layer.weight.copy_(start[-width:, 0].T)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate * batch_size / 256, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for batch in torch.randperm(len(labels), generator=generator).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(layer(features[batch, -width:]), labels[batch]).backward()
                optimizer.step()
            scheduler.step()
        trained, place = ours.classifiers[count], rates.index(rate)
        torch.testing.assert_close(
            trained.weight[:, place], layer.weight.detach().T, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(trained.bias[place], layer.bias.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the best learning rate")
@pytest.mark.parametrize("informative", [1, 2])
def test_the_blocks_that_tell_the_classes_apart_are_chosen(informative: int) -> None:
    """Digits in the last block alone, or in the one before it alone, and noise in the other."""
    train, train_labels, test, test_labels = digits()
    generator = torch.Generator().manual_seed(3)
    sides = []
    for rows in (train, test):
        noise = torch.randn(rows.shape, generator=generator)
        sides.append(torch.cat([noise, rows] if informative == 1 else [rows, noise], dim=1))
    result = linear_probe(
        sides[0],
        train_labels,
        sides[1],
        test_labels,
        block_widths=[64, 64],
        blocks=(2, 1),
        learning_rates=(0.3,),
        epochs=10,
    )
    assert list(result.history) == [(1, 0.3), (2, 0.3)]
    assert result.blocks == informative
    assert result.top1 > 0.85
    assert (result.ranked[:, 0] == test_labels).double().mean() == pytest.approx(result.top1)


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_augmented_features_are_asked_for_once_an_epoch() -> None:
    train, train_labels, test, test_labels = digits()
    asked: list[int] = []

    def unchanged(epoch: int) -> Tensor:
        asked.append(epoch)
        return train

    settings: dict[str, Any] = {"learning_rates": (0.1, 1.0), "epochs": 4}
    plain = linear_probe(train, train_labels, test, test_labels, **settings)
    same = linear_probe(train, train_labels, test, test_labels, augmented=unchanged, **settings)
    assert asked == [0, 1, 2, 3]
    assert same == plain
    generator = torch.Generator().manual_seed(0)
    spoilt = linear_probe(
        train,
        train_labels,
        test,
        test_labels,
        augmented=lambda _: torch.randn(train.shape, generator=generator),
        **settings,
    )
    assert spoilt.top1 < 0.5


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_separable_classes_are_separated() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] * 4 + 0.1 * torch.randn(60, 3, generator=generator)
    result = linear_probe(
        features,
        labels,
        features,
        labels,
        learning_rates=(0.01, 0.1, 1.0),
        epochs=60,
        batch_size=16,
    )
    assert (result.top1, result.top5, result.mean_per_class) == (1.0, 1.0, 1.0)


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_same_seed_same_result() -> None:
    train, train_labels, test, test_labels = digits()
    settings: dict[str, Any] = {"learning_rates": (0.003, 0.03, 0.3), "epochs": 2}
    first, again, other = (
        linear_probe(train, train_labels, test, test_labels, seed=seed, **settings)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.validation != other.validation


def test_a_rate_that_diverges_loses() -> None:
    train, train_labels, test, test_labels = digits()
    result = linear_probe(
        train, train_labels, test, test_labels, learning_rates=(0.1, 1.0, 1e38), epochs=5
    )
    assert result.validation[1, 1e38] == 0.0
    assert result.learning_rate == 1.0
    with pytest.raises(ValueError, match="diverged"):
        linear_probe(train, train_labels, test, test_labels, learning_rates=(1e38,), epochs=5)


def test_a_best_rate_at_the_edge_is_reported() -> None:
    with pytest.warns(UserWarning, match=r"0\.01, is at the edge"):
        linear_probe(*digits(), learning_rates=(1e-6, 0.01), epochs=2)


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
        (
            {"test_labels": torch.tensor([0, 1, 3, 3])},
            "1 test classes have no training image.*class 3",
        ),
        ({"train_labels": torch.arange(3)}, "pass one integer"),
        ({"train_labels": torch.arange(4) - 1}, "pass one integer"),
        ({"test_labels": torch.ones(4)}, "pass one integer"),
        ({"block_widths": [3, 2]}, r"block_widths are \[3, 2\].*4 columns"),
        ({"block_widths": [2, 2], "blocks": (3,)}, "number from 1 to 2"),
        ({"blocks": ()}, "at least one number"),
        ({"learning_rates": ()}, "above 0"),
        ({"learning_rates": (0.1, -0.1)}, "above 0"),
        ({"epochs": 0}, "above 0"),
        ({"batch_size": 0}, "above 0"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
        ({"train_labels": torch.arange(4)}, "leaves none"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_probe(**{**GOOD, **change})
