"""Linear classification of frozen features: several learning rates trained at once, the best one tested."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from esvit_hf.evaluation import RANKED_CLASSES, load_metric
from esvit_hf.evaluation.features import check_matrices

__all__ = ["LEARNING_RATES", "LinearProbeResult", "linear_probe"]

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MOMENTUM = 0.9
WEIGHT_STD = 0.01
REFERENCE_BATCH = 256
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class LinearProbeResult:
    """What a linear probe measured; accuracies are in [0, 1].

    Attributes:
        top1: accuracy on the test images.
        top5: share of test images whose class is among the 5 best; 1 where there are at most 5 classes.
        mean_per_class: accuracy averaged over the classes of the test images.
        learning_rate: the chosen rate, for a batch of 256.
        validation: top-1 of each rate on the held-out part of the training images, 0 for a rate that diverged.
    """

    top1: float
    top5: float
    mean_per_class: float
    learning_rate: float
    validation: dict[float, float]


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    validation_fraction: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LinearProbeResult:
    """Train linear classifiers on features computed once, and test the best.

    All learning rates start from one initialisation and see the same batches. The rate that is best on a held-out part
    of the training images, stratified by class, is trained again on all of them and tested once. The optimizer is the
    paper's: SGD with momentum 0.9, no weight decay, rate * batch / 256 on a cosine over the epochs. Features enter as
    they are, not standardised. Unlike the paper, images are not augmented, because features are computed once.

    Args:
        train_features: (N, D).
        train_labels: (N,) integer classes from 0 up.
        test_features: (M, D).
        test_labels: (M,) integer classes.
        learning_rates: rates to try, for a batch of 256.
        epochs: passes over the training images.
        batch_size: images a step.
        validation_fraction: held-out share of the training images, between 0 and 1.
        seed: of initialisation, split and order.
        device: where to train; all features are moved there. By default where `train_features` lies.

    Returns:
        Test accuracies, the chosen rate, and the validation accuracy of each.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, fewer than two classes, test classes without a
            training image, a setting out of range, or rates that all diverge.

    Source:
        EsViT section 4.1 and appendix; DINO (arXiv 2104.14294) section 4.1.
    """
    _check(train_features, train_labels, test_features, test_labels)
    rates = sorted(set(learning_rates))
    if not rates or not rates[0] > 0 or epochs < 1 or batch_size < 1:
        raise ValueError(
            f"learning_rates are {list(learning_rates)}, epochs {epochs}, batch_size {batch_size}: all must be above 0"
        )
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}: choose a share between 0 and 1, such as 0.1")
    device = train_features.device if device is None else torch.device(device)
    features, labels = train_features.to(device, torch.float32), train_labels.to(device, torch.int64)
    held_out = _held_out(train_labels.cpu(), validation_fraction, seed).to(device)

    training = _Training(rates, epochs, batch_size, seed)
    classifiers = training.train(features[~held_out], labels[~held_out], int(labels.max()) + 1, "linear probe: rates")
    validation = dict(zip(rates, classifiers.accuracies(features[held_out], labels[held_out]), strict=True))
    chosen = max(rates, key=lambda rate: validation[rate])
    if not any(classifiers.finite()):
        raise ValueError(
            f"every learning rate of {rates} diverged: try smaller ones, or check the scale of the features"
        )
    if len(rates) > 1 and chosen in (rates[0], rates[-1]):
        warnings.warn(
            f"the best learning rate, {chosen}, is at the edge of those tried: widen learning_rates", stacklevel=2
        )

    training = _Training([chosen], epochs, batch_size, seed)
    classifier = training.train(features, labels, int(labels.max()) + 1, "linear probe: best rate")
    ranked = classifier.ranked_classes(test_features.to(device, torch.float32))
    references = test_labels.cpu().numpy()
    top_k, per_class = load_metric("top_k_accuracy"), load_metric("mean_per_class_accuracy")
    top1, top5 = (
        top_k.compute(predictions=ranked.numpy(), references=references, k=k)["top_k_accuracy"]
        for k in (1, RANKED_CLASSES)
    )
    mean = per_class.compute(predictions=ranked[:, 0].numpy(), references=references)["mean_per_class_accuracy"]
    return LinearProbeResult(top1, top5, mean, chosen, validation)


@dataclass(frozen=True)
class _LinearClassifiers:
    """Classifiers for R rates: weight (D, R, C) and bias (R, C)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, R, C) of features (B, D)."""
        return (features @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias

    def finite(self) -> list[bool]:
        finite: list[bool] = (self.weight.isfinite().all(dim=2).all(dim=0) & self.bias.isfinite().all(dim=1)).tolist()
        return finite

    def accuracies(self, features: Tensor, labels: Tensor) -> list[float]:
        hits = torch.zeros(len(self.bias), dtype=torch.int64, device=features.device)
        for rows, expected in zip(features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True):
            hits += (self.logits(rows).argmax(dim=2) == expected[:, None]).sum(dim=0)
        shares: list[float] = (hits.double() / len(labels)).tolist()
        return [share if finite else 0.0 for share, finite in zip(shares, self.finite(), strict=True)]

    def ranked_classes(self, features: Tensor) -> Tensor:
        """Best 5 classes (M, 5) of the only classifier, -1 where there are fewer, on the CPU."""
        count = min(RANKED_CLASSES, self.bias.shape[1])
        ranked = [self.logits(rows)[:, 0].topk(count, dim=1).indices.cpu() for rows in features.split(_ROWS_AT_ONCE)]
        return F.pad(torch.cat(ranked), (0, RANKED_CLASSES - count), value=-1)


@dataclass(frozen=True)
class _Training:
    """How the classifiers are trained."""

    rates: list[float]
    epochs: int
    batch_size: int
    seed: int

    def train(self, features: Tensor, labels: Tensor, classes: int, description: str) -> _LinearClassifiers:
        """Train one classifier a rate on features (N, D) and labels (N,)."""
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(features.shape[1], 1, classes, generator=generator) * WEIGHT_STD
        weight = start.repeat(1, len(self.rates), 1).to(features.device)
        bias = weight.new_zeros(len(self.rates), classes)
        classifiers = _LinearClassifiers(weight, bias)
        weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
        peaks = torch.tensor(self.rates, device=features.device)[:, None] * (self.batch_size / REFERENCE_BATCH)
        for epoch in trange(self.epochs, desc=description, unit="epoch", leave=False):
            steps = peaks * (0.5 * (1 + math.cos(math.pi * epoch / self.epochs)))
            order = torch.randperm(len(labels), generator=generator).to(features.device)
            for batch in order.split(self.batch_size):
                rows = features[batch]
                # Softmax minus one-hot is the gradient of the cross-entropy; written out, all rates share two products.
                gradient = torch.softmax(classifiers.logits(rows), dim=2)
                gradient[torch.arange(len(batch), device=features.device), :, labels[batch]] -= 1
                gradient /= len(batch)
                weight_momentum.mul_(MOMENTUM).add_((rows.T @ gradient.flatten(1)).view_as(weight))
                bias_momentum.mul_(MOMENTUM).add_(gradient.sum(dim=0))
                weight.addcmul_(weight_momentum, steps, value=-1)
                bias.addcmul_(bias_momentum, steps, value=-1)
        return classifiers


def _held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Mask (N,) of a share of every class, drawn at random; each class keeps at least one image for training."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    grouped = labels[order]
    # Evenly spaced picks from the classes laid end to end give each class its share, up to one image.
    picks = ((torch.arange(len(labels) + 1, dtype=torch.float64) * fraction).floor().diff()) > 0
    picks[0] = False
    picks[1:] &= grouped[1:] == grouped[:-1]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[picks]] = True
    if not mask.any():
        raise ValueError(
            f"validation_fraction {fraction} of {len(labels)} training images leaves none to choose the rate by: raise "
            "it or use more images"
        )
    return mask


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    check_matrices(train, test)
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if labels.shape != features.shape[:1] or labels.is_floating_point() or int(labels.min()) < 0:
            raise ValueError(
                f"{len(features)} {name} features have labels of shape {tuple(labels.shape)}, type {labels.dtype}: "
                "pass one integer from 0 up for each"
            )
    known = train_labels.unique()
    if len(known) < 2:
        raise ValueError(f"all training images have class {int(known[0])}: a classifier needs two classes or more")
    absent = test_labels.unique()
    absent = absent[~torch.isin(absent, known.to(absent.device))]
    if len(absent):
        raise ValueError(
            f"{len(absent)} test classes have no training image, for example class {int(absent[0])}: use a training "
            "split that holds every class, or drop those test images"
        )
