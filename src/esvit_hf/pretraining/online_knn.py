"""k-NN accuracy of the teacher while it trains."""

import warnings

import numpy as np
from accelerate import Accelerator

from esvit_hf.common.errors import flags_are_called
from esvit_hf.data.decoding import BrokenImagesError
from esvit_hf.data.items import ItemSource
from esvit_hf.data.sources import ImageSource
from esvit_hf.data.streaming import StreamSource
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_accuracy
from esvit_hf.features.extraction import Features, compute_features, shared_labels
from esvit_hf.pretraining.distillation import DistillationNetwork
from esvit_hf.pretraining.ema import set_teacher_mode
from esvit_hf.pretraining.images import load_knn_split
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.run_folder import make_processor


class OnlineKnn:
    """Classifies the recipe's k-NN split by the labels of the training images, or of another data
    set.

    Args:
        recipe: the recipe.
        source: the images that are trained on.
        accelerator: the process's accelerator.
        classified: the images that are classified; those of the recipe if None.

    Raises:
        ValueError: the split cannot be read, the splits do not share their labels, or there are
            fewer images than neighbors.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: ImageSource | ItemSource | StreamSource,
        accelerator: Accelerator,
        classified: ImageSource | None = None,
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.processor = make_processor(recipe)
        try:
            self._open(source, classified)
        except ValueError as error:
            raise ValueError(
                f"{error}; or leave out the online k-NN with --run.knn_every_epochs 0"
            ) from error

    def _open(
        self, source: ImageSource | ItemSource | StreamSource, classified: ImageSource | None
    ) -> None:
        if self.recipe.run.knn_dataset is not None:
            source = load_knn_split(self.recipe, "knn_train_split")
        assert isinstance(source, ImageSource), "other data need a data set of the k-NN"
        if classified is None:
            classified = load_knn_split(self.recipe, "knn_split")
        self.sources = [source, classified]
        with flags_are_called(label_column="data.label_column"):
            self.labels = list(shared_labels(*self.sources))
        self._check_neighbors()

    def measure(self, teacher: DistillationNetwork) -> dict[str, float]:
        """Return the top-1 accuracy, a share, under its name in `metrics.jsonl`."""
        train, test = (self._features(teacher, part) for part in (0, 1))
        train_labels, test_labels = self.labels
        neighbors = self.recipe.run.knn_neighbors
        accuracy = knn_accuracy(
            train.values, train_labels, test.values, test_labels, k=(neighbors,)
        )
        set_teacher_mode(teacher)
        return {f"knn{neighbors}_top1": next(iter(accuracy.values()))[0]}

    def _features(self, teacher: DistillationNetwork, part: int) -> Features:
        """Features of the images to learn from (part 0) or to classify (1).

        Images that cannot be decoded are left out, and named the first time: training replaces
        them, so they do not end the run here either.
        """
        source = self.sources[part]
        try:
            return compute_features(
                teacher.backbone,
                source,
                self.processor,
                batch_size=max(256, self.recipe.run.batch_size),
                num_workers=self.recipe.data.num_workers,
                accelerator=self.accelerator,
            )
        except BrokenImagesError as error:
            kept = np.delete(np.arange(len(source)), error.places)
            if not len(kept):
                raise
            self.sources[part] = source.take(kept.tolist(), source.name)
            self.labels[part] = self.labels[part][kept]
            self._check_neighbors()
            if self.accelerator.is_main_process:
                warnings.warn(
                    f"the k-NN leaves out images of {source.name}: {error.summary} ({error.shown})",
                    stacklevel=2,
                )
        return self._features(teacher, part)

    def _check_neighbors(self) -> None:
        source, neighbors = self.sources[0], self.recipe.run.knn_neighbors
        if neighbors > len(source):
            raise ValueError(
                f"run.knn_neighbors is {neighbors}, but {source.name} has {len(source)} images: "
                f"lower it"
            )
