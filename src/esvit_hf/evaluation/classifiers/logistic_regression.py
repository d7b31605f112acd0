"""Logistic regression on frozen features, its L2 strength chosen on validation data: the linear
probe of CLIP.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from esvit_hf.evaluation.scoring import score
from esvit_hf.evaluation.splits import held_out
from esvit_hf.features.extraction import check_matrices

__all__ = ["HALVINGS", "STRENGTHS", "LogisticResult", "logistic_probe"]

STRENGTHS = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
HALVINGS = 4
MAX_ITERATIONS = 1000
# Of the mean loss. It then ends within about 1e-8 of its minimum, as the tests compare with
# scikit-learn.
GRADIENT_TOLERANCE = 1e-7
LOSS_TOLERANCE = 1e-10


@dataclass(frozen=True)
class LogisticResult:
    """What a logistic probe found.

    Attributes:
        scores: (M, C) float64 logits of the test images on the CPU; with two classes the first
            column is 0.
        strength: the chosen L2 strength.
        validation: value of the metric, in [0, 1], for each strength tried.
        validation_share: share of the images of the last fit that the strength was chosen on.
    """

    scores: Tensor
    strength: float
    validation: dict[float, float]
    validation_share: float


def logistic_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    halvings: int = HALVINGS,
    validation: tuple[Tensor, Tensor] | None = None,
    validation_fraction: float = 0.2,
    multi_label: bool = False,
    metric: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LogisticResult:
    """Fit logistic regression on features as they are, and score the test images.

    Minimizes the summed cross-entropy plus `strength` / 2 times the squared weights, the bias left
    free: scikit-learn's `LogisticRegression(C=1 / strength)`, in float64 with L-BFGS. The strength
    is searched on a logarithmic scale: the given ones first, then the midpoints between the best
    and its neighbors, `halvings` times. With the defaults that is CLIP's search: 1e-6 to 1e6 in
    steps of 100, down to 8 steps a decade. Of equally good strengths the middle one is taken. The
    last fit is on training and validation images together.

    Args:
        train: (N, D) features.
        train_labels: (N,) classes from 0 up: softmax, or one sigmoid if there are two. With
            `multi_label` (N, C) of 1 (present), 0 (absent) and -1 (not counted): one sigmoid a
            class.
        test: (M, D) features.
        strengths: L2 strengths to try first.
        halvings: how often the spacing around the best one is halved; 0 tries `strengths` alone.
        validation: features and labels to choose by; a share of the training images is held out if
            None, of each class unless `multi_label`.
        validation_fraction: that share, between 0 and 1.
        multi_label: any number of classes an image.
        metric: one of `METRICS` to choose by; accuracy by default, 11-point mean average precision
            with `multi_label`.
        seed: of the held-out draw.
        device: where to compute; by default where `train` lies, the CPU if that knows no float64.

    Returns:
        Test scores, the chosen strength, and the validation value of each strength tried.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, labels of another kind, a
            class that all or no training images have, or a setting out of range.

    Source:
        CLIP (arXiv 2103.00020) appendix A.3, which EsViT follows for its 18 transfer data sets.
    """
    tried = sorted(set(strengths))
    if not tried or not tried[0] > 0 or not math.isfinite(tried[-1]) or halvings < 0:
        raise ValueError(
            f"strengths are {list(strengths)}, halvings {halvings}: give finite strengths above 0, "
            f"at least 0 halvings"
        )
    if validation is None and not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}: choose a share between 0 and 1, such "
            f"as 0.2"
        )
    check_matrices(train, test)
    _check_labels("train", train, train_labels, multi_label)
    if validation is None:
        groups = torch.zeros(len(train), dtype=torch.int64) if multi_label else train_labels.cpu()
        is_validation = held_out(groups, validation_fraction, seed)
        features, labels = train, train_labels
    else:
        check_matrices(train, validation[0])
        _check_labels("validation", *validation, multi_label)
        if multi_label and validation[1].shape[1] != train_labels.shape[1]:
            raise ValueError(
                f"validation labels have {validation[1].shape[1]} columns, train labels "
                f"{train_labels.shape[1]}: pass one column a class in both"
            )
        is_validation = torch.arange(len(train) + len(validation[0])) >= len(train)
        features = torch.cat([train, validation[0].to(train.device)])
        labels = torch.cat([train_labels, validation[1].to(train_labels)])
    _check_classes(labels, multi_label)
    metric = metric or ("interpolated_mean_average_precision" if multi_label else "top_k_accuracy")

    device = features.device if device is None else torch.device(device)
    # Metal has no float64.
    device = torch.device("cpu") if device.type == "mps" else device
    features, labels, is_validation = (
        features.to(device, torch.float64),
        labels.to(device),
        is_validation.to(device),
    )
    classes = labels.shape[1] if multi_label else int(labels.max()) + 1
    values = _search(features, labels, is_validation, classes, tried, halvings, metric)
    best = _best(values)
    if len(values) > 1 and best in (min(values), max(values)):
        warnings.warn(
            f"the best L2 strength, {best:g}, is at the edge of those tried: widen strengths",
            stacklevel=2,
        )
    classifier = _Problem(features, labels, classes).fit(best)
    if not classifier.converged:
        warnings.warn(
            f"the last fit, with L2 strength {best:g}, did not converge in {MAX_ITERATIONS} "
            f"iterations",
            stacklevel=2,
        )
    scores = classifier.scores(test.to(device, torch.float64)).cpu()
    return LogisticResult(scores, best, values, float(is_validation.double().mean()))


def _search(
    features: Tensor,
    labels: Tensor,
    is_validation: Tensor,
    classes: int,
    strengths: list[float],
    halvings: int,
    metric: str,
) -> dict[float, float]:
    """Value on the validation images of each strength tried, in ascending order of strength."""
    problem = _Problem(features[~is_validation], labels[~is_validation], classes)
    rows, expected = features[is_validation], labels[is_validation]
    values: dict[float, float] = {}
    fits = len(strengths) + 2 * halvings
    with tqdm(total=fits, desc="logistic regression", unit="fit", leave=False) as progress:
        for step in range(halvings + 1):
            for strength in _with_midpoints(sorted(values), _best(values)) if step else strengths:
                if strength not in values:
                    values[strength] = score(metric, problem.fit(strength).scores(rows), expected)
                    progress.update()
    return dict(sorted(values.items()))


@dataclass(frozen=True)
class _Classifier:
    """Linear classifier of C classes: weight (D, K) and bias (K,), K = 1 if one sigmoid stands for
    two classes.
    """

    weight: Tensor
    bias: Tensor
    classes: int
    converged: bool

    def scores(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        logits = features @ self.weight + self.bias
        return F.pad(logits, (self.classes - logits.shape[1], 0))


class _Problem:
    """Training data in coordinates that suit the optimizer.

    Centered features change only the bias, and features turned into their principal axes only turn
    the weights, whose norm stays. In these axes the curvature is nearly diagonal, so scaled weights
    make L-BFGS quick at every strength.

    Args:
        features: (N, D) float64.
        labels: (N,) classes, or (N, C) of 1, 0 and -1 (not counted).
        classes: C, of which a part of the data may lack some.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        # Columns stand for sigmoids; of two classes one is enough.
        self.targets = labels[:, None] if labels.ndim == 1 and classes == 2 else labels
        self.classes = classes
        self.mean = features.mean(dim=0)
        centered = features - self.mean
        # The triangular factor has the axes of the features, and is as small as they allow.
        _, self.spread, self.axes = torch.linalg.svd(
            torch.linalg.qr(centered, mode="r").R, full_matrices=False
        )
        self.features = centered @ self.axes.T

    def fit(self, strength: float) -> _Classifier:
        """Find the minimum for one L2 strength."""
        images = len(self.features)
        sigmoids = self.targets.ndim == 2
        outputs = self.targets.shape[1] if sigmoids else self.classes
        curvature = 1 / 4 if sigmoids else 1 / outputs
        scale = (self.spread.square() * (curvature / images) + strength / images).rsqrt()[:, None]
        bias_scale = curvature**-0.5
        parameters = self.features.new_zeros(len(scale) + 1, outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [parameters],
            max_iter=MAX_ITERATIONS,
            tolerance_grad=GRADIENT_TOLERANCE,
            tolerance_change=LOSS_TOLERANCE,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            weight = parameters[:-1] * scale
            logits = self.features @ weight + parameters[-1] * bias_scale
            loss = (
                _cross_entropy(logits, self.targets) + 0.5 * strength * weight.square().sum()
            ) / images
            loss.backward()
            return loss

        optimizer.step(objective)
        weight = self.axes.T @ (parameters[:-1].detach() * scale)
        bias = parameters[-1].detach() * bias_scale - self.mean @ weight
        done, bounds = optimizer.state[parameters], optimizer.param_groups[0]
        converged = done["n_iter"] < bounds["max_iter"] and done["func_evals"] < bounds["max_eval"]
        return _Classifier(weight, bias, self.classes, converged)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of logits (N, K): of a softmax for targets (N,), of sigmoids for targets
    (N, K).
    """
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets, reduction="sum")
    counted = (targets >= 0).to(logits)
    return F.binary_cross_entropy_with_logits(
        logits, targets.clamp(min=0).to(logits), counted, reduction="sum"
    )


def _best(values: dict[float, float]) -> float:
    """The middle one of the strengths with the highest value."""
    equal = sorted(strength for strength, value in values.items() if value == max(values.values()))
    return equal[len(equal) // 2]


def _with_midpoints(strengths: list[float], best: float) -> list[float]:
    """Add the geometric means of the best of sorted strengths and its neighbors."""
    index = strengths.index(best)
    neighbors = strengths[max(0, index - 1) : index] + strengths[index + 1 : index + 2]
    return sorted([*strengths, *(math.sqrt(best * neighbor) for neighbor in neighbors)])


def _check_labels(name: str, features: Tensor, labels: Tensor, multi_label: bool) -> None:
    matrix = labels.shape[:1] == features.shape[:1] and labels.ndim == 2 and labels.shape[1] > 0
    fits = matrix if multi_label else labels.shape == features.shape[:1]
    wanted = "one row of 1, 0 and -1 for each" if multi_label else "one integer from 0 up for each"
    if not fits or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{len(features)} {name} features have labels of shape {tuple(labels.shape)}, type "
            f"{labels.dtype}: pass {wanted}"
        )
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if lowest < (-1 if multi_label else 0) or (multi_label and highest > 1):
        raise ValueError(f"{name} labels go from {lowest} to {highest}: pass {wanted}")


def _check_classes(labels: Tensor, multi_label: bool) -> None:
    if not multi_label:
        if len(labels.unique()) < 2:
            raise ValueError(
                f"all training images have class {int(labels[0])}: a classifier needs two classes "
                f"or more"
            )
        return
    one_sided = ~((labels == 1).any(dim=0) & (labels == 0).any(dim=0))
    if one_sided.any():
        raise ValueError(
            f"{int(one_sided.sum())} classes are present in all or in no training images, for "
            f"example class {int(one_sided.nonzero()[0])}: leave them out"
        )
