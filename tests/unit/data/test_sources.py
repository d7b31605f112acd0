"""Sources: real parquet files and image folders written here, found, read, and refused in one line
if wrong.
"""

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from huggingface_hub import constants
from PIL import Image
from tests.support.paths import FASHION_MNIST

from esvit_hf.data.decoding import BrokenImage
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import ImageSource, load_image_source


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def labeled(count: int = 6) -> Dataset:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    columns = {
        "image": [{"bytes": png(i), "path": None} for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    return Dataset.from_dict(columns, features=features)


def with_images(count: int = 2, **columns: list[object]) -> Dataset:
    return Dataset.from_dict({"image": [png(i) for i in range(count)], **columns})


def red_values(source: ImageSource, indices: list[int]) -> list[int]:
    images = source.read(indices)
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
    return [image.getpixel((0, 0))[0] for image in images]


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def test_parquet_folder_with_two_splits(tmp_path: Path) -> None:
    labeled(6).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    labeled(4).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    train = load_image_source(str(tmp_path))
    assert len(train) == 6
    assert len(load_image_source(str(tmp_path), split="test")) == 4
    assert len(load_image_source(str(tmp_path), split="train[:50%]")) == 3
    assert red_values(train, [5, 0, 0, 3]) == [5, 0, 0, 3]
    assert train.labels is not None
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert train.class_names == ["a", "b"]
    assert "6 images in column 'image'" in train.description


def test_one_parquet_file_is_one_split(tmp_path: Path) -> None:
    labeled().to_parquet(tmp_path / "test-00000-of-00001.parquet")
    path = str(tmp_path / "test-00000-of-00001.parquet")
    assert len(load_image_source(path)) == len(load_image_source(path, split="test")) == 6
    with pytest.raises(ValueError, match="without a split 'validation'; set --split train"):
        load_image_source(path, split="validation")


def test_parquet_without_the_metadata_of_datasets(tmp_path: Path) -> None:
    rows = [{"bytes": png(7), "path": None}, {"bytes": png(9), "path": None}]
    Dataset.from_dict({"img": rows, "number": [1, 2]}).to_parquet(tmp_path / "train.parquet")
    source = load_image_source(str(tmp_path))
    assert source.image_column == "img"
    assert source.labels is None
    assert red_values(source, [1, 0]) == [9, 7]


def test_flat_image_folder_has_no_labels_and_names_are_no_splits(tmp_path: Path) -> None:
    # "train" and "test" as words of file names are a trap: datasets would make splits of them.
    for value, name in enumerate(["apple.png", "bullet_train.png", "crash_test.png", "dog.PNG"]):
        write_image(tmp_path / name, value)
    source = load_image_source(str(tmp_path))
    assert source.labels is None
    assert sorted(red_values(source, [0, 1, 2, 3])) == [0, 1, 2, 3]


def test_image_folder_with_a_folder_a_class(tmp_path: Path) -> None:
    for value, name in enumerate(["cat/1.png", "cat/2.png", "test/1.png", "zebra [old]/1.png"]):
        write_image(tmp_path / "photos [2020]" / name, value)
    source = load_image_source(str(tmp_path / "photos [2020]"))
    assert source.class_names == ["cat", "test", "zebra [old]"]
    assert source.labels is not None
    found = dict(zip(red_values(source, [0, 1, 2, 3]), source.labels.tolist(), strict=True))
    assert found == {0: 0, 1: 0, 2: 1, 3: 2}


def test_image_folder_with_split_folders(tmp_path: Path) -> None:
    for value, name in enumerate(
        ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png", "val/cat/1.png"]
    ):
        write_image(tmp_path / name, value)
    train = load_image_source(str(tmp_path))
    validation = load_image_source(str(tmp_path), split="validation")
    assert (len(train), len(validation)) == (3, 1)
    assert train.class_names == ["cat", "dog"]
    assert red_values(validation, [0]) == [3]
    with pytest.raises(ValueError, match="no split 'test'; set --split to one of: train, valid"):
        load_image_source(str(tmp_path), split="test")


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    labeled().save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=labeled(4), test=labeled(2)).save_to_disk(tmp_path / "two")
    assert len(load_image_source(str(tmp_path / "one"))) == 6
    assert len(load_image_source(str(tmp_path / "two"), split="test")) == 2
    with pytest.raises(ValueError, match="set --split to one of: train, test"):
        load_image_source(str(tmp_path / "two"), split="dev")
    with pytest.raises(ValueError, match="no split 'test'; set --split to one of: train"):
        load_image_source(str(tmp_path / "one"), split="test")


def test_slices_of_save_to_disk(tmp_path: Path) -> None:
    labeled().save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=labeled(4), test=labeled(2)).save_to_disk(tmp_path / "two")
    assert red_values(load_image_source(str(tmp_path / "one"), split="train[50%:]"), [0, 2]) == [
        3,
        5,
    ]
    mixed = load_image_source(str(tmp_path / "two"), split="test[:1]+train[3:]")
    assert red_values(mixed, [0, 1]) == [0, 3]
    with pytest.raises(ValueError, match="test\\[99%:\\]\\) has no rows"):
        load_image_source(str(tmp_path / "two"), split="test[99%:]")


def test_shipped_fashion_mnist() -> None:
    train = load_image_source(str(FASHION_MNIST))
    test = load_image_source(str(FASHION_MNIST), split="test")
    assert train.labels is not None
    assert test.labels is not None
    assert np.bincount(train.labels).tolist() == [1000] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert train.class_names is not None
    assert train.class_names[9] == "Ankle boot"
    assert train.read([0])[0].size == (28, 28)
    assert sum(path.stat().st_size for path in FASHION_MNIST.iterdir()) <= 8e6
    assert set(train.read_encoded(range(10_000))).isdisjoint(test.read_encoded(range(2_000)))


def test_broken_images_are_values_in_their_place(tmp_path: Path) -> None:
    rows = [png(1), b"damaged", png(3)[:50], png(4)]
    source = ImageSource(Dataset.from_dict({"image": rows}))
    images = source.read([3, 1, 0, 2])
    assert [type(image) for image in images[1::2]] == [BrokenImage, BrokenImage]
    assert isinstance(images[1], BrokenImage)
    assert (images[1].index, images[1].reason) == (
        1,
        "the bytes are in no image format that Pillow knows",
    )
    assert isinstance(images[0], Image.Image)
    assert images[0].getpixel((0, 0)) == (4, 0, 0)
    with pytest.raises(IndexError):
        source.read([4])


def test_an_image_file_that_vanished_is_broken(tmp_path: Path) -> None:
    for value in range(2):
        write_image(tmp_path / f"{value}.png", value)
    source = load_image_source(str(tmp_path))
    (tmp_path / "0.png").unlink()
    broken = [image for image in source.read([0, 1]) if isinstance(image, BrokenImage)]
    assert len(broken) == 1
    assert broken[0].name == f"image 0 ({tmp_path / '0.png'})"


def test_images_are_named_by_what_the_data_knows(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png", 1)
    features = Features({"image": ImageFeature()})
    named = Dataset.from_dict({"image": [{"bytes": png(1), "path": "a.png"}]}, features=features)
    assert load_image_source(str(tmp_path)).describe(0) == f"image 0 ({tmp_path / 'cat/1.png'})"
    assert ImageSource(named).describe(0) == "image 0 (a.png)"
    assert ImageSource(labeled()).describe(3) == "image 3"
    assert ImageSource(with_images(1)).describe(0) == "image 0"


def test_the_limit_of_pixels_is_a_setting(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", 1)
    assert isinstance(load_image_source(str(tmp_path)).read([0])[0], Image.Image)
    (broken,) = load_image_source(str(tmp_path), max_image_pixels=11).read([0])
    assert isinstance(broken, BrokenImage)
    assert "4 x 3 pixels are more than the limit of 11" in broken.reason


def test_null_image_is_broken() -> None:
    features = Features({"image": ImageFeature()})
    source = ImageSource(
        Dataset.from_dict({"image": [{"bytes": png(1), "path": None}, None]}, features=features)
    )
    assert isinstance(source.read([1])[0], BrokenImage)


def test_image_columns_of_arrays_paths_and_pillow_images(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", 77)
    arrays = Dataset.from_dict({"pixels": np.full((2, 3, 4, 3), 77).tolist()})
    assert red_values(ImageSource(arrays, image_column="pixels"), [1]) == [77]
    paths = Dataset.from_dict({"file": [str(tmp_path / "x.png")]})
    assert red_values(ImageSource(paths, image_column="file"), [0]) == [77]
    pillow = Dataset.from_dict(
        {"a": [Image.new("RGB", (2, 2), (77, 0, 0))]}, features=Features({"a": ImageFeature()})
    )
    assert red_values(ImageSource(pillow), [0]) == [77]


def test_selected_and_shuffled_rows_keep_images_and_labels_together() -> None:
    source = ImageSource(labeled(6).select([5, 2, 3]))
    assert red_values(source, [0, 1, 2]) == [5, 2, 3]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]


def test_text_labels_become_sorted_classes() -> None:
    source = ImageSource(with_images(3, label=["dog", "ape", "dog"]))
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]
    assert source.class_names == ["ape", "dog"]


def test_the_description_counts_the_classes_that_there_are() -> None:
    source = ImageSource(with_images(3, fine=[2480498, 5, 5]), label_column="fine")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 0]
    assert source.class_names == ["5", "2480498"]
    assert "labels 'fine' with 2 classes" in source.description


def test_kept_secret_labels_are_no_labels() -> None:
    assert ImageSource(with_images(2, label=[-1, -1])).labels is None


def test_several_class_columns_need_a_choice() -> None:
    features = Features(
        {
            "image": Value("binary"),
            "coarse": ClassLabel(num_classes=2),
            "fine": ClassLabel(num_classes=4),
        }
    )
    dataset = Dataset.from_dict({"image": [png(0)], "coarse": [1], "fine": [3]}, features=features)
    assert ImageSource(dataset).labels is None
    chosen = ImageSource(dataset, label_column="fine").labels
    assert chosen is not None
    assert chosen.tolist() == [3]


def test_a_usual_name_decides_among_class_columns() -> None:
    features = Features(
        {
            "image": Value("binary"),
            "coarse": ClassLabel(num_classes=2),
            "label": ClassLabel(num_classes=4),
        }
    )
    dataset = Dataset.from_dict({"image": [png(0)], "coarse": [1], "label": [3]}, features=features)
    assert ImageSource(dataset).label_column == "label"


def test_a_column_of_images_is_preferred_to_a_name() -> None:
    rows = {"image": ["photo_1"], "scan": [{"bytes": png(5), "path": None}]}
    dataset = Dataset.from_dict(
        rows, features=Features({"image": Value("string"), "scan": ImageFeature()})
    )
    assert red_values(ImageSource(dataset), [0]) == [5]


def test_pickled_source_reads_the_same_and_is_small(tmp_path: Path) -> None:
    labeled(2000).to_parquet(tmp_path / "train.parquet")
    source = load_image_source(str(tmp_path))
    data = pickle.dumps(source)
    encoded = sum(len(png(i)) for i in range(256)) * 2000 // 256
    assert len(data) < encoded / 4
    copy = pickle.loads(data)
    assert copy.read_encoded([0, 1999]) == source.read_encoded([0, 1999])
    assert copy.description == source.description


def test_the_order_of_images_is_by_index() -> None:
    source = ImageSource(labeled(6))
    settings = {"rank": 1, "world_size": 2, "accumulation": 1, "start_step": 1, "total_steps": 5}
    sampler = source.sampler(2, 7, num_workers=3, **settings)
    assert list(sampler) == list(EpochSampler(6, 2, 7, **settings))
    assert sampler.order_settings == {"images in the data": 6, "seed": 7}


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (
            Dataset.from_dict({"x": [1], "y": [2]}),
            {},
            "no column that is known to hold images; set --image_column to one of: x, y",
        ),
        (
            with_images(1, img=[b""]),
            {},
            "several image columns; set --image_column to one of: image, img",
        ),
        (
            with_images(1),
            {"image_column": "pic"},
            "no column 'pic'; set --image_column to one of: image",
        ),
        (labeled(), {"image_column": "label"}, "column 'label' .* no images"),
        (
            with_images(1),
            {"label_column": "y"},
            "no column 'y'; set --label_column to one of: image",
        ),
        (with_images(2, label=[0.5, 1.5]), {}, "holds float64, no class labels"),
        (
            with_images(2, label=[[1], [2]]),
            {},
            "several labels an image, not one; set --label_column",
        ),
        (with_images(2, label=[1, None]), {}, "1 of the 2 labels in column 'label' .* are missing"),
        (labeled().select([]), {}, "has no rows"),
        (labeled().to_iterable_dataset(), {}, "is of type IterableDataset"),
    ],
)
def test_wrong_columns_are_named(dataset: Dataset, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ImageSource(dataset, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [[0.5, 1.5], [[1], [2]], [1, None], ["a", "b"]])
def test_images_that_need_no_labels_may_have_any(label: list[object]) -> None:
    source = ImageSource(with_images(2, label=label), labels=False)
    assert source.labels is None
    assert source.description == "in-memory data set: 2 images in column 'image'"


def test_wrong_places_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no image")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"PAR1 but not really")
    labeled().to_parquet(tmp_path / "good.parquet")
    cases = {
        str(tmp_path / "nowhere"): "does not exist; give a folder",
        str(tmp_path / "empty"): "holds no parquet file and no image",
        str(tmp_path / "text"): "holds no parquet file and no image",
        str(tmp_path / "text" / "a.txt"): "no parquet file",
        str(tmp_path / "bad"): "cannot be loaded",
        str(tmp_path / "photos.tar"): "is an archive: unpack it",
        str(tmp_path / "photos.tar.gz"): "is an archive: unpack it",
        str(tmp_path / "photos.zip"): "is an archive: unpack it",
        str(tmp_path / "packed"): "no image, but archives such as (0|1).tar: unpack it",
        "https://host/photos.parquet": "is an address, which pretraining can read while it streams",
    }
    for name in ("photos.tar", "photos.tar.gz", "photos.zip", "packed/0.tar", "packed/1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for place, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            load_image_source(place)
        assert "\n" not in str(error.value)
        assert place in str(error.value)


def test_paths_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "photos" / "1.png", 1)
    assert len(load_image_source("~/photos")) == 1


def test_unknown_hub_name_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="nobody/nothing does not exist here.*switched off"
    ) as error:
        load_image_source("nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damaged", ["state.json", "dataset_dict.json", "data-00000-of-00001.arrow"]
)
@pytest.mark.parametrize("content", ["", "{}", "{"])
def test_a_damaged_folder_of_save_to_disk_is_one_line(
    damaged: str, content: str, tmp_path: Path
) -> None:
    rows = Dataset.from_dict({"image": [b"x"], "label": [0]})
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "data"))
    next((tmp_path / "data").rglob(damaged)).write_text(content)
    with pytest.raises(ValueError, match=r"/data looks like a folder of save_to_disk but cannot"):
        load_image_source(str(tmp_path / "data"))
