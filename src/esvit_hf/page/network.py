"""One network of the page: trained, or the same architecture with random weights."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.extraction import Features, compute_features
from esvit_hf.features.neighbors import Neighbor, nearest_images, view_feature
from esvit_hf.features.store import FeatureStore
from esvit_hf.regions.attention import query_attention
from esvit_hf.regions.whole_images import ImageRegions, WholeImages

__all__ = ["PageNetwork", "page_networks"]

_SEED = 0
_GRAY = Image.new("RGB", (64, 64), "gray")


class PageNetwork:
    """A network and what the page asks of it. It is loaded when it is first asked.

    Args:
        name: what to call it.
        store: the model, its image processor, and the features that are kept of data sets.
        untrained: give the architecture random weights in place of its trained ones.
    """

    def __init__(self, name: str, store: FeatureStore, *, untrained: bool = False):
        self.name = name
        self.untrained = untrained
        self._store = store
        self._features: Features | None = None

    @functools.cached_property
    def backbone(self) -> RegionBackbone:
        """The network, in evaluation mode.

        Raises:
            ValueError: it cannot be loaded.
        """
        trained = self._store.backbone
        if not self.untrained:
            return trained
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            model = type(trained.model)(copy.deepcopy(trained.model.config))
        return RegionBackbone(model).to(trained.model.device).eval()

    @functools.cached_property
    def own_rows(self) -> int:
        """Rows of regions of a square image at the network's own input size."""
        return self._whole_images.regions(_GRAY).grid[0]

    @functools.cached_property
    def heads(self) -> list[int]:
        """Number of heads in each block with attention; empty where the network reports none."""
        try:
            with torch.no_grad():
                maps = self.backbone.attention_maps(self._whole_images.pixel_values(_GRAY))
        except ValueError:
            # Networks without attention, such as ResNet: the page says so in place of the maps.
            return []
        return [probabilities.shape[1] for probabilities, _ in maps]

    def detail(self, rows: int) -> int:
        """How many times its own input size the network needs for a number of rows.

        Args:
            rows: rows of regions of a square image, at least.

        Returns:
            The factor.
        """
        return max(1, -(-rows // self.own_rows))

    def regions(self, image: Image.Image, rows: int) -> ImageRegions:
        """Compute the features of an image's regions.

        Args:
            image: RGB.
            rows: regions along the shorter side, at least.

        Returns:
            The regions.

        Raises:
            ValueError: the network takes no image of this shape.
        """
        return self._whole_images.regions(image, detail=self.detail(rows))

    def attention(
        self, image: Image.Image, rows: int, place: tuple[float, float], block: int
    ) -> Tensor:
        """Compute where the region at a place looks.

        Args:
            image: RGB.
            rows: as for `regions`.
            place: (x, y) as shares of width and height, in [0, 1).
            block: number of the block, from 0.

        Returns:
            (heads, h, w) probabilities.

        Raises:
            ValueError: the network has no such block, or the place lies outside.
        """
        pixel_values = self._whole_images.pixel_values(image, detail=self.detail(rows))
        height, width = pixel_values.shape[-2:]
        point = place[0] * width, place[1] * height
        return query_attention(self.backbone, pixel_values, point, block).maps

    def neighbors(self, image: Image.Image, source: ImageSource, count: int) -> list[Neighbor]:
        """Find the images of a data set that resemble an image.

        Args:
            image: RGB.
            source: the data set, always the same one: its features are computed once.
            count: number of images.

        Returns:
            Neighbors from the most similar on.
        """
        if self._features is None:
            self._features = (
                compute_features(self.backbone, source, self._store.processor)
                if self.untrained
                else self._store.features(source)
            )
        query = view_feature(self.backbone, self._store.processor, image)
        return nearest_images(query, source, self._features, count)

    @functools.cached_property
    def _whole_images(self) -> WholeImages:
        return WholeImages(self.backbone, self._store.processor)


def page_networks(stores: Sequence[FeatureStore]) -> list[PageNetwork]:
    """List the networks that a page offers: the first, the same with random weights, the others.

    Args:
        stores: the models, at least one.

    Returns:
        The networks, named after the models' folders.
    """
    first, *others = [PageNetwork(Path(str(store.model)).name, store) for store in stores]
    return [first, PageNetwork("untrained weights", stores[0], untrained=True), *others]
