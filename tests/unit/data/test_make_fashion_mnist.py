"""The script that made the shipped data, on small files in the original format."""

import gzip
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tests.support.paths import EXAMPLES

from esvit_hf.data.sources import load_image_source

SCRIPT = EXAMPLES / "make_fashion_mnist.py"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    function: Callable[..., None] = script["make_fashion_mnist"]
    return function


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Four small IDX files: 40 training and 20 test images, 4 and 2 of each class."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.random.default_rng(count).permutation(np.arange(count, dtype=np.uint8) % 10)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([2048 + array.ndim, *array.shape], dtype=">u4").tobytes()
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(
                gzip.compress(header + array.tobytes())
            )
    return folder


def test_the_first_images_of_each_class_in_their_order(
    make: Callable[..., None], originals: Path, tmp_path: Path
) -> None:
    make(originals, tmp_path / "out", train_per_class=3, test_per_class=1)
    raw = gzip.decompress((originals / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw[16:], np.uint8).reshape(-1, 28, 28)
    labels = np.frombuffer(
        gzip.decompress((originals / "train-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    )
    kept = [index for index, label in enumerate(labels) if (labels[:index] == label).sum() < 3]
    source = load_image_source(str(tmp_path / "out"))
    assert source.labels is not None
    assert source.labels.tolist() == labels[kept].tolist()
    for image, index in zip(source.read(range(30)), kept, strict=True):
        np.testing.assert_array_equal(np.asarray(image)[:, :, 0], images[index])
    assert len(load_image_source(str(tmp_path / "out"), split="test")) == 10


def test_wrong_input_is_named(make: Callable[..., None], originals: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose 1 to 4"):
        make(originals, tmp_path / "out", train_per_class=5)
    with pytest.raises(ValueError, match="does not exist; FOLDER must hold"):
        make(tmp_path, tmp_path / "out")
    (originals / "train-images-idx3-ubyte.gz").write_bytes(
        (originals / "train-labels-idx1-ubyte.gz").read_bytes()
    )
    with pytest.raises(ValueError, match="starts with 2049 instead of 2051"):
        make(originals, tmp_path / "out")
