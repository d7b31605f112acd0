"""The task `dense`: segmentation by the regions of a frozen network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from esvit_hf.evaluation.linear import LEARNING_RATES
from esvit_hf.evaluation.task import (
    EvaluationData,
    Needs,
    Score,
    Task,
    TaskResult,
    check_above_zero,
    percent,
)
from esvit_hf.figures.dense import plot_class_iou, plot_segmentations

if TYPE_CHECKING:
    from esvit_hf.evaluation.dense_measuring import DenseResult

__all__ = ["DenseTask"]


@dataclass(frozen=True)
class DenseTask(Task):
    """Segmentation of images by frozen region features: by retrieval, and by a linear classifier.

    Args:
        layers: hidden states whose regions are used, 0 for the patch embeddings, -1 for the last
            one; several are put side by side on the finest grid. The regions behind the network's
            last norm if not given.
        image_size: what the shorter side of an image becomes, in pixels; nothing is cropped.
        void: values of mask pixels that do not count.
        class_names: names of the classes 0, 1, ...; their numbers if not given, as many as the
            training masks hold.
        bank_size: training regions that are kept to learn from.
        k: number of neighbors, for retrieval.
        temperature: temperature T of the neighbors' votes, for retrieval.
        learning_rates: rates for a batch of 256 regions, to choose from, for the linear classifier.
        epochs: passes over the kept regions, for the linear classifier.
        batch_size: regions a step, for the linear classifier.
        validation_fraction: held-out share of the training images, to choose the rate by.
    """

    name = "dense"

    layers: Sequence[int] | None = None
    image_size: int = 224
    void: Sequence[int] = (255,)
    class_names: Sequence[str] = ()
    bank_size: int = 100_000
    k: int = 30
    temperature: float = 0.07
    learning_rates: Sequence[float] = LEARNING_RATES
    epochs: int = 20
    batch_size: int = 256
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("image_size", "bank_size", "k", "temperature", "epochs", "batch_size"):
            check_above_zero(f"dense.{name}", [getattr(self, name)])
        check_above_zero("dense.learning_rates", self.learning_rates)
        if self.layers is not None and not self.layers:
            raise ValueError("--dense.layers is []: give one layer or more, such as [-1]")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--dense.validation_fraction is {self.validation_fraction}: choose a share "
                f"between 0 and 1, such as 0.1"
            )

    def needs(self) -> Needs:
        """Masks, and regions of images of another size than that of the network's processor."""
        return Needs(network=True, labels=False, masks=True)

    def check(self, data: EvaluationData) -> None:
        """Refuse masks with other values than classes and void, and layers that are not there."""
        from esvit_hf.evaluation.dense_measuring import check_layers
        from esvit_hf.evaluation.masks import check_mask_values

        assert data.train_masks is not None and data.test_masks is not None
        accelerator, classes = data.store.accelerator, len(self._names(data))
        if classes < 2:
            raise ValueError(
                f"the training masks hold {classes} classes: use masks of two classes or more, or "
                f"correct --dense.void, which is {list(self.void)}"
            )
        for masks in (data.train_masks, data.test_masks):
            check_mask_values(masks, classes, self.void, accelerator)
        if len(data.train_masks) < 2:
            raise ValueError(
                "the learning rate is chosen on held-out images: use a training split of two "
                "images or more"
            )
        check_layers(data.store.backbone, self.layers, self.image_size)

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure the mean IoU and the pixel accuracy of both protocols."""
        from esvit_hf.evaluation.dense_measuring import measure_segmentation

        names = self._names(data)
        result = measure_segmentation(data, self, len(names))
        protocols = {
            "retrieval": (
                f"votes of the {self.k} most similar of {result.bank_regions} training regions, "
                f"T = {self.temperature:g}"
            ),
            "linear": (
                f"linear classifier on {result.bank_regions} training regions, SGD, {self.epochs} "
                f"epochs, rate {result.learning_rate:g}"
            ),
        }
        layers = "last regions" if self.layers is None else f"hidden states {list(self.layers)}"
        scores = []
        for name, protocol in protocols.items():
            measured = result.scores[name]
            line = f"{protocol}; {layers}, shorter side {self.image_size}"
            scores += [
                Score(f"miou_{name}", percent(measured.mean_iou), line, in_answer=True),
                Score(f"pixel_accuracy_{name}", percent(measured.pixel_accuracy), line),
            ]
        return TaskResult(
            title="segmentation",
            protocol=self._protocol(layers, result.validation_share),
            numbers={
                **{score.metric: score.value for score in scores},
                "regions_kept": result.bank_regions,
                "learning_rate": result.learning_rate,
                "classes": _class_rows(names, result),
                "validation": [
                    {"learning_rate": rate, "miou": percent(iou)}
                    for rate, iou in result.validation.items()
                ],
            },
            scores=scores,
            figures={
                "segmentations": partial(plot_segmentations, result.shown, names),
                "class_iou": partial(
                    plot_class_iou,
                    names,
                    {name: measured.class_iou for name, measured in result.scores.items()},
                ),
            },
        )

    def _names(self, data: EvaluationData) -> list[str]:
        assert data.train_masks is not None
        if self.class_names:
            return list(self.class_names)
        values = data.train_masks.values(data.store.accelerator)
        return list(map(str, range(1 + max((set(values) - set(self.void)), default=-1))))

    def _protocol(self, layers: str, validation_share: float) -> str:
        return (
            f"Images are resized as a whole to a shorter side of {self.image_size} pixels; "
            f"features are the {layers} of the frozen network. Of the training regions at most "
            f"{self.bank_size} are kept (at least one an image), each with the shares of the "
            f"classes among its pixels. `retrieval`: a test region takes the votes of its "
            f"{self.k} most similar regions (cosine), weighted by exp(cos / T). `linear`: a 1x1 "
            f"classifier, its learning rate chosen on a held-out "
            f"{100 * validation_share:.2g} % of the training images, trained again on all "
            f"and tested once. Votes and logits are upsampled bilinearly to the mask. IoU is "
            f"counted over the pixels of all test images, and averaged over the classes that "
            f"occur in masks or predictions; void pixels do not count."
        )


def _class_rows(names: Sequence[str], result: "DenseResult") -> list[dict[str, str | float | None]]:
    return [
        {
            "class": name,
            "share_of_pixels": percent(result.class_shares[number]),
            **{
                f"iou_{protocol}": None if iou is None else percent(iou)
                for protocol, measured in result.scores.items()
                for iou in [measured.class_iou[number]]
            },
        }
        for number, name in enumerate(names)
    ]
