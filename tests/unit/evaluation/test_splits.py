"""Labels of two splits, what is refused before anything is computed, and images that both splits
hold.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.masks import load_masks
from esvit_hf.evaluation.splits import (
    check_images_per_class,
    held_out,
    load_splits,
    overlapping_images,
)


def write(folder: Path, split: str, labels: list[Any], feature: Any, *, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    images = [
        PILImage.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in labels
    ]
    rows = Dataset.from_dict(
        {"image": images, "label": labels}, features=Features({"image": Image(), "label": feature})
    )
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def load(folder: Path, **columns: Any) -> Any:
    return load_splits(str(folder), train_split="train", test_split="test", **columns)


def test_labels_may_be_strings(tmp_path: Path) -> None:
    write(tmp_path, "train", ["owl", "bee", "cat", "owl"], Value("string"))
    write(tmp_path, "test", ["cat", "owl"], Value("string"), seed=1)
    splits = load(tmp_path)
    assert splits.class_names == ["bee", "cat", "owl"]
    assert (splits.train_labels.tolist(), splits.test_labels.tolist()) == ([2, 0, 1, 2], [1, 2])


def test_numbers_are_their_own_names(tmp_path: Path) -> None:
    write(tmp_path, "train", [2024, 1999, 2**40], Value("int64"))
    write(tmp_path, "test", [1999, 2024, 2**40], Value("int64"), seed=1)
    splits = load(tmp_path)
    assert splits.class_names == ["1999", "2024", str(2**40)]
    assert (splits.train_labels.tolist(), splits.test_labels.tolist()) == ([1, 0, 2], [0, 1, 2])


def test_the_limit_of_pixels_holds_for_both_parts(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write(tmp_path, split, [0, 1], Value("int64"), seed=seed)
    splits = load(tmp_path, max_image_pixels=63)
    for part in (splits.train, splits.test):
        assert "the limit of 63" in part.read([1])[0].reason


def test_one_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, split, [1, 1], ClassLabel(names=["bee", "cat"]))
    with pytest.raises(
        ValueError, match="all training images have class 'cat': a classifier needs two"
    ):
        load(tmp_path)


def test_a_class_absent_from_train(tmp_path: Path) -> None:
    write(tmp_path, "train", ["owl", "bee"], Value("string"))
    write(tmp_path, "test", ["yak", "owl", "ant"], Value("string"))
    with pytest.raises(
        ValueError,
        match="example class 'ant': .*--test_fraction 0.2, or drop those",
    ):
        load(tmp_path)


def test_a_class_absent_from_test(tmp_path: Path) -> None:
    write(tmp_path, "train", ["owl", "bee", "cat"], Value("string"))
    write(tmp_path, "test", ["owl"], Value("string"))
    message = "2 of 3 classes have no image in test, for example 'bee'.*--test_fraction 0.2"
    with pytest.warns(UserWarning, match=message):
        load(tmp_path)


def test_slices_of_sorted_classes(tmp_path: Path) -> None:
    write(tmp_path, "train", ["bee"] * 4 + ["cat"] * 4 + ["owl"] * 4, Value("string"))
    with pytest.warns(UserWarning, match="2 of 3 classes have no image in train.80%:., for exam"):
        load_splits(str(tmp_path), train_split="train[:80%]", test_split="train[80%:]")
    with pytest.raises(ValueError, match="class 'owl': .*--test_fraction 0.2"):
        load_splits(str(tmp_path), train_split="train[:6]", test_split="train[6:]")


def pixels(source: ImageSource) -> list[bytes]:
    return [np.asarray(image).tobytes() for image in source.read(range(len(source)))]


def test_a_fraction_of_each_class_is_held_out(tmp_path: Path) -> None:
    labels = [1999] * 10 + [5] * 3 + [7] * 21 + [8, 9, 9]
    write(tmp_path, "train", labels, Value("int64"))
    with pytest.warns(UserWarning, match="1 of 5 classes have no image in 0.2 of train.*'8'"):
        splits = load_splits(str(tmp_path), test_fraction=0.2)
    names = np.array(splits.class_names)
    assert dict(zip(*np.unique(names[splits.test_labels], return_counts=True), strict=True)) == {
        "1999": 2,
        "5": 1,
        "7": 4,
        "9": 1,
    }
    # Images and labels stay together, in the order of the data, and no image is lost or doubled.
    rows = load_splits(str(tmp_path), train_split="train", test_split="train")
    known = dict(zip(pixels(rows.train), rows.train_labels.tolist(), strict=True))
    assert [known[image] for image in pixels(splits.train)] == splits.train_labels.tolist()
    assert [known[image] for image in pixels(splits.test)] == splits.test_labels.tolist()
    assert sorted(pixels(splits.train) + pixels(splits.test)) == sorted(known)
    assert splits.test.labels is not None
    assert splits.test.labels.tolist() == splits.test_labels.tolist()
    assert splits.test.fingerprint != splits.train.fingerprint != rows.train.fingerprint


def test_the_held_out_images_depend_on_the_seed_alone(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1] * 20, Value("int64"))
    one, same, other = (
        pixels(load_splits(str(tmp_path), test_fraction=0.25, seed=seed).test) for seed in (0, 0, 1)
    )
    assert one == same
    assert set(one) != set(other)


def fill(folder: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)
    return str(folder)


CLASSES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)]


@pytest.mark.parametrize(
    ("names", "test_name", "images"),
    [
        (CLASSES, "0.2 of train", 4),
        ([f"{split}/{name}" for split in ("train", "val") for name in CLASSES], "validation", 20),
    ],
)
def test_defaults_work_for_folders_without_a_test_split(
    tmp_path: Path, names: list[str], test_name: str, images: int
) -> None:
    with pytest.warns(UserWarning, match=f"no split 'test', so the test images are {test_name}"):
        splits = load_splits(fill(tmp_path, *names))
    assert (splits.test_name, len(splits.test)) == (test_name, images)


def test_the_test_split_is_taken_where_there_is_one(tmp_path: Path) -> None:
    folder = fill(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_splits(folder).test_name == "test"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 0.2, "test_split": "test"}, "test_split is test and test_fraction 0.2"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0: give a number between 0 and 1"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
    ],
)
def test_fractions_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(fill(tmp_path, *CLASSES), **options)


def test_images_that_need_no_labels_are_divided_without_them(tmp_path: Path) -> None:
    folder = fill(tmp_path, *(f"{number}.png" for number in range(10)))
    with pytest.warns(UserWarning, match="the test images are 0.2 of train"):
        splits = load_splits(folder, labels=False)
    assert (len(splits.train), len(splits.test)) == (8, 2)
    assert len({*pixels(splits.train), *pixels(splits.test)}) == 10


def test_masks_are_divided_like_their_images(tmp_path: Path) -> None:
    names = ["cat", "dog", "owl"] * 5
    shades = [np.full((4, 4), number, np.uint8) for number in range(len(names))]
    columns = {"image": shades, "mask": shades, "label": range(len(names)), "animal": names}
    kinds = {"image": Image(), "mask": Image(), "label": Value("int64"), "animal": Value("string")}
    rows = Dataset.from_dict(columns, features=Features(kinds))
    options: dict[str, Any] = {"train_split": "train", "test_fraction": 0.4}
    options |= {"dataset": rows, "label_column": "animal"}
    splits, masks = load_splits(**options), load_masks("mask", **options)
    for images, part in zip((splits.train, splits.test), masks, strict=True):
        shown = [int(np.asarray(image)[0, 0, 0]) for image in images.read(range(len(images)))]
        assert shown == [int(part.read(place)[0, 0]) for place in range(len(part))]


def test_a_fraction_needs_labels_and_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no labels: test_fraction takes a share of each class"):
        load_splits(fill(tmp_path / "flat", "1.png", "2.png"), test_fraction=0.5)
    with pytest.raises(ValueError, match="each of the 2 classes has one image"):
        load_splits(fill(tmp_path / "few", "cat/1.png", "dog/1.png"), test_fraction=0.5)


def test_several_labels_an_image(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, split, [[0, 1], [1]], [Value("int64")])
    with pytest.raises(
        ValueError,
        match=(
            "column 'label'.*several labels an image, not one; set --label_column to a column of "
            "integers or strings"
        ),
    ):
        load(tmp_path)


def test_classes_with_few_images() -> None:
    labels = torch.tensor([0, 0, 1, 0])
    check_images_per_class(labels, 1)
    with pytest.raises(ValueError, match="class 'cat' has 1 training images, and 2 shots"):
        check_images_per_class(labels, 2, ["bee", "cat"])


def source(folder: Path, seeds: list[int], kind: str) -> ImageSource:
    """One image of noise a seed, as files or as bytes in a table."""
    folder.mkdir()
    for place, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{place}.png")
    paths = [folder / f"{place}.png" for place in range(len(seeds))]
    if kind == "paths":
        return ImageSource(Dataset.from_dict({"image": [str(path) for path in paths]}))
    rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    return ImageSource(
        Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)}))
    )


@pytest.mark.parametrize("kinds", [("bytes", "bytes"), ("paths", "bytes"), ("paths", "paths")])
def test_images_in_both_splits_are_found(kinds: tuple[str, str], tmp_path: Path) -> None:
    train = source(tmp_path / "train", [*range(300)], kinds[0])
    test = source(tmp_path / "test", [700, 299, 701, 3], kinds[1])
    assert overlapping_images(train, test) == [1, 3]
    assert overlapping_images(test, test) == [0, 1, 2, 3]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_the_held_out_part_is_stratified(fraction: float) -> None:
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 7 + [3] + [5] * 2)[torch.randperm(150)]
    mask = held_out(labels, fraction, seed=0)
    for label, count in zip(*np.unique(labels.numpy(), return_counts=True), strict=True):
        held = int(mask[labels == label].sum())
        assert abs(held - fraction * count) <= 1
        assert held < count
    assert not torch.equal(mask, held_out(labels, fraction, seed=1))
