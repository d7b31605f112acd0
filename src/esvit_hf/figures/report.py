"""Figures of an evaluation: accuracy over what was tried, and which classes are taken for which."""

from collections.abc import Mapping, Sequence

import numpy as np

from esvit_hf.figures.look import COLORS, Picture, new_picture

__all__ = [
    "plot_attention_entropy",
    "plot_confusion",
    "plot_correspondence_accuracy",
    "plot_feature_map",
    "plot_few_shot",
    "plot_knn",
    "plot_linear_probe",
    "plot_logistic",
]

_NAMED_CLASSES = 40
_MARKERS = ("o", "^")


def plot_knn(accuracies: Mapping[tuple[int, float], tuple[float, float]]) -> Picture:
    """Plot top-1 and top-5 over the number of neighbors, one line a temperature.

    Args:
        accuracies: top-1 and top-5 in [0, 1] for each (k, temperature).

    Returns:
        The picture.
    """
    temperatures = sorted({temperature for _, temperature in accuracies})
    counts = sorted({k for k, _ in accuracies})
    with new_picture(6.3, 2.6) as picture:
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


def plot_linear_probe(
    history: Mapping[tuple[int, float], Sequence[float]], chosen: tuple[int, float]
) -> Picture:
    """Plot what a linear probe was chosen by: held-out accuracy over learning rates, and over the
    epochs.

    Args:
        history: held-out top-1 in [0, 1] after each epoch, for each (blocks, learning rate).
        chosen: the setting that was taken.

    Returns:
        The picture.
    """
    with new_picture(6.3, 2.6) as picture:
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


def plot_few_shot(
    shots: Sequence[int], means: Sequence[float], spreads: Sequence[float]
) -> Picture:
    """Plot accuracy over the number of labeled images a class.

    Args:
        shots: images a class.
        means: mean top-1 in [0, 1] over the draws.
        spreads: standard deviation over the draws, drawn as bars.

    Returns:
        The picture.
    """
    with new_picture(3.2, 2.6) as picture:
        axes = picture.figure.subplots()
        heights, bars = [100 * mean for mean in means], [100 * spread for spread in spreads]
        axes.errorbar(shots, heights, yerr=bars, marker="o", capsize=3)
        axes.set(xlabel="images a class", ylabel="top-1 (%)", title="Few-shot")
        axes.set_xticks(shots)
    return picture


def plot_logistic(validation: Mapping[float, float], chosen: float) -> Picture:
    """Plot held-out accuracy over the L2 strengths of a logistic regression.

    Args:
        validation: held-out accuracy in [0, 1] for each strength.
        chosen: the strength that was taken.

    Returns:
        The picture.
    """
    with new_picture(3.2, 2.6) as picture:
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


def plot_correspondence_accuracy(
    protocols: Mapping[str, Mapping[str, tuple[float, float]]],
) -> Picture:
    """Plot how many regions are matched with their place, beside chance.

    Args:
        protocols: for each protocol, by what counts as a hit, the share in [0, 1] and that of
            chance.

    Returns:
        The picture.
    """
    with new_picture(4.2, 2.6) as picture:
        axes = picture.figure.subplots()
        ticks: dict[int, str] = {}
        for place, (protocol, shares) in enumerate(protocols.items()):
            for offset, (hit, (share, chance)) in enumerate(shares.items()):
                position = 3 * place + offset
                ticks[position] = f"{protocol}\n{hit}"
                axes.bar(position, 100 * share, color=COLORS[0])
                axes.hlines(100 * chance, position - 0.45, position + 0.45, color=COLORS[1])
        axes.set(ylabel="accuracy (%)", ylim=(0, 100), title="Correspondence")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.grid(False, axis="x")
        axes.legend([axes.patches[0], axes.collections[0]], ["measured", "chance"])
    return picture


def plot_attention_entropy(
    entropies: Mapping[int, Sequence[float]], largest: Mapping[int, float]
) -> Picture:
    """Plot the entropy of every head over the blocks.

    Args:
        entropies: of the heads of each block, in bits.
        largest: the largest possible entropy of each block, in bits.

    Returns:
        The picture.
    """
    with new_picture(4.2, 2.6) as picture:
        axes = picture.figure.subplots()
        heads = [(block, entropy) for block, row in entropies.items() for entropy in row]
        axes.plot(*zip(*heads, strict=True), "o", alpha=0.7, label="head")
        axes.plot(
            list(largest), list(largest.values()), "_", markersize=14, label="largest possible"
        )
        top = 1.1 * max(largest.values())
        axes.set(xlabel="block", ylabel="entropy (bits)", ylim=(0, top), title="Attention entropy")
        axes.set_xticks(list(largest))
        axes.legend()
    return picture


def plot_confusion(
    predicted: Sequence[int], labels: Sequence[int], class_names: Sequence[str], title: str
) -> Picture:
    """Plot the share of each class's images that is taken for each class.

    Args:
        predicted: M classes.
        labels: M true classes.
        class_names: name of each class; written beside the axes for up to 40 classes.
        title: of the figure.

    Returns:
        The picture.
    """
    from sklearn.metrics import confusion_matrix

    classes = range(len(class_names))
    shares = 100 * confusion_matrix(labels, predicted, labels=classes, normalize="true")
    named = len(class_names) <= _NAMED_CLASSES
    side = min(6.3, 2.8 + 0.2 * len(class_names)) if named else 5.0
    with new_picture(side, 0.85 * side) as picture:
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


def plot_feature_map(places: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Picture:
    """Plot images as points, in the color of their class.

    Args:
        places: (M, 2) of the images; (M, 1) lie on a line.
        labels: (M,) int64 classes.
        class_names: name of each class. The most frequent classes have a color and a marker; the
            others are gray.

    Returns:
        The picture.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    frequent = np.argsort(-counts, kind="stable")[: len(COLORS) * len(_MARKERS)]
    colored = sorted(number for number in frequent.tolist() if counts[number])
    across, up = places[:, 0], places[:, 1] if places.shape[1] > 1 else np.zeros(len(places))
    with new_picture(6.3, 4.2) as picture:
        axes = picture.figure.subplots()
        rest = ~np.isin(labels, colored)
        if rest.any():
            axes.scatter(across[rest], up[rest], s=5, color="0.8", label="other classes")
        for number, label in enumerate(colored):
            of_class = labels == label
            axes.scatter(
                across[of_class],
                up[of_class],
                s=8,
                alpha=0.7,
                linewidths=0,
                color=COLORS[number % len(COLORS)],
                marker=_MARKERS[number // len(COLORS)],
                label=class_names[label],
            )
        axes.set(xlabel="first component", ylabel="second component", title="Map of the features")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return picture
