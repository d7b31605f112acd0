"""Figures with one consistent look, legible in print and for the colour-blind."""

import json
import math
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's palette."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; one that was cut when the run ended by force is left out."""
    lines = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def plot_training(metrics: Path, output: Path, num_prototypes: int) -> None:
    """Draw loss, teacher entropy and k-NN accuracy over the steps of a run.

    Args:
        metrics: the run's `metrics.jsonl`.
        output: image file; its suffix decides the format.
        num_prototypes: number of prototypes K, for the largest possible entropy.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'esvit-hf[plots]'") from error
    lines = read_metrics(metrics)

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line[name]) for line in lines if name in line]
        return [step for step, _ in points], [value for _, value in points]

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss_axes, entropy_axes, knn_axes = figure.subplots(1, 3)
    for colour, (name, label) in zip(
        COLOURS, (("loss", "total"), ("view_loss", "view"), ("region_loss", "region")), strict=False
    ):
        loss_axes.plot(*series(name), color=colour, label=label, linewidth=1)
    loss_axes.set(xlabel="step", ylabel="loss (nats)", title="Loss")
    for colour, (name, label) in zip(
        COLOURS,
        (("view_teacher_entropy", "one target"), ("view_mean_target_entropy", "mean target")),
        strict=False,
    ):
        entropy_axes.plot(*series(name), color=colour, label=label, linewidth=1)
    entropy_axes.axhline(math.log(num_prototypes), color="0.5", linestyle=":", label="uniform")
    entropy_axes.set(xlabel="step", ylabel="entropy (nats)", title="Teacher entropy", ylim=(0, None))
    knn = next((name for line in lines for name in line if name.startswith("knn")), None)
    if knn is not None:
        steps, accuracy = series(knn)
        knn_axes.plot(steps, [100 * value for value in accuracy], color=COLOURS[0], marker="o", markersize=3)
    knn_axes.set(xlabel="step", ylabel="top-1 (%)", title="k-NN of the teacher")
    for axes in (loss_axes, entropy_axes):
        axes.legend(frameon=False)
    for axes in (loss_axes, entropy_axes, knn_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
