"""The logistic probe against scikit-learn: the same optimum, the same search."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from esvit_hf.evaluation.classifiers import logistic_regression
from esvit_hf.evaluation.classifiers.logistic_regression import STRENGTHS, _Problem, logistic_probe
from esvit_hf.evaluation.scoring import score


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real 8 x 8 images of handwritten digits, 1000 to train on and 797 to test."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    features, labels = (
        torch.from_numpy(bunch.data).float()[order] / 16,
        torch.from_numpy(bunch.target)[order],
    )
    return features[:1000], labels[:1000], features[1000:], labels[1000:]


def oracle(features: Tensor, labels: Tensor, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / strength, solver="newton-cg", tol=1e-9, max_iter=1000)
    return model.fit(features.double().numpy(), labels.numpy())


def loss(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, strength: float) -> Tensor:
    """Summed softmax cross-entropy and penalty, written out."""
    logits = features.double() @ weight + bias
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return (logits.exp().sum(dim=1).log() - chosen).sum() + 0.5 * strength * weight.square().sum()


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_reaches_the_optimum_of_scikit_learn(strength: float) -> None:
    train, train_labels, test, _ = digits()
    expected = oracle(train, train_labels, strength)
    # An offset of the features changes the bias alone, and must not slow the optimizer.
    found = _Problem(train.double() + 30, train_labels, 10).fit(strength)
    assert found.converged
    minimum = loss(
        *map(torch.from_numpy, (expected.coef_.T, expected.intercept_)),
        train,
        train_labels,
        strength,
    )
    reached = loss(found.weight, found.bias, train.double() + 30, train_labels, strength)
    assert reached - minimum < 1e-8 * len(train)
    np.testing.assert_allclose(found.weight.T, expected.coef_, atol=1e-3 / strength**0.5)
    probabilities = found.scores(test.double() + 30).softmax(dim=1)
    np.testing.assert_allclose(
        probabilities, expected.predict_proba(test.double().numpy()), atol=2e-3
    )


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_two_classes_are_one_sigmoid(strength: float) -> None:
    train, train_labels, test, _ = digits()
    train_labels = train_labels % 2
    expected = oracle(train, train_labels, strength).decision_function(test.double().numpy())
    scores = logistic_probe(train, train_labels, test, strengths=(strength,), halvings=0).scores
    assert scores.shape == (797, 2)
    assert not scores[:, 0].any()
    np.testing.assert_allclose(scores[:, 1], expected, atol=0.02)


@given(
    images=st.integers(6, 40),
    width=st.integers(1, 60),
    classes=st.integers(3, 5),
    exponent=st.floats(-2, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_no_other_weights_are_better(
    images: int, width: int, classes: int, exponent: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, width, generator=generator, dtype=torch.float64) * 3 + 5
    labels = torch.arange(images) % classes
    strength = 10**exponent
    found = _Problem(features, labels, classes).fit(strength)
    weight, bias = found.weight.requires_grad_(), found.bias.requires_grad_()
    loss(weight, bias, features, labels, strength).backward()
    # The loss is convex, so a vanishing gradient is the minimum.
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-4 * images * features.abs().max()
    assert bias.grad.abs().max() < 1e-4 * images


def test_the_search_is_that_of_scikit_learn() -> None:
    train, train_labels, test, _ = digits()
    validation = (train[700:], train_labels[700:])
    result = logistic_probe(
        train[:700], train_labels[:700], test, validation=validation, strengths=(1e-3, 1, 1e3)
    )
    for strength, value in result.validation.items():
        model = oracle(train[:700], train_labels[:700], strength)
        assert value == pytest.approx(
            model.score(validation[0].double().numpy(), validation[1].numpy()), abs=1e-9
        )
    assert result.validation[result.strength] == max(result.validation.values())
    final = oracle(train, train_labels, result.strength)
    np.testing.assert_allclose(
        result.scores.softmax(dim=1), final.predict_proba(test.double().numpy()), atol=2e-3
    )


def test_the_search_halves_the_spacing_around_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that fall off from 10^1.3 on lead there, to within an eighth of a decade."""
    train, train_labels, test, _ = digits()
    tried: list[float] = []
    fit = _Problem.fit

    def recorded(self: _Problem, strength: float) -> Any:
        tried.append(strength)
        return fit(self, strength)

    monkeypatch.setattr(_Problem, "fit", recorded)
    monkeypatch.setattr(logistic_regression, "score", lambda *_: -abs(np.log10(tried[-1]) - 1.3))
    result = logistic_probe(train[:60], train_labels[:60], test)
    assert sorted(result.validation) == list(result.validation)
    exponents = np.log10(list(result.validation))
    assert set(np.log10(STRENGTHS)) < set(exponents.round(9))
    assert len(exponents) == len(STRENGTHS) + 2 * 4
    assert np.log10(result.strength) == pytest.approx(1.25)
    assert np.diff(exponents).min() == pytest.approx(1 / 8)
    assert tried[-1] == result.strength


def multi_label_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 12, generator=generator)
    logits = features @ torch.randn(12, 3, generator=generator) + torch.tensor([0.0, -2.0, 1.0])
    labels = (logits + torch.randn(300, 3, generator=generator) > 0).long()
    labels[torch.rand(300, 3, generator=generator) < 0.1] = -1
    return features, labels


def test_multi_label_is_one_classifier_a_class_without_ignored_images() -> None:
    features, labels = multi_label_data()
    result = logistic_probe(
        features[:200], labels[:200], features[200:], strengths=(2.0,), multi_label=True
    )
    assert result.strength == 2.0
    for index in range(3):
        counted = labels[:200, index] >= 0
        model = oracle(features[:200][counted], labels[:200, index][counted], 2.0)
        expected = model.decision_function(features[200:].double().numpy())
        np.testing.assert_allclose(result.scores[:, index], expected, atol=1e-3)
    assert score("interpolated_mean_average_precision", result.scores, labels[200:]) > 0.85


def test_the_metric_decides() -> None:
    """On unbalanced labels accuracy is content with the frequent class, the mean per class is
    not.
    """
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(400) % 10 == 0).long()
    features = torch.randn(400, 5, generator=generator) + labels[:, None] * 0.8
    arguments: dict[str, Any] = {"strengths": (0.01, 1e4), "halvings": 0}
    with pytest.warns(UserWarning, match="at the edge"):
        accuracy = logistic_probe(features, labels, features, **arguments)
        per_class = logistic_probe(
            features, labels, features, metric="mean_per_class_accuracy", **arguments
        )
        area = logistic_probe(features, labels, features, metric="roc_auc", **arguments)
    assert per_class.validation[1e4] == 0.5
    assert accuracy.validation[1e4] == pytest.approx(0.9)
    assert per_class.strength == 0.01
    assert 0.5 < area.validation[1e4] < 1


def test_of_equal_values_the_middle_strength_is_taken() -> None:
    labels = torch.arange(40) % 2
    features = labels[:, None] * 10.0 - 5
    result = logistic_probe(features, labels, features, strengths=(0.1, 1, 10), halvings=0)
    assert result.validation == {0.1: 1.0, 1: 1.0, 10: 1.0}
    assert result.strength == 1


def test_a_class_that_is_only_in_the_validation_part() -> None:
    train, train_labels, test, _ = digits()
    kept = train_labels != 9
    late = (train[~kept], train_labels[~kept])
    result = logistic_probe(
        train[kept], train_labels[kept], test, validation=late, strengths=(1.0,)
    )
    assert result.scores.shape == (797, 10)
    assert result.validation == {1.0: 0.0}
    assert (result.scores.argmax(dim=1) == 9).any()


def test_same_seed_same_result() -> None:
    train, train_labels, test, _ = digits()
    arguments: dict[str, Any] = {"strengths": (0.1, 10), "halvings": 0}
    with pytest.warns(UserWarning, match="at the edge"):
        first, again, other = (
            logistic_probe(train, train_labels, test, seed=seed, **arguments) for seed in (0, 0, 1)
        )
    assert torch.equal(first.scores, again.scores)
    assert first.validation == again.validation != other.validation


def test_too_few_iterations_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_regression, "MAX_ITERATIONS", 2)
    with pytest.warns(UserWarning, match="did not converge in 2 iterations"):
        logistic_probe(*digits()[:3], strengths=(1.0,))


GOOD: dict[str, Any] = {
    "train": torch.eye(4),
    "train_labels": torch.arange(4) % 2,
    "test": torch.eye(4),
    "validation_fraction": 0.5,
}
ROWS = torch.eye(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": torch.full((4, 4), torch.nan)}, "train features are not all finite"),
        ({"test": torch.eye(5)}, r"\(4, 4\).*\(5, 5\)"),
        ({"train_labels": torch.zeros(4, dtype=torch.int64)}, "two classes"),
        ({"train_labels": torch.arange(3)}, "pass one integer"),
        ({"train_labels": torch.arange(4) - 1}, "from -1 to 2: pass one integer"),
        ({"train_labels": torch.ones(4)}, "pass one integer"),
        ({"train_labels": ROWS}, "pass one integer"),
        ({"multi_label": True}, "one row of 1, 0 and -1"),
        ({"multi_label": True, "train_labels": ROWS * 2}, "from 0 to 2: pass one row"),
        (
            {"multi_label": True, "train_labels": ROWS * 0 + torch.tensor([1, 0, 0, 1])},
            "4 classes are present",
        ),
        ({"validation": (torch.eye(3), torch.arange(3))}, r"\(4, 4\).*\(3, 3\)"),
        ({"validation": (torch.eye(4), torch.ones(4))}, "validation features have labels"),
        (
            {"multi_label": True, "train_labels": ROWS, "validation": (torch.eye(4), ROWS[:, :3])},
            "validation labels have 3 columns, train labels 4",
        ),
        ({"strengths": ()}, "above 0"),
        ({"strengths": (1.0, 0.0)}, "above 0"),
        ({"strengths": (1.0, float("inf"))}, "finite"),
        ({"halvings": -1}, "at least 0 halvings"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
        ({"metric": "accuracy"}, "'accuracy'.*top_k_accuracy"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logistic_probe(**{**GOOD, **change})
