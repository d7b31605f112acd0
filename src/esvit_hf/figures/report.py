"""Figures of an evaluation: accuracy over what was tried, and which classes are taken for which."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from esvit_hf.figures.look import COLORS, Picture, drawing
from esvit_hf.regions.attention import AttentionEntropy
from esvit_hf.regions.correspondence import CorrespondenceResult

__all__ = [
    "draw_attention_entropy",
    "draw_confusion",
    "draw_correspondence",
    "draw_few_shot",
    "draw_knn",
    "draw_logistic",
    "draw_probe",
]

_NAMED_CLASSES = 40


def draw_knn(accuracies: Mapping[tuple[int, float], tuple[float, float]]) -> Picture:
    """Draw top-1 and top-5 over the number of neighbors, one line a temperature.

    Args:
        accuracies: top-1 and top-5 in [0, 1] for each (k, temperature).

    Returns:
        The picture.
    """
    temperatures = sorted({temperature for _, temperature in accuracies})
    counts = sorted({k for k, _ in accuracies})
    with drawing(6.3, 2.6) as picture:
        panels = picture.figure.subplots(1, 2)
        for place, (axes, title) in enumerate(zip(panels, ("top-1", "top-5"), strict=True)):
            for temperature in temperatures:
                values = [100 * accuracies[k, temperature][place] for k in counts]
                axes.plot(counts, values, marker="o", label=f"T = {temperature:g}")
            axes.set(
                xscale="log", xlabel="neighbors k", ylabel=f"{title} (%)", title=f"k-NN, {title}"
            )
            axes.set_xticks(counts, [str(k) for k in counts])
            axes.minorticks_off()
        panels[0].legend()
    return picture


def draw_probe(
    history: Mapping[tuple[int, float], Sequence[float]], chosen: tuple[int, float]
) -> Picture:
    """Draw what a linear probe was chosen by: held-out accuracy over learning rates, and over the
    epochs.

    Args:
        history: held-out top-1 in [0, 1] after each epoch, for each (blocks, learning rate).
        chosen: the setting that was taken.

    Returns:
        The picture.
    """
    with drawing(6.3, 2.6) as picture:
        over_rates, over_epochs = picture.figure.subplots(1, 2)
        for blocks in sorted({blocks for blocks, _ in history}):
            rates = sorted(rate for count, rate in history if count == blocks)
            shares = [100 * history[blocks, rate][-1] for rate in rates]
            label = f"last {blocks} blocks" if blocks > 1 else "last block"
            over_rates.plot(rates, shares, marker="o", label=label)
            best = max(rates, key=lambda rate: history[blocks, rate][-1])
            curve = [100 * share for share in history[blocks, best]]
            over_epochs.plot(range(1, len(curve) + 1), curve, label=f"{label}, rate {best:g}")
        over_rates.plot(
            chosen[1], 100 * history[chosen][-1], "s", color="black", fillstyle="none", markersize=9
        )
        over_rates.set(
            xscale="log",
            xlabel="learning rate",
            ylabel="held-out top-1 (%)",
            title="Linear probe: choice",
        )
        over_epochs.set(
            xlabel="epoch", ylabel="held-out top-1 (%)", title="Linear probe: best rates"
        )
        for axes in (over_rates, over_epochs):
            axes.legend()
    return picture


def draw_few_shot(
    shots: Sequence[int], means: Sequence[float], spreads: Sequence[float]
) -> Picture:
    """Draw accuracy over the number of labeled images a class.

    Args:
        shots: images a class.
        means: mean top-1 in [0, 1] over the draws.
        spreads: standard deviation over the draws, drawn as bars.

    Returns:
        The picture.
    """
    with drawing(3.2, 2.6) as picture:
        axes = picture.figure.subplots()
        heights, bars = [100 * mean for mean in means], [100 * spread for spread in spreads]
        axes.errorbar(shots, heights, yerr=bars, marker="o", capsize=3)
        axes.set(xlabel="images a class", ylabel="top-1 (%)", title="Few-shot")
        axes.set_xticks(shots)
    return picture


def draw_logistic(validation: Mapping[float, float], chosen: float) -> Picture:
    """Draw held-out accuracy over the L2 strengths of a logistic regression.

    Args:
        validation: held-out accuracy in [0, 1] for each strength.
        chosen: the strength that was taken.

    Returns:
        The picture.
    """
    with drawing(3.2, 2.6) as picture:
        axes = picture.figure.subplots()
        strengths = sorted(validation)
        axes.plot(strengths, [100 * validation[strength] for strength in strengths], marker="o")
        axes.plot(
            chosen, 100 * validation[chosen], "s", color="black", fillstyle="none", markersize=9
        )
        axes.set(
            xscale="log",
            xlabel="L2 strength",
            ylabel="held-out top-1 (%)",
            title="Logistic regression: choice",
        )
    return picture


def draw_correspondence(results: Sequence[CorrespondenceResult]) -> Picture:
    """Draw accuracy in the true cell and within one cell of it, beside chance.

    Args:
        results: one a protocol.

    Returns:
        The picture.
    """
    with drawing(4.2, 2.6) as picture:
        axes = picture.figure.subplots()
        ticks: dict[int, str] = {}
        for place, result in enumerate(results):
            pairs = (
                (result.accuracy, result.chance_accuracy, "true cell"),
                (result.accuracy_within_one, result.chance_accuracy_within_one, "within one"),
            )
            for offset, (share, chance, name) in enumerate(pairs):
                position = 3 * place + offset
                ticks[position] = f"{result.protocol}\n{name}"
                axes.bar(position, 100 * share, color=COLORS[0])
                axes.hlines(100 * chance, position - 0.45, position + 0.45, color=COLORS[1])
        axes.set(ylabel="accuracy (%)", ylim=(0, 100), title="Correspondence")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.grid(False, axis="x")
        axes.legend([axes.patches[0], axes.collections[0]], ["measured", "chance"])
    return picture


def draw_attention_entropy(heads: Sequence[AttentionEntropy]) -> Picture:
    """Draw the entropy of every head over the blocks.

    Args:
        heads: one record a head.

    Returns:
        The picture.
    """
    with drawing(4.2, 2.6) as picture:
        axes = picture.figure.subplots()
        largest = {head.layer: head.largest for head in heads}
        axes.plot(
            [head.layer for head in heads],
            [head.entropy for head in heads],
            "o",
            alpha=0.7,
            label="head",
        )
        axes.plot(
            list(largest), list(largest.values()), "_", markersize=14, label="largest possible"
        )
        top = 1.1 * max(largest.values())
        axes.set(xlabel="block", ylabel="entropy (bits)", ylim=(0, top), title="Attention entropy")
        axes.set_xticks(list(largest))
        axes.legend()
    return picture


def draw_confusion(
    predicted: Tensor, labels: Tensor, class_names: Sequence[str], title: str
) -> Picture:
    """Draw the share of each class's images that is taken for each class.

    Args:
        predicted: (M,) int64 classes.
        labels: (M,) int64 true classes.
        class_names: name of each class; written beside the axes for up to 40 classes.
        title: of the figure.

    Returns:
        The picture.
    """
    from sklearn.metrics import confusion_matrix

    classes = range(len(class_names))
    shares = 100 * confusion_matrix(
        labels.numpy(), predicted.numpy(), labels=classes, normalize="true"
    )
    named = len(class_names) <= _NAMED_CLASSES
    side = min(6.3, 2.8 + 0.2 * len(class_names)) if named else 5.0
    with drawing(side, 0.85 * side) as picture:
        axes = picture.figure.subplots()
        image = axes.imshow(shares, vmin=0, vmax=100)
        picture.figure.colorbar(image, ax=axes, label="share of the true class (%)", fraction=0.046)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class", title=title)
        if named:
            size = 8 if len(class_names) <= 20 else 6
            axes.set_xticks(classes, class_names, rotation=90, fontsize=size)
            axes.set_yticks(classes, class_names, fontsize=size)
    return picture
