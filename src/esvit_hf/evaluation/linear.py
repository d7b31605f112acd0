"""The task `linear`: linear classifiers trained on frozen features, the best one tested."""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from esvit_hf.common.errors import one_line
from esvit_hf.common.files import expand_homes
from esvit_hf.evaluation.task import (
    EvaluationData,
    Needs,
    Score,
    Task,
    TaskResult,
    accuracy_answer,
    check_above_zero,
    percent,
)
from esvit_hf.figures.report import plot_linear_probe

if TYPE_CHECKING:
    from esvit_hf.evaluation.classifiers.linear_probe import LinearProbeResult
    from esvit_hf.evaluation.random_crops import AugmentedFeatures
    from esvit_hf.features.store import FeatureStore

__all__ = ["LEARNING_RATES", "LinearTask"]

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_USUAL_BLOCKS = (1, 4)
# By whether they are augmented.
_IMAGES = {True: "random crops and flips", False: "no augmentation"}


@dataclass(frozen=True)
class LinearTask(Task):
    """Linear probe, the protocol of DINO and EsViT.

    Args:
        blocks: numbers of last blocks whose pooled features are concatenated, to choose from; 1
            takes the view feature. Of the usual ones those that the network has.
        learning_rates: rates for a batch of 256, to choose from.
        epochs: passes over the training images.
        augment: crop and mirror the training images at random in every epoch, as in the papers;
            takes the epochs times as long.
        batch_size: features a step.
        validation_fraction: held-out share of the training images, to choose by.
        output_dir: new folder for network and probe as one classifier; with blocks [1], for
            networks of this package.
    """

    name = "linear"

    blocks: Sequence[int] = _USUAL_BLOCKS
    learning_rates: Sequence[float] = LEARNING_RATES
    epochs: int = 100
    augment: bool = False
    batch_size: int = 256
    validation_fraction: float = 0.1
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", expand_homes(self.output_dir))
        check_above_zero("linear.blocks", self.blocks)
        check_above_zero("linear.learning_rates", self.learning_rates)
        check_above_zero("linear.epochs", [self.epochs])
        check_above_zero("linear.batch_size", [self.batch_size])
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--linear.validation_fraction is {self.validation_fraction}: choose a share "
                f"between 0 and 1, such as 0.1"
            )

    def needs(self) -> Needs:
        """The pooled features of the last blocks; of augmented images in every epoch anew."""
        return Needs(blocks=max(self.blocks), network=self.augment)

    def for_network(self, store: "FeatureStore") -> "LinearTask":
        """Leave out usual numbers of blocks that are more than the network has."""
        if tuple(self.blocks) != _USUAL_BLOCKS or store.backbone.num_blocks >= max(_USUAL_BLOCKS):
            return self
        kept = [count for count in _USUAL_BLOCKS if count <= store.backbone.num_blocks]
        left_out = ", ".join(str(count) for count in _USUAL_BLOCKS if count not in kept)
        warnings.warn(
            f"linear: blocks {left_out} is left out, as {type(store.backbone.model).__name__} has "
            f"{store.backbone.num_blocks} blocks",
            stacklevel=2,
        )
        return dataclasses.replace(self, blocks=kept)

    def check(self, data: EvaluationData) -> None:
        """Refuse a classifier that could not be saved, and crops of no known size."""
        if self.output_dir is not None:
            from esvit_hf.evaluation.probe_classifier import check_probe_fits

            check_probe_fits(data.store.backbone.model, self.blocks, Path(self.output_dir))
        if self.augment:
            self._augmented_features(data)

    def run(self, data: EvaluationData) -> TaskResult:
        """Measure the accuracies of the chosen classifier, and what it was chosen by."""
        from esvit_hf.evaluation.classifiers.linear_probe import linear_probe

        assert data.train is not None
        accelerator = data.store.accelerator
        result = linear_probe(
            *data.last_blocks(max(self.blocks)),
            block_widths=data.train.block_widths[-max(self.blocks) :],
            blocks=self.blocks,
            learning_rates=self.learning_rates,
            epochs=self.epochs,
            batch_size=self.batch_size,
            validation_fraction=self.validation_fraction,
            seed=data.seed,
            device=accelerator.device,
            augmented=self._augmented_features(data) if self.augment else None,
            progress=accelerator.is_main_process,
        )
        found = self._describe(result, data)
        if self.output_dir is not None and accelerator.is_main_process:
            try:
                self._save(data, result, found)
            # A full disk; the report is still to be written.
            except (OSError, SafetensorError) as error:
                warnings.warn(
                    f"linear.output_dir {str(self.output_dir)!r}: the classifier could not be "
                    f"saved ({one_line(error)}): remove the folder, make room and evaluate again",
                    stacklevel=2,
                )
        return found

    def without_files(self) -> "LinearTask":
        """The same without a folder for the classifier."""
        return dataclasses.replace(self, output_dir=None)

    def _augmented_features(self, data: EvaluationData) -> "AugmentedFeatures":
        from esvit_hf.evaluation.random_crops import AugmentedFeatures

        return AugmentedFeatures(
            data.store.backbone,
            data.splits.train,
            data.store.processor,
            blocks=max(self.blocks),
            seed=data.seed,
            batch_size=data.batch_size,
            num_workers=data.num_workers,
            accelerator=data.store.accelerator,
        )

    def _describe(self, result: "LinearProbeResult", data: EvaluationData) -> TaskResult:
        shares = {"top1": result.top1, "top5": result.top5, "mean_per_class": result.mean_per_class}
        accuracies = {name: percent(share) for name, share in shares.items()}
        features = f"the last {result.blocks} blocks" if result.blocks > 1 else "the view feature"
        images = _IMAGES[self.augment]
        held_out = f"a held-out {100 * result.validation_share:.2g} % of the training images"
        protocol = (
            f"linear classifier on {features}, SGD, {self.epochs} epochs, {images}, rate "
            f"{result.learning_rate:g}; chosen on {held_out}"
        )
        return TaskResult(
            title="linear probe",
            protocol=(
                f"Linear classifiers on frozen features, SGD with momentum 0.9, {self.epochs} "
                f"epochs, cosine schedule, {images}. Number of last blocks and learning rate are "
                f"those that are best on {held_out}; that classifier, trained on all of them, is "
                f"tested once."
            ),
            numbers={
                **accuracies,
                "blocks": result.blocks,
                "learning_rate": result.learning_rate,
                "validation": [
                    {"blocks": count, "learning_rate": rate, "top1": percent(share)}
                    for (count, rate), share in result.validation.items()
                ],
            },
            scores=[
                accuracy_answer("top1", accuracies["top1"], protocol, data),
                *(Score(metric, accuracies[metric], protocol) for metric in list(accuracies)[1:]),
            ],
            figures={
                "linear_probe": partial(
                    plot_linear_probe, result.history, (result.blocks, result.learning_rate)
                )
            },
            predicted=result.ranked[:, 0],
        )

    def _save(self, data: EvaluationData, result: "LinearProbeResult", found: TaskResult) -> None:
        from esvit_hf.evaluation.probe_classifier import save_probe
        from esvit_hf.hub.classifier_card import write_classifier_card

        assert self.output_dir is not None
        folder = Path(self.output_dir)
        store = data.store
        config = save_probe(
            folder, store.backbone.model, store.processor, result, data.splits.class_names
        )
        write_classifier_card(
            folder,
            config,
            {score.metric: score.value for score in found.scores},
            source=data.model,
            task=found.title,
            dataset=data.dataset,
            split=data.test_split,
            protocol=found.scores[0].protocol,
            settings={
                "training images": data.train_split,
                "augmentation": _IMAGES[self.augment],
                "learning rates tried": ", ".join(f"{rate:g}" for rate in self.learning_rates),
                "epochs": self.epochs,
                "features of a step": self.batch_size,
                "held-out share of the training images": self.validation_fraction,
                "seed": data.seed,
            },
            command=data.command,
        )
