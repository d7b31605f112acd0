"""Segmented images beside the truth, and how well each class is found."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esvit_hf.figures.look import COLORS, Picture, new_picture

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Segmentation", "plot_class_iou", "plot_segmentations"]

_NAMED_CLASSES = 40
# Steps of this share around the wheel of hues keep any number of classes apart.
_GOLDEN = 0.618034
_VOID_COLOR = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Segmentation:
    """A segmented image.

    Attributes:
        pixels: (3, H, W) uint8.
        truth: (H', W') int64 classes, -1 where none counts.
        predicted: (H', W') int64 classes of each protocol.
    """

    pixels: "Tensor"
    truth: "Tensor"
    predicted: "dict[str, Tensor]"


def plot_segmentations(images: Sequence[Segmentation], class_names: Sequence[str]) -> Picture:
    """Plot image, truth and predictions side by side, one image a row.

    Args:
        images: at least one, all with the same protocols.
        class_names: name of each class; those of the truths are written below for up to 40.

    Returns:
        The picture.
    """
    import numpy as np
    import torch

    colors = [
        colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, (0.9, 0.6)[number % 2])
        for number in range(len(class_names))
    ]
    # The class -1 takes the last color.
    palette = np.array([*colors, _VOID_COLOR])
    titles = ["image", "truth", *images[0].predicted]
    width = 6.3
    row_height = (
        width / len(titles) * max(image.truth.shape[0] / image.truth.shape[1] for image in images)
    )
    present = sorted({int(number) for image in images for number in image.truth.unique()} - {-1})
    named = present if len(present) <= _NAMED_CLASSES else []
    legend_rows = -(-len(named) // 6)
    with new_picture(width, row_height * len(images) + 0.3 + 0.2 * legend_rows) as picture:
        from matplotlib.patches import Patch

        panels = picture.figure.subplots(len(images), len(titles), squeeze=False)
        for axes, image in zip(panels, images, strict=True):
            height, breadth = image.truth.shape
            extent = (0, breadth, height, 0)
            axes[0].imshow(image.pixels.permute(1, 2, 0).numpy(), extent=extent)
            for panel, classes in zip(
                axes[1:], (image.truth, *image.predicted.values()), strict=True
            ):
                # Every protocol is judged where the truth counts; what it says elsewhere is hidden.
                shown = torch.where(image.truth < 0, image.truth, classes)
                panel.imshow(palette[shown.numpy()], extent=extent)
        for panel in panels.flat:
            panel.set_axis_off()
        for panel, title in zip(panels[0], titles, strict=True):
            panel.set_title(title)
        if named:
            picture.figure.legend(
                handles=[Patch(color=colors[n], label=class_names[n]) for n in named],
                loc="outside lower center",
                ncols=6,
            )
    return picture


def plot_class_iou(
    class_names: Sequence[str], protocols: Mapping[str, Sequence[float | None]]
) -> Picture:
    """Plot the IoU of every class as bars, one color a protocol.

    Args:
        class_names: name of each class.
        protocols: IoU in [0, 1] of each class, None where it has none.

    Returns:
        The picture.
    """
    height = 0.9 + 0.22 * min(len(class_names), _NAMED_CLASSES)
    with new_picture(4.8, height) as picture:
        axes = picture.figure.subplots()
        thickness = 0.8 / len(protocols)
        for place, (protocol, shares) in enumerate(protocols.items()):
            known = [(n, 100 * share) for n, share in enumerate(shares) if share is not None]
            axes.barh(
                [number + (place + 0.5) * thickness - 0.4 for number, _ in known],
                [share for _, share in known],
                thickness,
                color=COLORS[place],
                label=protocol,
            )
        axes.set(xlabel="IoU (%)", xlim=(0, 100), title="Segmentation by class")
        if len(class_names) <= _NAMED_CLASSES:
            axes.set_yticks(range(len(class_names)), class_names)
        axes.set_ylim(len(class_names) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.legend()
    return picture
