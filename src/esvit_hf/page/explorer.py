"""What the page answers, without the page: pictures in, numbers for the browser out."""

import base64
import functools
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.neighbors import class_name
from esvit_hf.page.network import PageNetwork
from esvit_hf.page.packing import pack_maps, pack_regions
from esvit_hf.page.pictures import (
    MAX_UPLOAD_MEGABYTES,
    PHOTOGRAPHS,
    encode_picture,
    read_upload,
)

__all__ = ["Explorer"]

NEIGHBORS = 12
SAMPLES, SAMPLES_OF_A_CLASS = 12, 2
ROWS = (7, 14, 21, 28)
"""Regions along the shorter side that are offered; a network takes the next it can give."""

DEFAULT_ROWS = 14
_NEIGHBOR_SIDE = 160
_KEPT_ANSWERS = 64


class Explorer:
    """Networks and pictures to explore them with. Calls from several threads wait for each other.

    Args:
        networks: those to choose from; the first is shown first.
        dataset: images to search for neighbors; none are searched without it.

    Raises:
        ValueError: the first network or the data set does not work; the message names the remedy.
    """

    def __init__(self, networks: Sequence[PageNetwork], dataset: ImageSource | None = None):
        self.networks = list(networks)
        self.dataset = dataset
        self._lock = threading.Lock()
        self._samples = [] if dataset is None else _choose_samples(dataset)
        self._sizes = self._choose_sizes()
        if dataset is not None:
            self.networks[0].neighbors(Image.new("RGB", (64, 64)), dataset, 1)
        self.regions = functools.lru_cache(_KEPT_ANSWERS)(self._regions)

    def setup(self) -> dict[str, Any]:
        """Describe what the page offers.

        Returns:
            Networks, numbers of regions, pictures of the gallery, and limits, as JSON knows them.
        """
        photographs = json.loads((PHOTOGRAPHS / "index.json").read_text())
        pictures = [
            {"title": title, "credit": None, "address": f"samples/{place}"}
            for title, place in self._samples
        ] + [
            {
                "title": photograph["title"],
                "credit": photograph["credit"],
                "address": f"photographs/{photograph['file']}",
            }
            for photograph in photographs
        ]
        return {
            "networks": [
                {"name": network.name, "untrained": network.untrained} for network in self.networks
            ],
            "rows": self._sizes,
            "default_rows": next(
                (rows for rows in self._sizes if rows >= DEFAULT_ROWS), self._sizes[-1]
            ),
            "pictures": pictures,
            "has_dataset": self.dataset is not None,
            "max_megabytes": MAX_UPLOAD_MEGABYTES,
        }

    def sample(self, place: int) -> tuple[bytes, str]:
        """Read an image of the data set that the gallery shows.

        Args:
            place: its place in the data set.

        Returns:
            The file, and its media type.

        Raises:
            ValueError: the gallery does not show it, or it cannot be decoded.
        """
        if self.dataset is None or place not in [shown for _, shown in self._samples]:
            raise ValueError("There is no such picture: choose one of the gallery.")
        (image,) = self.dataset.read([place])
        if isinstance(image, BrokenImage):
            raise ValueError(f"This picture cannot be read ({image.reason}): choose another one.")
        return encode_picture(image)

    def _regions(self, network: int, rows: int, picture: bytes) -> dict[str, Any]:
        """Compute the features of a picture's regions.

        Args:
            network: number of the network.
            rows: regions along the shorter side, at least; one of those offered.
            picture: an encoded image.

        Returns:
            As `pack_regions`, with `heads`, the number of heads of each block with attention.

        Raises:
            ValueError: there is no such network or size, or the picture does not work.
        """
        image = read_upload(picture)
        with self._lock:
            chosen = self._network(network, rows)
            return {**pack_regions(chosen.regions(image, rows)), "heads": chosen.heads}

    def attention(
        self, network: int, rows: int, picture: bytes, place: tuple[float, float], block: int
    ) -> dict[str, Any]:
        """Compute where the region at a place looks.

        Args:
            network: number of the network.
            rows: as for `regions`.
            picture: an encoded image.
            place: (x, y) as shares of width and height, in [0, 1).
            block: number of the block, from 0.

        Returns:
            As `pack_maps`, a map for each head.

        Raises:
            ValueError: as `regions`, or there is no such place or block.
        """
        image = read_upload(picture)
        with self._lock:
            chosen = self._network(network, rows)
            return pack_maps(chosen.attention(image, rows, place, block))

    def neighbors(self, network: int, picture: bytes) -> list[dict[str, Any]]:
        """Find the images of the data set that resemble a picture.

        Args:
            network: number of the network.
            picture: an encoded image.

        Returns:
            `name` of the class, empty without labels, `place` in the data set, `cosine`, and
            `picture`, an address with the data in it, from the most similar on.

        Raises:
            ValueError: there is no data set or no such network, or the picture does not work.
        """
        if self.dataset is None:
            raise ValueError("There is no data set to search: start the page with --dataset.")
        image = read_upload(picture)
        with self._lock:
            chosen = self._network(network, self._sizes[0])
            found = chosen.neighbors(image, self.dataset, NEIGHBORS)
        answers = []
        for neighbor in found:
            content, media_type = encode_picture(neighbor.image, _NEIGHBOR_SIDE)
            answers.append(
                {
                    "name": neighbor.class_name or "",
                    "place": f"image {neighbor.index}",
                    "cosine": neighbor.cosine,
                    "picture": f"data:{media_type};base64,{base64.b64encode(content).decode()}",
                }
            )
        return answers

    def _network(self, network: int, rows: int) -> PageNetwork:
        if not 0 <= network < len(self.networks):
            raise ValueError(f"There is no network {network}: choose one of the list.")
        if rows not in self._sizes:
            raise ValueError(f"There is no choice of {rows} regions: choose one of the list.")
        return self.networks[network]

    def _choose_sizes(self) -> list[int]:
        first = self.networks[0]
        return sorted({first.own_rows * first.detail(rows) for rows in ROWS})


def _choose_samples(source: ImageSource) -> list[tuple[str, int]]:
    """Titles and places of a few images: two of each of the first classes, so that there are alike
    and unlike ones.
    """
    if source.labels is None:
        places = np.unique(np.linspace(0, len(source) - 1, SAMPLES).astype(np.int64))
    else:
        classes = np.unique(source.labels)[: SAMPLES // SAMPLES_OF_A_CLASS]
        places = np.concatenate(
            [np.flatnonzero(source.labels == label)[:SAMPLES_OF_A_CLASS] for label in classes]
        )
    return [(class_name(source, place) or f"image {place}", place) for place in places.tolist()]
