"""What the page shows about images and points, without the page: a model, examples and a data set
in, pictures out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.extraction import Features
from esvit_hf.features.neighbors import class_name, nearest_images, view_feature
from esvit_hf.features.store import FeatureStore
from esvit_hf.figures.correspondence import plot_region_pairs
from esvit_hf.figures.look import Picture
from esvit_hf.figures.regions import plot_colors, plot_map, plot_neighbors
from esvit_hf.regions.attention import query_attention
from esvit_hf.regions.correspondence import find_region_pairs
from esvit_hf.regions.similarity import RegionMatch, region_colors, similar_regions, similarity_map
from esvit_hf.regions.whole_images import ImageRegions, WholeImages

__all__ = ["Explorer", "View"]

MATCHES = 3
NEIGHBORS = 9
EXAMPLES, EXAMPLES_OF_A_CLASS = 20, 2


@dataclass(frozen=True)
class View:
    """An image as the network sees it.

    Attributes:
        image: RGB.
        regions: features of its regions.
        detail: how finely it was divided into regions.
    """

    image: Image.Image
    regions: ImageRegions
    detail: int


class Explorer:
    """A model and the data to explore it with.

    Args:
        store: the model, its image processor, and the features that are kept of data sets.
        examples: images to choose from.
        dataset: images to search for neighbors; none are searched without it.

    Attributes:
        examples: label and place of each example that is offered.
        heads: number of heads in each block with attention; empty where the network reports none.

    Raises:
        ValueError: the model or a data set does not work; the message names the remedy.
    """

    def __init__(
        self, store: FeatureStore, examples: ImageSource, dataset: ImageSource | None = None
    ):
        self.backbone = store.backbone
        self._processor = store.processor
        self._whole_images = WholeImages(self.backbone, self._processor)
        self._example_source = examples
        self.examples = _choose_examples(examples)
        self.heads = self._count_heads()
        self.dataset = dataset
        self._features: Features | None = None if dataset is None else store.features(dataset)

    def view(self, image: Image.Image, detail: int) -> View:
        """Compute the regions of an image.

        Args:
            image: RGB.
            detail: 1 for the network's own input size, n for n times as many regions along each
                side.

        Returns:
            The view.

        Raises:
            ValueError: the network takes no image of this shape.
        """
        return View(image, self._whole_images.regions(image, detail=detail), detail)

    def example(self, label: str) -> Image.Image:
        """Read one of `examples` by its label.

        Raises:
            ValueError: there is no such example, or it cannot be decoded.
        """
        places = dict(self.examples)
        if label not in places:
            raise ValueError(f"There is no example {label!r}: choose one of the list.")
        (image,) = self._example_source.read([places[label]])
        if isinstance(image, BrokenImage):
            raise ValueError(
                f"The example {label!r} cannot be read ({image.reason}): choose another one."
            )
        return image

    def similarity(
        self, first: View, second: View, point: tuple[int, int]
    ) -> tuple[Image.Image, Image.Image, list[RegionMatch]]:
        """Compare the region at a point of the first image with all regions of both.

        Args:
            first: view with the point.
            second: view to compare with.
            point: (x, y) in pixels of the first image.

        Returns:
            A heat map for each image, on one scale, and the most similar regions of the second.

        Raises:
            ValueError: the point lies outside the first image.
        """
        own, other = (
            similarity_map(first.regions, point, view.regions) for view in (first, second)
        )
        matches = similar_regions(other, second.regions, MATCHES)
        limits = min(float(own.min()), float(other.min())), 1.0
        label = "cosine similarity"
        places = [match.point for match in matches]
        return (
            rendered(plot_map(first.image, own, label=label, limits=limits, point=_middle(point))),
            rendered(plot_map(second.image, other, label=label, limits=limits, numbered=places)),
            matches,
        )

    def pairs(self, first: View, second: View) -> Image.Image:
        """Join the regions of two images that look most alike by lines.

        Args:
            first: one view.
            second: another view.

        Returns:
            The images with lines.
        """
        inputs = [
            self._whole_images.pixel_values(view.image, detail=view.detail)
            for view in (first, second)
        ]
        shown = [
            self._whole_images.resized(view.image, detail=view.detail) for view in (first, second)
        ]
        pairs = find_region_pairs(self.backbone, inputs[0], inputs[1])
        rows = pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist()
        return rendered(plot_region_pairs(shown[0], shown[1], *rows))

    def attention(
        self, view: View, point: tuple[int, int], layer: int, head: int | None
    ) -> Image.Image:
        """Show where the region at a point looks.

        Args:
            view: view with the point.
            point: (x, y) in pixels of its image.
            layer: number of the block, from 0.
            head: number of the head, from 0; the mean of all heads if None.

        Returns:
            A heat map.

        Raises:
            ValueError: the network has no such block or head, or the point lies outside the image.
        """
        pixel_values = self._whole_images.pixel_values(view.image, detail=view.detail)
        height, width = pixel_values.shape[-2:]
        x, y = _middle(point)
        place = x * width / view.image.width, y * height / view.image.height
        maps = query_attention(self.backbone, pixel_values, place, layer).maps
        if head is not None and not 0 <= head < len(maps):
            raise ValueError(f"Block {layer + 1} has {len(maps)} heads: choose one of them.")
        values = maps.mean(dim=0) if head is None else maps[head]
        return rendered(
            plot_map(
                view.image, 100 * values, label="attention to a region (%)", point=_middle(point)
            )
        )

    def colors(self, first: View, second: View) -> tuple[Image.Image, Image.Image]:
        """Show the principal components of the regions of both images in the same colors.

        Args:
            first: one view.
            second: another view.

        Returns:
            A picture for each.
        """
        colors = region_colors([first.regions, second.regions])
        pictures = [
            rendered(plot_colors(view.image, values))
            for view, values in zip((first, second), colors, strict=True)
        ]
        return pictures[0], pictures[1]

    def neighbors(self, view: View) -> Image.Image:
        """Show the nearest images of the data set.

        Args:
            view: view of the image to look for.

        Returns:
            The images, with class and cosine similarity.

        Raises:
            ValueError: there is no data set.
        """
        if self.dataset is None or self._features is None:
            raise ValueError("There is no data set to search: start the page with --dataset.")
        query = view_feature(self.backbone, self._processor, view.image)
        neighbors = nearest_images(query, self.dataset, self._features, NEIGHBORS)
        return rendered(
            plot_neighbors(
                view.image,
                [found.image for found in neighbors],
                [found.label for found in neighbors],
                [found.cosine for found in neighbors],
            )
        )

    def _count_heads(self) -> list[int]:
        gray = self._whole_images.pixel_values(Image.new("RGB", (64, 64), "gray"))
        try:
            with torch.no_grad():
                maps = self.backbone.attention_maps(gray)
        except ValueError:
            # Networks without attention, such as ResNet: the page then says so in place of the
            # maps.
            return []
        return [probabilities.shape[1] for probabilities, _ in maps]


def rendered(picture: Picture) -> Image.Image:
    """Turn a figure into an image."""
    canvas = FigureCanvasAgg(picture.figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _middle(point: tuple[int, int]) -> tuple[float, float]:
    """Middle of a pixel."""
    return point[0] + 0.5, point[1] + 0.5


def _choose_examples(source: ImageSource) -> list[tuple[str, int]]:
    """Labels and places of a few images: two of each of the first classes, so that there are alike
    and unlike ones.
    """
    if source.labels is None:
        places = np.unique(np.linspace(0, len(source) - 1, EXAMPLES).astype(np.int64))
    else:
        classes = np.unique(source.labels)[: EXAMPLES // EXAMPLES_OF_A_CLASS]
        places = np.concatenate(
            [np.flatnonzero(source.labels == label)[:EXAMPLES_OF_A_CLASS] for label in classes]
        )
    names = [class_name(source, place) or f"image {place}" for place in places.tolist()]
    return [
        (f"{number}. {name}", place)
        for number, (name, place) in enumerate(zip(names, places.tolist(), strict=True), start=1)
    ]
