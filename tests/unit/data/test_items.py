"""Images of map-style data sets: what items may be, and that they are read as any other image."""

import numpy as np
import pytest
from PIL import Image

from esvit_hf.data.items import ItemSource
from esvit_hf.data.multicrop import MultiCropDataset
from esvit_hf.data.views import dino_views

PIXELS = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
IMAGE = Image.fromarray(PIXELS)


class Pairs:
    """As the data sets of torchvision without a transform."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return IMAGE, index


@pytest.mark.parametrize(
    "items",
    [Pairs(), [IMAGE] * 3, [{"image": IMAGE, "label": 1}] * 3, [{"img": IMAGE}] * 3, [PIXELS] * 3],
)
def test_items_give_the_same_crops(items: object) -> None:
    source = ItemSource(items)  # type: ignore[arg-type]
    assert (len(source), source.description) == (3, "in-memory data set: 3 images")
    views = dino_views(global_size=16, local_size=8, local_count=1)
    keys = [(0, 1), (0, 2)]
    crops = MultiCropDataset(source, views, seed=0).__getitems__(keys).crops
    expected = MultiCropDataset(ItemSource(Pairs()), views, seed=0).__getitems__(keys).crops
    for crop, other in zip(crops, expected, strict=True):
        assert crop.equal(other)


def test_a_column_may_be_named() -> None:
    items = [{"left": PIXELS[:, :9], "right": PIXELS}]
    (image,) = ItemSource(items, image_column="left").read_encoded([0])
    assert np.shape(image) == (20, 9, 3)
    with pytest.raises(ValueError, match="no image under image, .*: set data.image_column to one "):
        ItemSource(items)


@pytest.mark.parametrize(
    ("items", "message"),
    [([], "has no images"), ([np.zeros((3, 8, 8))], "leave out transforms"), ([1], "is no image")],
)
def test_what_gives_no_images_is_refused(items: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemSource(items)
