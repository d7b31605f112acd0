"""The checkpoints of the zoo as records: the authors' released ones, and this project's own.

The authors' numbers are those of their README and of the paper's tables. Batch, epochs and the
epoch at which the region loss joined are read off the paths under which they released the files. An
own checkpoint is one more record; its numbers are in `measurements/NAME.json`, as the evaluation
wrote them.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esvit_hf.hub.measurements import Measurement, read_measurements
from esvit_hf.hub.training_data import (
    FASHION_MNIST_SUBSET,
    IMAGENET_1K,
    IMAGENET_22K,
    OPEN_IMAGES_V4,
    TINY_IMAGENET_SUBSET,
    WEBVISION_V1,
    TrainingData,
)
from esvit_hf.reference import architectures
from esvit_hf.reference.architectures import Architecture

__all__ = [
    "AUTHORS_COMMIT",
    "AUTHORS_REPOSITORY",
    "ENTRIES",
    "Accuracies",
    "Release",
    "Training",
    "ZooEntry",
    "find_entry",
]

AUTHORS_REPOSITORY = "microsoft/esvit"
AUTHORS_COMMIT = "2d6becd92be61860697faabf35f88e0698e24379"

_MEASUREMENTS = Path(__file__).parent / "measurements"

Objectives = Literal["V", "V+R"]


@dataclass(frozen=True)
class Accuracies:
    """Top-1 accuracies on the validation images of ImageNet-1K, in percent.

    Attributes:
        linear: of a linear probe.
        knn: of a k-NN classifier.
    """

    linear: float
    knn: float


@dataclass(frozen=True)
class Training:
    """How a network was pretrained.

    Attributes:
        batch: images of an optimizer step.
        epochs: passes over the data.
        region_start_epoch: epoch at which the region loss joined, None without it.
        recipe: name of the shipped recipe that comes nearest.
        time: how long it took on what, None if that is not known.
    """

    batch: int
    epochs: int
    region_start_epoch: int | None
    recipe: str
    time: str | None = None


@dataclass(frozen=True)
class Release:
    """What the authors published with a checkpoint.

    Attributes:
        file: name of the file.
        readme: numbers of their README, which belong to the released files.
        paper: numbers of the paper's tables.
        knn_epoch: epoch in the name of the k-NN log.
        linear_epoch: epoch in the name of the log of the linear probe; None if the name has none.
        remark: what else a reader of the numbers has to know, empty if nothing.
    """

    file: str
    readme: Accuracies
    paper: Accuracies
    knn_epoch: int
    linear_epoch: int | None
    remark: str = ""


@dataclass(frozen=True)
class ZooEntry:
    """One checkpoint.

    Attributes:
        name: of the entry, and of its Hub folder.
        architecture: the network.
        objectives: V for the view loss alone, V+R with the region loss.
        data: what it was pretrained on.
        training: how.
        license: of the weights, as the Hub spells it.
        release: what the authors published, None for this project's own checkpoints.
        comparison: what other networks reach on the data of the measurements, in sentences.
        picture_caption: what `NAME.webp` beside the card shows; empty if there is no such picture.
    """

    name: str
    architecture: Architecture
    objectives: Objectives
    data: TrainingData
    training: Training
    license: str
    release: Release | None
    comparison: str = ""
    picture_caption: str = ""

    @property
    def kind(self) -> Literal["released", "ours"]:
        """Who trained it: the authors or this project."""
        return "ours" if self.release is None else "released"

    @property
    def measurements(self) -> list[Measurement]:
        """Numbers measured with this package, empty if there are none."""
        path = _MEASUREMENTS / f"{self.name}.json"
        return read_measurements(path) if path.is_file() else []

    @property
    def view_only_sibling(self) -> str | None:
        """Name of the entry that was trained like this one without the region loss."""
        names = (entry.name for entry in ENTRIES if f"{entry.name}r" == self.name)
        return next(names, None)


_IN1K_RECIPE = "swin_tiny_w7_in1k"


def _released(
    name: str,
    architecture: Architecture,
    objectives: Objectives,
    readme: tuple[float, float],
    *,
    paper: tuple[float, float] | None = None,
    data: TrainingData = IMAGENET_1K,
    batch: int = 512,
    epochs: int = 300,
    region_start_epoch: int | None = None,
    file: str = "checkpoint.pth",
    knn_epoch: int = 300,
    linear_epoch: int | None = 300,
    remark: str = "",
) -> ZooEntry:
    # Accuracies are (linear, k-NN); the paper's are those of the README unless given.
    return ZooEntry(
        name=name,
        architecture=architecture,
        objectives=objectives,
        data=data,
        training=Training(batch, epochs, region_start_epoch, _IN1K_RECIPE),
        license="mit",
        release=Release(
            file,
            Accuracies(*readme),
            Accuracies(*(paper or readme)),
            knn_epoch,
            linear_epoch,
            remark,
        ),
    )


_BEST = "checkpoint_best.pth"
_SUPERVISED = (
    "A CvT of this size that was trained on the labels of the same images, in about the same time, "
    "has 49.6 in k-NN top1: the mean of three seeds, by `python -m studies.reproduction run`."
)
_COLORED_REGIONS = (
    "Regions of one color have similar features: the first three principal components are red, "
    "green and blue. `python docs/make_reports.py` makes this picture."
)

ENTRIES: tuple[ZooEntry, ...] = (
    _released(
        "esvit_swin_tiny_w7_vr",
        architectures.SWIN_TINY_W7,
        "V+R",
        (78.0, 75.7),
        paper=(78.1, 75.7),
        region_start_epoch=0,
        file=_BEST,
        knn_epoch=280,
    ),
    _released(
        "esvit_swin_small_w7_vr",
        architectures.SWIN_SMALL_W7,
        "V+R",
        (79.5, 77.7),
        region_start_epoch=0,
        file=_BEST,
        knn_epoch=280,
    ),
    _released(
        "esvit_swin_base_w7_vr",
        architectures.SWIN_BASE_W7,
        "V+R",
        (80.4, 78.9),
        region_start_epoch=200,
        file=_BEST,
        knn_epoch=260,
        linear_epoch=260,
    ),
    _released(
        "esvit_swin_tiny_w14_vr",
        architectures.SWIN_TINY_W14,
        "V+R",
        (78.7, 77.0),
        region_start_epoch=200,
        file=_BEST,
        linear_epoch=None,
    ),
    _released(
        "esvit_swin_small_w14_vr",
        architectures.SWIN_SMALL_W14,
        "V+R",
        (80.8, 79.1),
        region_start_epoch=180,
        file=_BEST,
        knn_epoch=250,
        linear_epoch=250,
    ),
    _released(
        "esvit_swin_base_w14_vr",
        architectures.SWIN_BASE_W14,
        "V+R",
        (81.3, 79.3),
        region_start_epoch=200,
        file=_BEST,
        knn_epoch=240,
        linear_epoch=240,
    ),
    _released(
        "esvit_vil_2262_w7_vr",
        architectures.VIL_2262_W7,
        "V+R",
        (77.5, 74.5),
        batch=1024,
        region_start_epoch=200,
        linear_epoch=None,
    ),
    _released(
        "esvit_cvt_tiny_w7_vr",
        architectures.CVT_TINY_W7,
        "V+R",
        (78.5, 76.7),
        batch=1024,
        region_start_epoch=200,
    ),
    _released(
        "esvit_resnet50_vr",
        architectures.RESNET_50,
        "V+R",
        (75.7, 71.3),
        paper=(75.7, 71.2),
        batch=1024,
        region_start_epoch=200,
        linear_epoch=None,
    ),
    _released("esvit_swin_tiny_w7_v", architectures.SWIN_TINY_W7, "V", (77.0, 74.2)),
    _released(
        "esvit_swin_small_w7_v",
        architectures.SWIN_SMALL_W7,
        "V",
        (79.2, 76.9),
        paper=(79.2, 76.8),
        knn_epoch=280,
    ),
    _released(
        "esvit_swin_base_w7_v",
        architectures.SWIN_BASE_W7,
        "V",
        (79.6, 77.7),
        knn_epoch=260,
        linear_epoch=260,
        remark=(
            "The k-NN log that the README links is in the folder of the run that had the region "
            "loss as well."
        ),
    ),
    _released(
        "esvit_vil_2262_w7_v",
        architectures.VIL_2262_W7,
        "V",
        (77.3, 73.9),
        remark=(
            "The log of the linear probe that the README links is in the folder of a run with a "
            "batch of 1024."
        ),
    ),
    _released("esvit_cvt_tiny_w7_v", architectures.CVT_TINY_W7, "V", (77.6, 74.8), batch=1024),
    _released(
        "esvit_resnet50_v",
        architectures.RESNET_50,
        "V",
        (75.0, 69.1),
        paper=(75.0, 69.3),
        batch=1024,
        linear_epoch=None,
    ),
    _released(
        "esvit_swin_tiny_w7_v_imagenet1k_bs1024",
        architectures.SWIN_TINY_W7,
        "V",
        (77.1, 73.7),
        batch=1024,
        knn_epoch=280,
    ),
    _released(
        "esvit_swin_tiny_w7_v_webvisionv1_bs1024",
        architectures.SWIN_TINY_W7,
        "V",
        (75.4, 69.4),
        data=WEBVISION_V1,
        batch=1024,
        epochs=150,
        knn_epoch=150,
        linear_epoch=None,
    ),
    _released(
        "esvit_swin_tiny_w7_v_openimagesv4_bs1024",
        architectures.SWIN_TINY_W7,
        "V",
        (69.6, 60.3),
        data=OPEN_IMAGES_V4,
        batch=1024,
        epochs=150,
        knn_epoch=50,
        linear_epoch=None,
    ),
    _released(
        "esvit_swin_tiny_w7_v_imagenet22k_bs1024",
        architectures.SWIN_TINY_W7,
        "V",
        (73.5, 66.1),
        data=IMAGENET_22K,
        batch=1024,
        knn_epoch=30,
        linear_epoch=None,
    ),
    ZooEntry(
        name="esvit_swin_demo",
        architecture=architectures.SWIN_DEMO,
        objectives="V+R",
        data=FASHION_MNIST_SUBSET,
        training=Training(
            batch=32,
            epochs=11,
            region_start_epoch=0,
            recipe="demo",
            time="3.6 minutes on two cores of an AMD EPYC",
        ),
        license="apache-2.0",
        release=None,
    ),
    ZooEntry(
        name="esvit_swin_tiny_imagenet",
        architecture=architectures.SWIN_48PX,
        objectives="V",
        data=TINY_IMAGENET_SUBSET,
        training=Training(
            batch=32,
            epochs=30,
            region_start_epoch=None,
            recipe="tiny_imagenet",
            time="41 minutes of processor time of an AMD EPYC",
        ),
        license="apache-2.0",
        release=None,
        comparison=_SUPERVISED,
        picture_caption=_COLORED_REGIONS,
    ),
    ZooEntry(
        name="esvit_cvt_tiny_imagenet",
        architecture=architectures.CVT_48PX,
        objectives="V+R",
        data=TINY_IMAGENET_SUBSET,
        training=Training(
            batch=64,
            epochs=18,
            region_start_epoch=0,
            recipe="tiny_imagenet_cvt",
            time="38 minutes on one core of an AMD EPYC",
        ),
        license="apache-2.0",
        release=None,
        comparison=_SUPERVISED,
        picture_caption=_COLORED_REGIONS,
    ),
)


def find_entry(name: str) -> ZooEntry:
    """Look an entry up.

    Args:
        name: of the entry.

    Returns:
        The record.

    Raises:
        ValueError: there is none of this name.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    similar = difflib.get_close_matches(name, [entry.name for entry in ENTRIES], n=3)
    meant = f"did you mean {' or '.join(similar)}" if similar else "`esvit zoo` lists them"
    raise ValueError(f"the zoo has no entry {name!r}: {meant}")
