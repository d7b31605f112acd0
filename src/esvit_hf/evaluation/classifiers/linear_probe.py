"""Linear classification of frozen features: many settings trained at once, the best one tested."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import trange

from esvit_hf.evaluation.linear import LEARNING_RATES
from esvit_hf.evaluation.metrics import RANKED_CLASSES, load_metric
from esvit_hf.evaluation.splits import check_classes, held_out
from esvit_hf.features.extraction import check_matrices

__all__ = ["LinearProbeResult", "linear_probe"]

MOMENTUM = 0.9
WEIGHT_STD = 0.01
REFERENCE_BATCH = 256
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class LinearProbeResult:
    """What a linear probe measured; accuracies are in [0, 1].

    Attributes:
        top1: accuracy on the test images.
        top5: share of test images whose class is among the 5 best; 1 where there are at most 5
            classes.
        mean_per_class: accuracy averaged over the classes of the test images.
        blocks: the chosen number of last blocks.
        learning_rate: the chosen rate, for a batch of 256.
        validation_share: share of the training images that was held out, to choose by.
        history: top-1 on the held-out part of the training images after each epoch, for each
            (blocks, rate).
        ranked: int64 (M, 5), the best classes of each test image, -1 where there are fewer.
        weight: (C, D) of the tested classifier, on the CPU.
        bias: (C,) of the tested classifier, on the CPU.
    """

    top1: float
    top5: float
    mean_per_class: float
    blocks: int
    learning_rate: float
    validation_share: float
    history: dict[tuple[int, float], list[float]]
    ranked: Tensor = field(compare=False, repr=False)
    weight: Tensor = field(compare=False, repr=False)
    bias: Tensor = field(compare=False, repr=False)

    @property
    def validation(self) -> dict[tuple[int, float], float]:
        """Top-1 on the held-out part after the last epoch, for each (blocks, rate); 0 for a rate
        that diverged.
        """
        return {setting: shares[-1] for setting, shares in self.history.items()}


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    block_widths: Sequence[int] | None = None,
    blocks: Sequence[int] = (1,),
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    validation_fraction: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
    augmented: Callable[[int], Tensor] | None = None,
    progress: bool = True,
) -> LinearProbeResult:
    """Train linear classifiers on frozen features, and test the best.

    A classifier for each number of last blocks and each learning rate is trained; all start from
    one initialization and see the same batches. The one that is best on a held-out part of the
    training images, stratified by class, is trained again on all of them and tested once. The
    optimizer is the paper's: SGD with momentum 0.9, no weight decay, rate * batch / 256 on a cosine
    over the epochs. Features enter as they are, not standardized. The paper augments the images, so
    that their features are new in every epoch: pass `augmented` for that.

    Args:
        train_features: (N, D).
        train_labels: (N,) integer classes from 0 up.
        test_features: (M, D).
        test_labels: (M,) integer classes.
        block_widths: columns of each block, from the earliest to the last; by default all columns
            are one block.
        blocks: numbers of last blocks to try.
        learning_rates: rates to try, for a batch of 256.
        epochs: passes over the training images.
        batch_size: images a step.
        validation_fraction: held-out share of the training images, between 0 and 1.
        seed: of initialization, split and order.
        device: where to train; all features are moved there. By default where `train_features`
            lies.
        augmented: features (N, D) of augmented training images for an epoch, counted from 0. The
            final classifiers are then trained beside those that are compared, so that it is called
            once an epoch. `train_features`, of the images as they are, still serve the comparison.
        progress: show a progress bar.

    Returns:
        Test accuracies, the chosen setting, and the validation accuracies of each.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, fewer than two classes,
            test classes without a training image, a setting out of range, or rates that all
            diverge.

    Source:
        EsViT section 4.1 and appendix; DINO (arXiv 2104.14294) section 4.1.
    """
    _check(train_features, train_labels, test_features, test_labels)
    columns = _columns(train_features.shape[1], block_widths, blocks)
    rates = sorted(set(learning_rates))
    if not rates or not rates[0] > 0 or epochs < 1 or batch_size < 1:
        raise ValueError(
            f"learning_rates are {list(learning_rates)}, epochs {epochs}, batch_size {batch_size}: "
            f"all must be above 0"
        )
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}: choose a share between 0 and 1, such "
            f"as 0.1"
        )
    device = train_features.device if device is None else torch.device(device)
    features, labels = (
        train_features.to(device, torch.float32),
        train_labels.to(device, torch.int64),
    )
    validated = held_out(train_labels.cpu(), validation_fraction, seed).to(device)
    schedule = _Schedule(epochs, batch_size, seed, int(labels.max()) + 1)
    compared = _Training(columns, rates, schedule, device)
    final = _Training(columns, rates, schedule, device)
    kept = features[~validated]

    def epoch_features(epoch: int) -> Tensor:
        if augmented is None:
            return kept
        changed = augmented(epoch).to(device, torch.float32)
        final.run_epoch(changed, labels)
        return changed[~validated]

    history = _compare(
        compared,
        epoch_features,
        labels[~validated],
        features[validated],
        labels[validated],
        progress=progress,
    )
    count, rate = _best(history, compared.finite(), rates)
    if augmented is None:
        final = _Training({count: columns[count]}, [rate], schedule, device)
        for _ in trange(
            epochs, desc="linear probe, chosen", unit="epoch", leave=False, disable=not progress
        ):
            final.run_epoch(features, labels)
    ranked = final.ranked_classes(test_features.to(device, torch.float32), count, rate)
    weight, bias = final.parameters(count, rate)
    return LinearProbeResult(
        *_accuracies(ranked, test_labels),
        count,
        rate,
        float(validated.float().mean()),
        history,
        ranked,
        weight,
        bias,
    )


def _compare(
    compared: "_Training",
    epoch_features: Callable[[int], Tensor],
    labels: Tensor,
    validation_features: Tensor,
    validation_labels: Tensor,
    *,
    progress: bool,
) -> dict[tuple[int, float], list[float]]:
    """Train on the features of each epoch; top-1 on the validation images after each."""
    history: dict[tuple[int, float], list[float]] = {setting: [] for setting in compared.settings()}
    for epoch in trange(
        compared.schedule.epochs,
        desc="linear probe",
        unit="epoch",
        leave=False,
        disable=not progress,
    ):
        compared.run_epoch(epoch_features(epoch), labels)
        for setting, share in compared.accuracies(validation_features, validation_labels).items():
            history[setting].append(share)
    return history


def _best(
    history: Mapping[tuple[int, float], Sequence[float]],
    finite: Mapping[tuple[int, float], bool],
    rates: Sequence[float],
) -> tuple[int, float]:
    """Number of blocks and rate of the highest held-out accuracy."""
    count, rate = max(history, key=lambda setting: (history[setting][-1], finite[setting]))
    if not any(finite.values()):
        raise ValueError(
            f"every learning rate of {rates} diverged: try smaller ones, or check the scale of the "
            f"features"
        )
    if len(rates) > 1 and rate in (rates[0], rates[-1]):
        warnings.warn(
            f"the best learning rate, {rate}, is at the edge of those tried: widen learning_rates",
            stacklevel=3,
        )
    return count, rate


def _accuracies(ranked: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Top-1, top-5 and mean per class of ranked classes (M, 5)."""
    references = labels.cpu().numpy()
    top_k, per_class = load_metric("top_k_accuracy"), load_metric("mean_per_class_accuracy")
    top1, top5 = (
        top_k.compute(predictions=ranked.numpy(), references=references, k=k)["top_k_accuracy"]
        for k in (1, RANKED_CLASSES)
    )
    mean = per_class.compute(predictions=ranked[:, 0].numpy(), references=references)
    return top1, top5, mean["mean_per_class_accuracy"]


@dataclass(frozen=True)
class _Schedule:
    """How long classifiers are trained, in which steps, and between how many classes."""

    epochs: int
    batch_size: int
    seed: int
    classes: int


class _LinearClassifiers:
    """Classifiers of R rates on the last D columns: weight (D, R, C), bias (R, C), and their
    momentum.
    """

    def __init__(self, start: Tensor, rates: int, device: torch.device) -> None:
        self.weight = start.repeat(1, rates, 1).to(device)
        self.bias = self.weight.new_zeros(rates, start.shape[2])
        self._weight_momentum, self._bias_momentum = (
            torch.zeros_like(self.weight),
            torch.zeros_like(self.bias),
        )

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, R, C) of features (B, D or more)."""
        used = features[:, -len(self.weight) :]
        return (used @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias

    def step(self, features: Tensor, labels: Tensor, rates: Tensor) -> None:
        """One step of SGD with rates (R, 1)."""
        # Softmax minus one-hot is the gradient of the cross-entropy; written out, all rates share
        # two products.
        gradient = torch.softmax(self.logits(features), dim=2)
        gradient[torch.arange(len(labels), device=features.device), :, labels] -= 1
        gradient /= len(labels)
        used = features[:, -len(self.weight) :]
        self._weight_momentum.mul_(MOMENTUM).add_(
            (used.T @ gradient.flatten(1)).view_as(self.weight)
        )
        self._bias_momentum.mul_(MOMENTUM).add_(gradient.sum(dim=0))
        self.weight.addcmul_(self._weight_momentum, rates, value=-1)
        self.bias.addcmul_(self._bias_momentum, rates, value=-1)

    def finite(self) -> list[bool]:
        finite: list[bool] = (
            self.weight.isfinite().all(dim=2).all(dim=0) & self.bias.isfinite().all(dim=1)
        ).tolist()
        return finite

    def accuracies(self, features: Tensor, labels: Tensor) -> list[float]:
        hits = torch.zeros(len(self.bias), dtype=torch.int64, device=features.device)
        for rows, expected in zip(
            features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True
        ):
            hits += (self.logits(rows).argmax(dim=2) == expected[:, None]).sum(dim=0)
        shares: list[float] = (hits.double() / len(labels)).tolist()
        return [
            share if finite else 0.0 for share, finite in zip(shares, self.finite(), strict=True)
        ]


class _Training:
    """One classifier for each number of blocks and each rate, trained together epoch by epoch.

    Args:
        columns: how many last columns of the features each number of blocks takes.
        rates: learning rates.
        schedule: epochs, steps and classes.
        device: where to train.
    """

    def __init__(
        self,
        columns: Mapping[int, int],
        rates: Sequence[float],
        schedule: _Schedule,
        device: torch.device,
    ) -> None:
        self.rates, self.schedule = rates, schedule
        self.generator = torch.Generator().manual_seed(schedule.seed)
        start = (
            torch.randn(max(columns.values()), 1, schedule.classes, generator=self.generator)
            * WEIGHT_STD
        )
        self.classifiers = {
            count: _LinearClassifiers(start[-width:], len(rates), device)
            for count, width in columns.items()
        }
        self.peaks = torch.tensor(rates, device=device)[:, None] * (
            schedule.batch_size / REFERENCE_BATCH
        )
        self.epoch = 0

    def settings(self) -> list[tuple[int, float]]:
        return [(count, rate) for count in self.classifiers for rate in self.rates]

    def run_epoch(self, features: Tensor, labels: Tensor) -> None:
        """Pass once over features (N, D) and labels (N,) in a random order."""
        rates = self.peaks * (0.5 * (1 + math.cos(math.pi * self.epoch / self.schedule.epochs)))
        order = torch.randperm(len(labels), generator=self.generator).to(features.device)
        for batch in order.split(self.schedule.batch_size):
            rows, expected = features[batch], labels[batch]
            for classifiers in self.classifiers.values():
                classifiers.step(rows, expected, rates)
        self.epoch += 1

    def accuracies(self, features: Tensor, labels: Tensor) -> dict[tuple[int, float], float]:
        shares = [
            share
            for each in self.classifiers.values()
            for share in each.accuracies(features, labels)
        ]
        return dict(zip(self.settings(), shares, strict=True))

    def finite(self) -> dict[tuple[int, float], bool]:
        finite = [value for each in self.classifiers.values() for value in each.finite()]
        return dict(zip(self.settings(), finite, strict=True))

    def parameters(self, count: int, rate: float) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of one classifier, on the CPU."""
        classifiers, place = self.classifiers[count], self.rates.index(rate)
        return classifiers.weight[:, place].T.cpu(), classifiers.bias[place].cpu()

    def ranked_classes(self, features: Tensor, count: int, rate: float) -> Tensor:
        """Best 5 classes (M, 5) of one classifier, -1 where there are fewer, on the CPU."""
        classifiers, place = self.classifiers[count], self.rates.index(rate)
        best = min(RANKED_CLASSES, self.schedule.classes)
        ranked = [
            classifiers.logits(rows)[:, place].topk(best, dim=1).indices.cpu()
            for rows in features.split(_ROWS_AT_ONCE)
        ]
        return F.pad(torch.cat(ranked), (0, RANKED_CLASSES - best), value=-1)


def _columns(
    width: int, block_widths: Sequence[int] | None, blocks: Sequence[int]
) -> dict[int, int]:
    """Number of last columns for each number of blocks."""
    widths = [width] if block_widths is None else list(block_widths)
    if sum(widths) != width or min(widths) < 1:
        raise ValueError(
            f"block_widths are {widths} and the features have {width} columns: both must agree"
        )
    counts = sorted(set(blocks))
    if not counts or counts[0] < 1 or counts[-1] > len(widths):
        raise ValueError(
            f"blocks are {list(blocks)} and the features hold {len(widths)} blocks: give at least "
            f"one number from 1 to {len(widths)}"
        )
    return {count: sum(widths[-count:]) for count in counts}


def _check(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    check_matrices(train, test)
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if (
            labels.shape != features.shape[:1]
            or labels.is_floating_point()
            or int(labels.min()) < 0
        ):
            raise ValueError(
                f"{len(features)} {name} features have labels of shape {tuple(labels.shape)}, type "
                f"{labels.dtype}: pass one integer from 0 up for each"
            )
    check_classes(train_labels, test_labels)
