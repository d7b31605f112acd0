"""What a pretraining run did, step by step, as a figure."""

import json
import math
from pathlib import Path
from typing import Any

from esvit_hf.figures.look import Picture, new_picture

__all__ = ["plot_training", "read_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; one that was cut when the run ended by force is
    left out.
    """
    lines = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def plot_training(metrics: Path, num_prototypes: int) -> Picture:
    """Draw loss, teacher entropy and k-NN accuracy over the steps of a run.

    Args:
        metrics: the run's `metrics.jsonl`.
        num_prototypes: number of prototypes K, for the largest possible entropy.

    Returns:
        The picture.

    Raises:
        ImportError: without matplotlib.
    """
    lines = read_metrics(metrics)

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line[name]) for line in lines if name in line]
        return [step for step, _ in points], [value for _, value in points]

    # A dictionary keeps the order in which the objectives joined.
    objectives = dict.fromkeys(
        name.removesuffix("_loss") for line in lines for name in line if name.endswith("_loss")
    )
    with new_picture(12, 3.6) as picture:
        loss_axes, entropy_axes, knn_axes = picture.figure.subplots(1, 3)
        loss_axes.plot(*series("loss"), label="total")
        for objective in objectives:
            loss_axes.plot(*series(f"{objective}_loss"), label=objective)
            entropy_axes.plot(
                *series(f"{objective}_teacher_entropy"), label=f"{objective}, one target"
            )
            entropy_axes.plot(
                *series(f"{objective}_mean_target_entropy"), label=f"{objective}, mean target"
            )
        loss_axes.set(xlabel="step", ylabel="loss (nats)", title="Loss")
        entropy_axes.axhline(math.log(num_prototypes), color="0.5", linestyle=":", label="uniform")
        entropy_axes.set(
            xlabel="step", ylabel="entropy (nats)", title="Teacher entropy", ylim=(0, None)
        )
        knn = next((name for line in lines for name in line if name.startswith("knn")), None)
        if knn is not None:
            steps, accuracy = series(knn)
            knn_axes.plot(steps, [100 * value for value in accuracy], marker="o")
        knn_axes.set(xlabel="step", ylabel="top-1 (%)", title="k-NN of the teacher")
        for axes in (loss_axes, entropy_axes):
            axes.legend()
    return picture
