"""Prints by how many bytes the peak of memory grows from a few rows to many:
`python -m tests.support.feature_memory FOLDER`.

Every row is wide, so that rows that are kept where they should not be show.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Features, Value
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from esvit_hf import EsvitImageProcessor
from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.features.row_features import RowOptions
from esvit_hf.features.row_output import RowOutput
from esvit_hf.features.row_writing import write_features
from esvit_hf.features.store import FeatureStore

WIDTH = 8192
SIDE = 8
ROWS_PER_SHARD = 200
FEW, MANY = 1000, 5000
ROW_BYTES = 4 * WIDTH


class WideConfig(PreTrainedConfig):
    image_size = SIDE


class WideNetwork(PreTrainedModel):
    """Pixels, repeated until they are a wide map of one region."""

    config_class = WideConfig
    main_input_name = "pixel_values"

    def __init__(self, config: WideConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutput:
        repeated = pixel_values.flatten(1).repeat(1, WIDTH // (3 * SIDE**2) + 1)[:, :WIDTH]
        return BaseModelOutput(last_hidden_state=(repeated * self.scale)[:, :, None, None])


class GeneratedRows:
    """Images that are made when they are read."""

    columns = Features({"index": Value("int64")})

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.fingerprint = f"{rows} generated images"

    def __len__(self) -> int:
        return self.rows

    def read_encoded(self, indices: Sequence[int]) -> list[object]:
        return [np.full((SIDE, SIDE, 3), index % 256, dtype=np.uint8) for index in indices]

    def identify(self, start: int, stop: int) -> dict[str, pyarrow.Array]:
        return {"index": pyarrow.array(range(start, stop))}


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(folder: Path) -> None:
    processor = EsvitImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    backbone = RegionBackbone(WideNetwork(WideConfig()))
    store = FeatureStore(folder, backbone, processor=processor)
    peaks = []
    for rows in (FEW, MANY):
        output = RowOutput(folder / f"{rows}.parquet", regions=False, overwrite=False)
        options = RowOptions(num_workers=0)
        report = write_features(store, GeneratedRows(rows), output, options, ROWS_PER_SHARD)
        assert report is not None and report["rows"] == rows
        peaks.append(peak())
    print(peaks[1] - peaks[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
