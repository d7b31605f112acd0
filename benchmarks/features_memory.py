"""Rows of features of generated images: does memory grow with their number?

`python -m benchmarks.features_memory --rows '[1000, 1000000]'` prints the largest memory of this
process so far, in MiB, and the speed, after each number of rows. The last line is JSON.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Features, Value
from jsonargparse import auto_cli
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.measure import MEBIBYTE
from esvit_hf import EsvitImageProcessor
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.features.row_features import RowOptions
from esvit_hf.features.row_output import RowOutput
from esvit_hf.features.row_writing import write_features
from esvit_hf.features.store import FeatureStore

SIDE = 8


class WideConfig(PreTrainedConfig):
    """Settings of a `WideNetwork`."""

    image_size = SIDE
    width = 64


class WideNetwork(PreTrainedModel):
    """Pixels, repeated until they are a wide map of one region."""

    config_class = WideConfig
    main_input_name = "pixel_values"

    def __init__(self, config: WideConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutput:
        """Repeat and scale the pixels."""
        width = self.config.width
        repeated = pixel_values.flatten(1).repeat(1, width // (3 * SIDE**2) + 1)[:, :width]
        return BaseModelOutput(last_hidden_state=(repeated * self.scale)[:, :, None, None])


class GeneratedRows:
    """Images that are made when they are read.

    Args:
        rows: their number.
    """

    columns = Features({"index": Value("int64")})

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.fingerprint = f"{rows} generated images"

    def __len__(self) -> int:
        return self.rows

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        """Make images of one shade each."""
        return [np.full((SIDE, SIDE, 3), index % 256, dtype=np.uint8) for index in indices]

    def identify(self, start: int, stop: int) -> dict[str, pyarrow.Array]:
        """Number the images."""
        return {"index": pyarrow.array(range(start, stop))}


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return found * 1024 / MEBIBYTE


def measure(
    rows: Sequence[int] = (1_000, 1_000_000),
    width: int = 64,
    rows_per_shard: int = 10_000,
    shards: bool = False,
) -> None:
    """Write rows of features, and print memory and speed.

    Args:
        rows: numbers of images, ascending.
        width: channels of a feature.
        rows_per_shard: images that memory may hold at once.
        shards: write one file a part, not one file.
    """
    processor = EsvitImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    config = WideConfig()
    config.width = width
    backbone = RegionBackbone(WideNetwork(config))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), backbone, processor=processor)
        for count in rows:
            name = f"{count}/" if shards else f"{count}.parquet"
            output = RowOutput(f"{folder}/{name}", regions=False, overwrite=False)
            options = RowOptions(num_workers=0)
            start = time.perf_counter()
            report = write_features(store, GeneratedRows(count), output, options, rows_per_shard)
            seconds = time.perf_counter() - start
            assert report is not None and report["rows"] == count
            found.append({"rows": count, "peak": peak(), "rows_per_second": count / seconds})
            print(f"{count} rows: {peak():.0f} MiB, {count / seconds:.0f} rows/s", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    auto_cli(measure)
