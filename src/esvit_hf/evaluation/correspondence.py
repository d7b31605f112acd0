"""The task `correspondence`: whether regions find their places in another view of the image."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from esvit_hf.evaluation.task import EvaluationData, Needs, Score, Task, TaskResult, percent
from esvit_hf.figures.report import plot_correspondence_accuracy

if TYPE_CHECKING:
    from esvit_hf.regions.correspondence import CorrespondenceResult

__all__ = ["CorrespondenceTask"]


@dataclass(frozen=True)
class CorrespondenceTask(Task):
    """Share of regions whose most similar region of another view is the same place."""

    name = "correspondence"

    def needs(self) -> Needs:
        """Regions of views that are made for the task."""
        return Needs(network=True, regions=True, labels=False)

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure accuracies, errors and chance of both protocols."""
        from esvit_hf.regions.correspondence import measure_correspondence

        results = [
            measure_correspondence(
                data.store.backbone,
                data.splits.test,
                data.store.processor,
                protocol=protocol,
                seed=data.seed,
                num_workers=data.num_workers,
                accelerator=data.store.accelerator,
            )
            for protocol in ("crops", "mirror")
        ]
        return TaskResult(
            title="correspondence",
            protocol=(
                "Share of regions whose most similar region of another view (cosine of the last "
                "regions) is the same place of the image. `crops`: two random crops of known "
                "geometry on a 7 x 7 grid, all regions that both show. `mirror`, the paper's: an "
                "image and its mirrored, color-changed copy on the network's own grid, the 10 most "
                "similar pairs of an image. Errors are in pixels of the input; chance is a "
                "uniformly drawn cell."
            ),
            numbers={"protocols": [_row(result) for result in results]},
            scores=[
                Score(
                    f"accuracy_{result.protocol}",
                    percent(result.accuracy),
                    f"protocol {result.protocol}, {result.grid[0]} x {result.grid[1]} regions, "
                    f"chance {100 * result.chance_accuracy:.2f}",
                    in_answer=True,
                    chance=percent(result.chance_accuracy),
                )
                for result in results
            ],
            figures={
                "correspondence": partial(
                    plot_correspondence_accuracy,
                    {result.protocol: _shares(result) for result in results},
                )
            },
        )


def _row(result: "CorrespondenceResult") -> dict[str, str | int | float]:
    return {
        "protocol": result.protocol,
        "grid": f"{result.grid[0]} x {result.grid[1]}",
        "matches": result.matches,
        "accuracy": percent(result.accuracy),
        "accuracy_within_one": percent(result.accuracy_within_one),
        "error": round(result.error, 3),
        "chance_accuracy": percent(result.chance_accuracy),
        "chance_accuracy_within_one": percent(result.chance_accuracy_within_one),
        "chance_error": round(result.chance_error, 3),
        "smallest_error": round(result.smallest_error, 3),
    }


def _shares(result: "CorrespondenceResult") -> dict[str, tuple[float, float]]:
    return {
        "true cell": (result.accuracy, result.chance_accuracy),
        "within one": (result.accuracy_within_one, result.chance_accuracy_within_one),
    }
