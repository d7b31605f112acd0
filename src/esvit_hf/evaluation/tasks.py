"""The tasks of an evaluation: from shared features to numbers with their protocol, and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esvit_hf.evaluation.few_shot import few_shot_accuracy
from esvit_hf.evaluation.knn import knn_predictions, ranked_accuracy
from esvit_hf.evaluation.linear_probe import linear_probe
from esvit_hf.evaluation.logistic import logistic_probe
from esvit_hf.evaluation.scoring import score
from esvit_hf.evaluation.splits import LabeledSplits
from esvit_hf.features.extraction import Features
from esvit_hf.figures.look import Picture
from esvit_hf.figures.report import draw_few_shot, draw_knn, draw_logistic, draw_probe

__all__ = [
    "FrozenData",
    "Score",
    "TaskResult",
    "percent",
    "run_few_shot",
    "run_knn",
    "run_linear_probe",
    "run_logistic",
]

_LOGISTIC_METRICS = ("top_k_accuracy", "mean_per_class_accuracy")


@dataclass(frozen=True)
class FrozenData:
    """What tasks on features share.

    Attributes:
        splits: images and labels.
        train: features of the training images.
        test: features of the test images, of as many blocks.
        device: where to compute.
        seed: of all that is random.
    """

    splits: LabeledSplits
    train: Features
    test: Features
    device: torch.device
    seed: int

    def last_blocks(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training features and labels, test features and labels."""
        train, test = self.train.last_blocks(count).values, self.test.last_blocks(count).values
        return train, self.splits.train_labels, test, self.splits.test_labels


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        metric: its name.
        value: the number; shares are in percent.
        protocol: how it was measured, in one line.
    """

    metric: str
    value: float
    protocol: str


@dataclass(frozen=True)
class TaskResult:
    """What a task found.

    Attributes:
        title: name of the task, as a reader knows it.
        protocol: how it was measured, in one paragraph.
        numbers: everything that was measured, as JSON knows it.
        scores: the numbers that stand for the model.
        pictures: figures by name.
        predicted: (M,) int64 class of each test image, None for tasks that do not classify.
    """

    title: str
    protocol: str
    numbers: dict[str, Any]
    scores: list[Score]
    pictures: dict[str, Picture] = field(default_factory=dict)
    predicted: Tensor | None = None


def percent(share: float) -> float:
    """Turn a share into percent with three decimals."""
    return round(100 * share, 3)


def run_knn(data: FrozenData, *, k: Sequence[int], temperature: Sequence[float]) -> TaskResult:
    """Measure the weighted k-NN classifier.

    Args:
        data: the features.
        k: numbers of neighbors.
        temperature: temperatures of the votes.

    Returns:
        Top-1 and top-5 for each.
    """
    train, train_labels, test, test_labels = data.last_blocks(1)
    ranked = knn_predictions(
        train, train_labels, test, k=k, temperature=temperature, device=data.device
    )
    accuracies = {
        setting: ranked_accuracy(predictions, test_labels)
        for setting, predictions in ranked.items()
    }
    rows, scores = [], []
    for (count, value), shares in accuracies.items():
        top1, top5 = map(percent, shares)
        rows.append({"k": count, "temperature": value, "top1": top1, "top5": top5})
        protocol = f"weighted k-NN on the view feature, k = {count}, T = {value:g}"
        scores += [Score("top1", top1, protocol), Score("top5", top5, protocol)]
    return TaskResult(
        title="k-NN",
        protocol=(
            "Every test image takes the votes of its k most similar training images (cosine of the "
            "view features), weighted by exp(cos / T)."
        ),
        numbers={"accuracies": rows},
        scores=scores,
        pictures={"knn": draw_knn(accuracies)},
        predicted=ranked[k[0], temperature[0]][:, 0],
    )


def run_linear_probe(
    data: FrozenData, *, blocks: Sequence[int], learning_rates: Sequence[float], epochs: int
) -> TaskResult:
    """Measure the linear probe on features that were computed once.

    Args:
        data: the features.
        blocks: numbers of last blocks to choose from.
        learning_rates: rates to choose from.
        epochs: passes over the training images.

    Returns:
        Accuracies of the chosen setting, and what it was chosen by.
    """
    result = linear_probe(
        *data.last_blocks(max(blocks)),
        block_widths=data.train.block_widths[-max(blocks) :],
        blocks=blocks,
        learning_rates=learning_rates,
        epochs=epochs,
        seed=data.seed,
        device=data.device,
    )
    top1, top5, mean = map(percent, (result.top1, result.top5, result.mean_per_class))
    protocol = (
        f"linear classifier on the last {result.blocks} blocks, SGD, {epochs} epochs, no "
        f"augmentation, rate {result.learning_rate:g}; both chosen on a tenth of the training "
        f"images"
    )
    return TaskResult(
        title="linear probe",
        protocol=(
            f"Linear classifiers on frozen features, SGD with momentum 0.9, {epochs} epochs, "
            f"cosine schedule, no augmentation. Number of last blocks and learning rate are those "
            f"that are best on a held-out tenth of the training images; that classifier is trained "
            f"again on all of them and tested once."
        ),
        numbers={
            "top1": top1,
            "top5": top5,
            "mean_per_class": mean,
            "blocks": result.blocks,
            "learning_rate": result.learning_rate,
            "validation": [
                {"blocks": count, "learning_rate": rate, "top1": percent(share)}
                for (count, rate), share in result.validation.items()
            ],
        },
        scores=[
            Score("top1", top1, protocol),
            Score("top5", top5, protocol),
            Score("mean_per_class", mean, protocol),
        ],
        pictures={
            "linear_probe": draw_probe(result.history, (result.blocks, result.learning_rate))
        },
        predicted=result.ranked[:, 0],
    )


def run_logistic(data: FrozenData) -> TaskResult:
    """Measure logistic regression, its strength chosen on held-out training images.

    Args:
        data: the features.

    Returns:
        Accuracies of the chosen strength, and what it was chosen by.
    """
    train, train_labels, test, test_labels = data.last_blocks(1)
    result = logistic_probe(train, train_labels, test, seed=data.seed, device=data.device)
    top1, mean = (
        percent(score(metric, result.scores, test_labels)) for metric in _LOGISTIC_METRICS
    )
    protocol = (
        f"logistic regression on the view feature, L2 strength {result.strength:.3g} chosen on a "
        f"fifth of the training images"
    )
    return TaskResult(
        title="logistic regression",
        protocol=(
            "L2-regularized logistic regression on the view feature (L-BFGS, to convergence). The "
            "strength is the one that is best on a held-out fifth of the training images; the last "
            "fit is on all of them."
        ),
        numbers={
            "top1": top1,
            "mean_per_class": mean,
            "strength": result.strength,
            "validation": [
                {"strength": strength, "top1": percent(share)}
                for strength, share in sorted(result.validation.items())
            ],
        },
        scores=[Score("top1", top1, protocol), Score("mean_per_class", mean, protocol)],
        pictures={"logistic": draw_logistic(result.validation, result.strength)},
        predicted=result.scores.argmax(dim=1),
    )


def run_few_shot(data: FrozenData, *, shots: Sequence[int], draws: int) -> TaskResult:
    """Measure classification from a few images a class.

    Args:
        data: the features.
        shots: images a class.
        draws: random choices of training images.

    Returns:
        Mean and spread for each number of shots.
    """
    results = few_shot_accuracy(
        *data.last_blocks(1), shots=shots, draws=draws, seed=data.seed, device=data.device
    )
    scores = [
        Score(
            f"top1_{result.shots}_shot",
            percent(result.mean),
            f"nearest class mean (centerd, cosine) of {result.shots} images a class, mean of "
            f"{draws} draws, standard deviation {100 * result.spread:.2f}",
        )
        for result in results
    ]
    return TaskResult(
        title="few-shot",
        protocol=(
            "Nearest class mean (cosine of the view features, centerd on the labeled images) of a "
            f"few training images a class, over {draws} random draws; the spread is the standard "
            f"deviation of a draw."
        ),
        numbers={
            "accuracies": [
                {
                    "shots": result.shots,
                    "top1": percent(result.mean),
                    "spread": percent(result.spread),
                    "draws": [percent(share) for share in result.draws],
                }
                for result in results
            ]
        },
        scores=scores,
        pictures={
            "few_shot": draw_few_shot(
                [result.shots for result in results],
                [result.mean for result in results],
                [result.spread for result in results],
            )
        },
    )
