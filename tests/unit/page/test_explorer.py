"""What the page answers, without the page."""

import base64
import io

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from tests.support.paths import FASHION_MNIST

from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.store import FeatureStore
from esvit_hf.page.explorer import Explorer
from esvit_hf.page.network import page_networks
from esvit_hf.page.pictures import PHOTOGRAPHS

CLOTHES = FASHION_MNIST
CAT = (PHOTOGRAPHS / "cat.jpg").read_bytes()


@pytest.fixture
def explorer(store: FeatureStore) -> Explorer:
    return Explorer(page_networks([store]), load_image_source(str(CLOTHES), split="test[:60]"))


@pytest.fixture
def bare(store: FeatureStore) -> Explorer:
    return Explorer(page_networks([store]))


def test_what_is_offered(bare: Explorer) -> None:
    setup = bare.setup()
    assert setup["networks"] == [
        {"name": "small", "untrained": False},
        {"name": "untrained weights", "untrained": True},
    ]
    assert (setup["rows"], setup["default_rows"]) == ([8, 16, 24, 28], 16)
    assert len(setup["pictures"]) == 12
    assert setup["pictures"][0]["address"] == "photographs/pavilion.jpg"
    assert not setup["has_dataset"]


def test_images_of_the_data_set_come_first(explorer: Explorer) -> None:
    pictures = explorer.setup()["pictures"]
    assert len(pictures) == 24
    titles = [picture["title"] for picture in pictures[:4]]
    assert titles == ["T-shirt/top", "T-shirt/top", "Trouser", "Trouser"]
    place = int(pictures[2]["address"].removeprefix("samples/"))
    content, media_type = explorer.sample(place)
    assert media_type == "image/png"
    assert explorer.dataset is not None
    (image,) = explorer.dataset.read([place])
    assert isinstance(image, Image.Image)
    assert Image.open(io.BytesIO(content)).tobytes() == image.tobytes()


def test_no_other_image_of_the_data_set_is_served(explorer: Explorer, bare: Explorer) -> None:
    offered = {picture["address"] for picture in explorer.setup()["pictures"]}
    other = next(place for place in range(60) if f"samples/{place}" not in offered)
    for asked in (explorer, bare):
        with pytest.raises(ValueError, match="There is no such picture"):
            asked.sample(other)


def test_a_data_set_without_labels(store: FeatureStore) -> None:
    images = [Image.new("RGB", (20, 20), (number, 0, 0)) for number in range(90)]
    source = ImageSource(
        Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    )
    pictures = Explorer(page_networks([store]), source).setup()["pictures"]
    assert [pictures[0]["title"], pictures[11]["title"]] == ["image 0", "image 89"]


def test_regions_differ_between_networks_and_are_kept(bare: Explorer) -> None:
    trained, untrained = (bare.regions(network, 16, CAT) for network in (0, 1))
    assert (trained["grid"], trained["channels"], trained["heads"]) == ([16, 24], 16, [1, 2, 2])
    assert trained["features"] != untrained["features"]
    assert bare.regions(0, 16, CAT) is trained
    assert bare.regions(0, 8, CAT)["grid"] == [8, 12]


def test_attention(bare: Explorer) -> None:
    answer = bare.attention(0, 16, CAT, (0.5, 0.5), 1)
    assert (answer["grid"], answer["count"]) == ([16, 24], 2)
    values = np.frombuffer(base64.b64decode(answer["values"]), dtype=np.uint8)
    assert values.max() == 255


@pytest.mark.parametrize(
    ("network", "rows", "picture", "message"),
    [
        (2, 16, CAT, "There is no network 2"),
        (-1, 16, CAT, "There is no network -1"),
        (0, 1000, CAT, "There is no choice of 1000 regions"),
        (0, 16, b"no image", "cannot be read as an image"),
    ],
)
def test_refusals(network: int, rows: int, picture: bytes, message: str, bare: Explorer) -> None:
    with pytest.raises(ValueError, match=message):
        bare.regions(network, rows, picture)
    with pytest.raises(ValueError, match=message):
        bare.attention(network, rows, picture, (0.5, 0.5), 0)


def test_nearest_images_have_names(explorer: Explorer, bare: Explorer) -> None:
    place = int(explorer.setup()["pictures"][2]["address"].removeprefix("samples/"))
    picture, _ = explorer.sample(place)
    found = explorer.neighbors(0, picture)
    assert len(found) == 12
    assert (found[0]["name"], found[0]["place"]) == ("Trouser", f"image {place}")
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert found[0]["picture"].startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match="start the page with --dataset"):
        bare.neighbors(0, picture)
