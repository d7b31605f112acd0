"""Feature extraction on two processes gives the rows of one process, bit for bit."""

from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from tests.support.photo_folders import noise, save_model
from tests.support.process_group import run_on_processes

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.features.extraction import compute_features
from esvit_hf.features.files import extract_features

# Full and uneven last batches, an odd number of batches, and a process without any image.
COUNTS = (8, 11, 13, 3)
BATCH_SIZE = 4


def source(count: int, broken: tuple[int, ...] = ()) -> ImageSource:
    images = [
        PILImage.effect_mandelbrot((32, 32), (-2 + 0.1 * index, -1, 1, 1), 20).convert("RGB")
        for index in range(count)
    ]
    dataset = Dataset.from_dict(
        {"image": images, "label": list(range(count))},
        features=Features({"image": Image(), "label": Value("int64")}),
    )
    rows = dataset.cast_column("image", Image(decode=False)).to_list()
    for index in broken:
        rows[index]["image"]["bytes"] = b"broken"
    return ImageSource(
        Dataset.from_list(
            rows, features=Features({"image": Image(decode=False), "label": Value("int64")})
        )
    )


def all_features(blocks: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    backbone = RegionBackbone(EsvitSwinModel(config))
    processor = EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    accelerator = Accelerator()
    tensors = {}
    for count in COUNTS:
        features = compute_features(
            backbone,
            source(count),
            processor,
            blocks=blocks,
            batch_size=BATCH_SIZE,
            accelerator=accelerator,
        )
        assert features.labels is not None
        tensors[f"{count}.values"], tensors[f"{count}.labels"] = features.values, features.labels
    with pytest.raises(ValueError, match=r"^2 of 9 images cannot be decoded.*image 3: .*image 5: "):
        compute_features(
            backbone, source(9, (3, 5)), processor, batch_size=BATCH_SIZE, accelerator=accelerator
        )
    # Only the first process has images that no batch can hold; the other must not wait for it.
    keeps_sizes = EsvitImageProcessor(do_resize=False, do_center_crop=False)
    photos = Dataset.from_dict({"image": [noise(1), noise(2).crop((0, 0, 9, 9))]})
    with pytest.raises(ValueError, match="cannot batch image 0 to image 1"):
        compute_features(
            backbone,
            ImageSource(photos.cast_column("image", Image(decode=False))),
            keeps_sizes,
            accelerator=accelerator,
        )
    return tensors


def work(folder: Path) -> None:
    """What each of the two processes runs."""
    tensors = {blocks: all_features(blocks) for blocks in (1, 2)}
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    for blocks, values in tensors.items():
        save_file(values, folder / f"{accelerator.process_index}-{blocks}.safetensors")
    write_rows(folder, "two")
    accelerator.end_training()


def write_rows(folder: Path, name: str) -> None:
    """Write one part, of which a second process has none, and a part for each of two processes."""
    for size in (5, 3):
        extract_features(
            *(folder / "model", folder / "photos"),
            output=folder / f"{name}-{size}" / "rows-{shard}.parquet",
            rows_per_shard=size,
            num_workers=1,
        )


@pytest.mark.distributed
def test_two_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        noise(seed).save(tmp_path / "photos" / f"{seed}.png")
    run_on_processes(2, work, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for blocks in (1, 2):
            expected = all_features(blocks)
            assert expected["11.values"].unique(dim=0).shape[0] == 11
            for process in (0, 1):
                found = load_file(tmp_path / f"{process}-{blocks}.safetensors")
                assert found.keys() == expected.keys()
                for name, tensor in expected.items():
                    assert torch.equal(found[name], tensor), name
        write_rows(tmp_path, "one")
        for size, shards in ((5, 1), (3, 2)):
            one, two = (
                [pyarrow.parquet.read_table(path) for path in sorted(folder.iterdir())]
                for folder in (tmp_path / f"one-{size}", tmp_path / f"two-{size}")
            )
            assert len(one) == shards
            assert one == two
    finally:
        torch.set_num_threads(threads)
