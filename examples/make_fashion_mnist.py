"""Write the class-balanced Fashion-MNIST subset that the demo trains on.

Usage: python examples/make_fashion_mnist.py FOLDER [--output src/esvit_hf/recipes/fashion_mnist]
FOLDER holds the four original ``*-ubyte.gz`` files, for example those of Debian's package
``dataset-fashion-mnist``.
"""

import gzip
import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from esvit_hf.commands.command_line import run

CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049


def read_idx(path: Path, magic: int) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes.

    Args:
        path: the file.
        magic: the number the file must start with: 2051 for images, 2049 for labels.

    Returns:
        Array of uint8: (images, rows, columns) or (labels,).

    Raises:
        ValueError: the file is missing or is something else.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; FOLDER must hold the four original Fashion-MNIST .gz files"
        )
    data = gzip.decompress(path.read_bytes())
    found = int.from_bytes(data[:4], "big")
    if found != magic:
        raise ValueError(f"{path} starts with {found} instead of {magic}; fetch the file again")
    num_dims = magic & 0xFF
    shape = [int(side) for side in np.frombuffer(data, ">u4", count=num_dims, offset=4)]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode one grayscale image as the smallest PNG that Pillow can write.

    Args:
        pixels: (height, width) uint8.

    Returns:
        The bytes of the file.
    """
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_split(folder: Path, prefix: str, per_class: int, path: Path) -> None:
    """Write the first images of every class, in their original order, as one parquet file.

    Args:
        folder: where the IDX files are.
        prefix: ``train`` or ``t10k``, the start of the original file names.
        per_class: images of each class to keep.
        path: the parquet file to write.

    Raises:
        ValueError: a class has too few images.
    """
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", IMAGE_MAGIC)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", LABEL_MAGIC)
    fewest = int(np.bincount(labels, minlength=len(CLASS_NAMES)).min())
    if not 1 <= per_class <= fewest:
        raise ValueError(f"{per_class} images a class asked of {prefix}; choose 1 to {fewest}")
    chosen = np.sort(
        np.concatenate(
            [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]
        )
    )
    columns = {
        "image": [{"bytes": encode_png(images[index]), "path": None} for index in chosen],
        "label": [int(labels[index]) for index in chosen],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=CLASS_NAMES)})
    Dataset.from_dict(columns, features=features).to_parquet(path)
    print(f"{path}: {len(chosen)} images, {path.stat().st_size / 1e6:.2f} MB")


def make_fashion_mnist(
    folder: Path,
    output: Path = Path("src/esvit_hf/recipes/fashion_mnist"),
    train_per_class: int = 1000,
    test_per_class: int = 200,
) -> None:
    """Write the train and the test parquet file.

    Args:
        folder: holds the four original ``*-ubyte.gz`` files.
        output: where to write.
        train_per_class: training images of each of the ten classes.
        test_per_class: test images of each of the ten classes.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_split(folder, "train", train_per_class, output / "train-00000-of-00001.parquet")
    write_split(folder, "t10k", test_per_class, output / "test-00000-of-00001.parquet")


if __name__ == "__main__":
    run(make_fashion_mnist)
