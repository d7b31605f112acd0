"""Image folders: splits and labels decided split by split, links followed, and nothing left out
without a word.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from esvit_hf.data.loading import load_dataset_split, local_split_names


def fill(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in {".jpg", ".png", ".avif", ".tif"}:
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_bytes(b"x")
    return root


def read(root: Path, split: str = "train") -> dict[str, str | None]:
    """Class of each image, by the image's path below the root; warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = load_dataset_split(str(root), split=split)
    return listed(rows, root)


def listed(rows, root: Path) -> dict[str, str | None]:
    table = rows.with_format("arrow")[:]
    paths = [value["path"] for value in table["image"].to_pylist()]
    names = [None] * len(rows)
    if "label" in rows.column_names:
        names = [rows.features["label"].names[number] for number in table["label"].to_pylist()]
    return {
        Path(path).relative_to(root).as_posix(): name
        for path, name in zip(paths, names, strict=True)
    }


def read_with_warning(root: Path, split: str, message: str) -> dict[str, str | None]:
    with pytest.warns(UserWarning, match=message):
        rows = load_dataset_split(str(root), split=split)
    return listed(rows, root)


SPLITS = ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")


@pytest.mark.parametrize(
    "extra", ["annotations/x.xml", "wandb/run/log.txt", ".git/config", "checkpoints/1.bin", "a.csv"]
)
def test_folders_without_images_are_no_matter(tmp_path: Path, extra: str) -> None:
    fill(tmp_path, *SPLITS, extra)
    assert read(tmp_path) == {"train/cat/1.jpg": "cat", "train/dog/2.jpg": "dog"}
    assert read(tmp_path, "validation") == {"val/cat/3.jpg": "cat"}
    assert local_split_names(tmp_path) == ["train", "validation"]


def test_an_empty_folder_beside_the_splits(tmp_path: Path) -> None:
    (fill(tmp_path, *SPLITS) / "wandb").mkdir()
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("unlabeled/4.jpg", "belongs to no split: 1 image in unlabeled/"),
        ("cover.jpg", "belongs to no split: 1 image beside the folders"),
    ],
)
def test_images_beside_the_splits_are_said(tmp_path: Path, extra: str, message: str) -> None:
    fill(tmp_path, *SPLITS, extra)
    assert read_with_warning(tmp_path, "train", message) == {
        "train/cat/1.jpg": "cat",
        "train/dog/2.jpg": "dog",
    }


def test_a_training_folder_with_classes_is_a_split_beside_another_folder(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "more/3.jpg")
    assert len(read_with_warning(tmp_path, "train", "no split: 1 image in more/")) == 2


def test_classes_may_have_the_names_of_splits(tmp_path: Path) -> None:
    fill(tmp_path, "bus/1.jpg", "car/2.jpg", "train/3.jpg")
    found = read_with_warning(tmp_path, "train", "no splits, but classes or parts of them: train")
    assert found == {"bus/1.jpg": "bus", "car/2.jpg": "car", "train/3.jpg": "train"}


def test_splits_below_classes_are_said(tmp_path: Path) -> None:
    fill(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg")
    found = read_with_warning(tmp_path, "train", "classes or parts of them: test, train")
    assert set(found.values()) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train", "data/test"),
        ("ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/test"),
        ("train2017", "test2017"),
        ("train_images", "test_images"),
        ("training_set/training_set", "test_set/test_set"),
        ("images/seg_train", "images/seg_test"),
    ],
)
def test_splits_in_other_folders_and_of_longer_names(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, f"{train}/cat/1.jpg", f"{train}/dog/2.jpg", f"{test}/cat/3.jpg")
    assert local_split_names(tmp_path) == ["test", "train"]
    assert set(read(tmp_path).values()) == {"cat", "dog"}
    assert {Path(path).name for path in read(tmp_path, "test")} == {"3.jpg"}


def test_classes_may_contain_the_names_of_splits(tmp_path: Path) -> None:
    fill(tmp_path, "bus/1.jpg", "train_station/2.jpg")
    assert set(read(tmp_path).values()) == {"bus", "train_station"}
    fill(tmp_path, "test_tube/3.jpg")
    found = read_with_warning(tmp_path, "train", "parts of them: test_tube, train_station")
    assert set(found.values()) == {"bus", "train_station", "test_tube"}


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "valid/cat/3.jpg")
    with pytest.raises(ValueError, match="two folders for the split 'validation', val/ and valid/"):
        read(tmp_path)


def test_a_stray_image_does_not_take_the_labels(tmp_path: Path) -> None:
    fill(tmp_path, *SPLITS, "val/dog/4.jpg", "val/contact_sheet.png")
    found = read_with_warning(
        tmp_path, "validation", r"folders of validation \(first contact_sheet"
    )
    assert found == {"val/cat/3.jpg": "cat", "val/dog/4.jpg": "dog"}
    assert read(tmp_path) == {"train/cat/1.jpg": "cat", "train/dog/2.jpg": "dog"}


def test_a_flat_split_has_no_labels_and_the_other_keeps_its_own(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/3.jpg", "val/4.jpg")
    assert read(tmp_path) == {"train/cat/1.jpg": "cat", "train/dog/2.jpg": "dog"}
    assert read(tmp_path, "validation") == {"val/3.jpg": None, "val/4.jpg": None}
    assert set(read(tmp_path, "train+validation").values()) == {None}


def test_a_flat_folder_keeps_what_lies_in_its_folders(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg", "2.jpg", "3.jpg", "more/4.jpg")
    found = read_with_warning(
        tmp_path, "train", "no labels: 3 images beside its folders, 1 in them"
    )
    assert set(found) == {"1.jpg", "2.jpg", "3.jpg", "more/4.jpg"}


def test_the_first_folder_is_the_class(tmp_path: Path) -> None:
    fill(tmp_path, "n01/images/1.jpg", "n02/images/2.jpg", "n02/images/more/3.jpg")
    assert sorted(read(tmp_path).values()) == ["n01", "n02", "n02"]


def link_classes(real: Path, root: Path) -> None:
    (root / "train").mkdir(parents=True)
    (root / "train" / "cat").symlink_to(real / "cat")
    fill(root, "train/dog/1.jpg")


def link_splits(real: Path, root: Path) -> None:
    root.mkdir()
    (root / "train").symlink_to(real)
    (root / "test").symlink_to(real)


def link_files(real: Path, root: Path) -> None:
    for name in ("cat/1.jpg", "dog/1.jpg"):
        (root / name).parent.mkdir(parents=True)
        (root / name).symlink_to(real / name)


@pytest.mark.parametrize("link", [link_classes, link_splits, link_files])
def test_links_are_followed(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    link(fill(tmp_path / "real", "cat/1.jpg", "dog/1.jpg"), tmp_path / "linked")
    assert sorted(read(tmp_path / "linked").values()) == ["cat", "dog"]


def test_links_to_nothing_and_in_circles_are_said(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)
    found = read_with_warning(tmp_path, "train", r"links to nothing \(1\)")
    assert found == {"cat/1.jpg": "cat", "dog/1.jpg": "dog"}
    read_with_warning(tmp_path, "train", r"links to a folder above \(1\)")


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    names = [f"cat/{name}" for name in ("2.HEIC", "3.npy", "4.npy", "._1.jpg", "notes")]
    fill(tmp_path, "cat/1.jpg", "dog/1.avif", *names)
    message = r"not taken for images: .npy \(2\), (\.heic|hidden|without an ending) \(1\), "
    assert read_with_warning(tmp_path, "train", message) == {
        "cat/1.jpg": "cat",
        "dog/1.avif": "dog",
    }


def test_names_that_cannot_be_written_down_are_said(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/1.jpg")
    with open(os.fsencode(tmp_path) + b"/cat/\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    assert len(read_with_warning(tmp_path, "train", r"names that are no text \(1\)")) == 2


def test_images_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["cat-2/1.jpg", "cat/10.jpg", "cat/2.jpg", "cat_/1.jpg"]
    assert list(read(fill(tmp_path, *reversed(names)))) == names


@pytest.mark.parametrize(
    ("split", "images"),
    [
        ("train[:1]", ["train/cat/1.jpg"]),
        ("train[50%:]", ["train/dog/2.jpg"]),
        ("validation + train[1:]", ["val/cat/3.jpg", "train/dog/2.jpg"]),
    ],
)
def test_slices_of_splits(tmp_path: Path, split: str, images: list[str]) -> None:
    assert list(read(fill(tmp_path, *SPLITS), split)) == images


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", "no split 'test'; set --split to one of: train, validation"),
        ("train+test", "no split 'test'"),
        ("train[:x]", r"the split 'train\[:x\]' cannot be read"),
        ("train[200%:]", r"cannot be read .* or to a slice such as train\[:10%\]"),
    ],
)
def test_splits_that_there_are_not(tmp_path: Path, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(fill(tmp_path, *SPLITS), split)


def test_metadata_of_a_split_is_read_by_datasets(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    fill(tmp_path, "train/1.jpg", "train/2.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,kind\n1.jpg,cat\n2.jpg,dog\n")
    rows = load_dataset_split(str(tmp_path), split="train")
    assert sorted(rows["kind"]) == ["cat", "dog"]
