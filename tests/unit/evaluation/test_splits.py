"""Labels of two splits, what is refused before anything is computed, and images that both splits
hold.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from esvit_hf.data.sources import ImageSource
from esvit_hf.evaluation.splits import check_images_per_class, load_splits, overlapping_images


def write(folder: Path, split: str, labels: list[Any], feature: Any, *, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    images = [
        PILImage.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in labels
    ]
    rows = Dataset.from_dict(
        {"image": images, "label": labels}, features=Features({"image": Image(), "label": feature})
    )
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def load(folder: Path, **columns: str) -> Any:
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
        match="2 test classes have no training image, for example class 'ant'.*drop those",
    ):
        load(tmp_path)


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
