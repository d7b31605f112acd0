"""The data sets that networks of the zoo were pretrained on, and what a user has to know about
them.
"""

from dataclasses import dataclass

__all__ = [
    "FASHION_MNIST_SUBSET",
    "IMAGENET_1K",
    "IMAGENET_22K",
    "OPEN_IMAGES_V4",
    "TINY_IMAGENET_SUBSET",
    "WEBVISION_V1",
    "TrainingData",
    "find_training_data",
]


@dataclass(frozen=True)
class TrainingData:
    """A data set.

    Attributes:
        name: as the paper calls it.
        hub_id: its Hub repository, None if there is none to point to.
        folder: name of the folder that holds it, for a recipe.
        limits: what its choice of images does to features learned from it, in sentences.
    """

    name: str
    hub_id: str | None
    folder: str
    limits: str


_PEOPLE = "Many pictures show people who were not asked."

IMAGENET_1K = TrainingData(
    name="ImageNet-1K",
    hub_id="ILSVRC/imagenet-1k",
    folder="imagenet-1k",
    limits=(
        "ImageNet-1K holds photographs that web searches for 1,000 class names found before 2012, "
        "mostly one object in the middle; more than a hundred of the classes are breeds of dogs. "
        f"Things and places of North America and Western Europe dominate. {_PEOPLE} Pretraining "
        f"reads no labels, but labels decided which pictures are there. ImageNet's terms allow "
        f"research that is not commercial."
    ),
)
IMAGENET_22K = TrainingData(
    name="ImageNet-22K",
    hub_id=None,
    folder="imagenet-22k",
    limits=(
        "ImageNet-22K is the whole of ImageNet: photographs that web searches for more than 20,000 "
        "nouns of WordNet found, very different numbers for each. Its categories for people, many "
        f"of them insulting, were later withdrawn by its makers; their pictures are part of what "
        f"was seen here. {_PEOPLE} Things and places of North America and Western Europe dominate. "
        f"ImageNet's terms allow research that is not commercial."
    ),
)
WEBVISION_V1 = TrainingData(
    name="WebVision-v1",
    hub_id=None,
    folder="webvision-v1",
    limits=(
        "WebVision v1 holds what Google's image search and Flickr returned for the class names of "
        "ImageNet-1K, as it came: drawings, adverts and pictures of something else are among it, "
        f"and nobody looked through it. {_PEOPLE} What a search engine shows first is not what the "
        f"world looks like."
    ),
)
OPEN_IMAGES_V4 = TrainingData(
    name="OpenImages-v4",
    hub_id=None,
    folder="openimages-v4",
    limits=(
        "Open Images V4 holds photographs from Flickr under a Creative Commons license, many of "
        f"them scenes with several objects, people more often than anything else. {_PEOPLE} Those "
        f"who publish on Flickr live in few countries, and it shows in places and things."
    ),
)
FASHION_MNIST_SUBSET = TrainingData(
    name="Fashion-MNIST (subset)",
    hub_id="zalando-datasets/fashion_mnist",
    folder="fashion_mnist",
    limits=(
        "Fashion-MNIST holds gray product pictures, 28 pixels wide, of ten kinds of clothes of one "
        "shop; the subset in this project's repository has 10,000 of them for training and 2,000 "
        "for tests. A network that has seen nothing else is a demonstration: it knows no color, no "
        "background and no other object."
    ),
)
TINY_IMAGENET_SUBSET = TrainingData(
    name="Tiny ImageNet (40 classes)",
    hub_id="zh-plus/tiny-imagenet",
    folder="tiny-imagenet-40",
    limits=(
        "Tiny ImageNet holds photographs of ImageNet-1K, made smaller to 64 pixels; 20,000 of "
        "them, of 40 kinds of animals, things and food, were seen here. A network of this size "
        "that has seen nothing else is for tests and comparisons, and knows no fine detail. "
        "ImageNet's terms allow research that is not commercial."
    ),
)

_ALL = (
    IMAGENET_1K,
    IMAGENET_22K,
    WEBVISION_V1,
    OPEN_IMAGES_V4,
    FASHION_MNIST_SUBSET,
    TINY_IMAGENET_SUBSET,
)


def find_training_data(name: str) -> TrainingData | None:
    """Look a data set up by the name that a recipe has for it.

    Args:
        name: Hub repository or name of a folder.

    Returns:
        The data set, None if it is not one of these.
    """
    return next((data for data in _ALL if name in (data.hub_id, data.folder)), None)
