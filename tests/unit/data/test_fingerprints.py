"""Fingerprints: another one for every change of an image, the same one for the same images."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from esvit_hf.data.sources import ImageSource, load_image_source

IMAGES = 150


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(changed: int | None = None) -> Dataset:
    images = [{"bytes": png(number), "path": None} for number in range(IMAGES)]
    if changed is not None:
        images[changed] = {"bytes": png(IMAGES + 1), "path": None}
    return Dataset.from_dict({"image": images}).cast_column("image", ImageFeature())


def write_files(folder: Path, changed: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(IMAGES):
        path = folder / f"{number:03d}.png"
        if not path.is_file() or number == changed:
            path.write_bytes(png(IMAGES + 1 if number == changed else number))


def folder_of_images(folder: Path, changed: int | None) -> ImageSource:
    write_files(folder, changed)
    return load_image_source(str(folder))


def folder_of_parquet(folder: Path, changed: int | None) -> ImageSource:
    folder.mkdir(exist_ok=True)
    rows(changed).to_parquet(folder / "train.parquet")
    return load_image_source(str(folder))


def in_memory(folder: Path, changed: int | None) -> ImageSource:
    return ImageSource(rows(changed))


def saved_bytes(folder: Path, changed: int | None) -> ImageSource:
    rows(changed).save_to_disk(folder)
    return load_image_source(str(folder))


def saved_paths(folder: Path, changed: int | None) -> ImageSource:
    write_files(folder, changed)
    table = folder / "table"
    if not table.exists():
        paths = sorted(map(str, folder.glob("*.png")))
        Dataset.from_dict({"image": paths}).save_to_disk(table)
    return ImageSource(load_from_disk(str(table)).cast_column("image", ImageFeature()))


KINDS = [folder_of_images, folder_of_parquet, in_memory, saved_bytes, saved_paths]


@pytest.mark.parametrize("changed", [0, 1, 77, IMAGES - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_counts(
    tmp_path: Path, kind: Callable[[Path, int | None], ImageSource], changed: int
) -> None:
    before = kind(tmp_path / "data", None).fingerprint
    assert kind(tmp_path / "data", changed).fingerprint != before


@pytest.mark.parametrize("kind", [folder_of_images, in_memory, saved_paths])
def test_the_same_images_have_one_fingerprint(
    tmp_path: Path, kind: Callable[[Path, int | None], ImageSource]
) -> None:
    before = kind(tmp_path / "data", None).fingerprint
    assert kind(tmp_path / "data", None).fingerprint == before


@pytest.mark.parametrize("kind", [folder_of_parquet, saved_bytes])
def test_the_same_table_has_one_fingerprint(
    tmp_path: Path, kind: Callable[[Path, int | None], ImageSource]
) -> None:
    before = kind(tmp_path / "data", None).fingerprint
    assert load_image_source(str(tmp_path / "data")).fingerprint == before


@pytest.mark.parametrize("kind", KINDS)
def test_choice_and_order_count(
    tmp_path: Path, kind: Callable[[Path, int | None], ImageSource]
) -> None:
    source = kind(tmp_path / "data", None)
    orders = [[0, 1, 2], [2, 1, 0], [0, 1, 3], [0, 1]]
    assert len({source.take(order, "").fingerprint for order in orders}) == 4
    assert source.take([0, 5], "").fingerprint == source.take([0, 5], "").fingerprint


def test_labels_count() -> None:
    images = rows().select(range(3))
    sources = [ImageSource(images.add_column("label", labels)) for labels in ([0, 1, 1], [0, 1, 0])]
    assert sources[0].fingerprint != sources[1].fingerprint


def test_a_file_that_is_gone_counts(tmp_path: Path) -> None:
    before = folder_of_images(tmp_path / "data", None).fingerprint
    again = load_image_source(str(tmp_path / "data"))
    (tmp_path / "data" / "003.png").unlink()
    assert again.fingerprint != before


def test_a_file_that_is_touched_counts(tmp_path: Path) -> None:
    before = folder_of_images(tmp_path / "data", None).fingerprint
    os.utime(tmp_path / "data" / "003.png", (1, 1))
    assert load_image_source(str(tmp_path / "data")).fingerprint != before


def test_files_that_keep_their_size_and_time_count(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_files(folder)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    before = load_image_source(str(folder)).fingerprint
    first, second = folder / "003.png", folder / "004.png"
    assert first.stat().st_size == second.stat().st_size
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)
    renamed = load_image_source(str(folder)).fingerprint
    first.write_bytes(second.read_bytes())
    os.utime(first, (1, 1))
    assert len({before, renamed, load_image_source(str(folder)).fingerprint}) == 3
