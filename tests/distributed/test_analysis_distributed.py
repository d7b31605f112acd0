"""Correspondence and attention entropy on two processes are those of one, digit for digit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from tests.support.process_group import run_on_processes

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.data.sources import ImageSource
from esvit_hf.regions.attention import measure_attention_entropy
from esvit_hf.regions.correspondence import measure_correspondence

# Full and uneven last batches, an odd number of batches, and a process without any image.
COUNTS = (8, 11, 3)
BATCH_SIZE = 4


def source(count: int, broken: tuple[int, ...] = ()) -> ImageSource:
    images = [
        PILImage.effect_mandelbrot((40 + index, 36), (-2 + 0.1 * index, -1, 1, 1), 20).convert(
            "RGB"
        )
        for index in range(count)
    ]
    rows = (
        Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
        .cast_column("image", Image(decode=False))
        .to_list()
    )
    for index in broken:
        rows[index]["image"]["bytes"] = b"broken"
    return ImageSource(Dataset.from_list(rows, features=Features({"image": Image(decode=False)})))


def all_numbers() -> dict[str, Any]:
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4
    )
    backbone = RegionBackbone(EsvitSwinModel(config))
    processor = EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    settings: dict[str, Any] = {"batch_size": BATCH_SIZE, "accelerator": Accelerator()}
    numbers: dict[str, Any] = {}
    for count in COUNTS:
        images = source(count)
        for protocol in ("crops", "mirror"):
            result = measure_correspondence(
                backbone, images, processor, protocol=protocol, grid=4, **settings
            )
            numbers[f"{protocol} {count}"] = asdict(result)
        records = measure_attention_entropy(backbone, images, processor, **settings)
        numbers[f"attention {count}"] = [asdict(record) for record in records]
    with pytest.raises(ValueError, match=r"^2 of 9 images cannot be decoded.*image 3: .*image 5: "):
        measure_correspondence(backbone, source(9, (3, 5)), processor, **settings)
    # Only the first process has an image that the network refuses; the others must not wait for it.
    with pytest.raises(ValueError, match="reports 4 hidden states"):
        measure_correspondence(backbone, source(2), processor, layer=7, **settings)
    return numbers


def work(folder: Path) -> None:
    """What each of the two processes runs."""
    numbers = all_numbers()
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(numbers))
    accelerator.end_training()


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    run_on_processes(2, work, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = json.loads(json.dumps(all_numbers()))
    finally:
        torch.set_num_threads(threads)
    for process in (0, 1):
        assert json.loads((tmp_path / f"{process}.json").read_text()) == expected
