"""Options that several verbs and commands share, each written once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esvit_hf.common.limits import MAX_IMAGE_PIXELS, check_least

__all__ = ["Batches", "Compute", "DataSource", "DataSplit", "FeatureCache", "ModelSource"]


@dataclass(frozen=True)
class ModelSource:
    """A vision network and the image processor that prepares its input.

    Args:
        model: Hub name or folder of any vision model that AutoModel loads.
        processor: Hub name or folder whose image processor prepares the images; the model's own if
            not given.
        revision: branch, tag or commit of the model.
        trust_remote_code: run code that the model's repository ships.
    """

    model: str | Path
    processor: str | Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataSource:
    """Images, with labels where there are some.

    Args:
        dataset: Hub name, folder of parquet files or images, or a parquet file.
        config_name: configuration of the data set, if it has several.
        image_column: column with the images; found by its type if not given.
        label_column: column with the labels; found by its type if not given.
        max_image_pixels: images with more pixels count as broken and are not decoded.
    """

    dataset: str | Path
    config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    max_image_pixels: int = MAX_IMAGE_PIXELS

    def __post_init__(self) -> None:
        check_least(max_image_pixels=(self.max_image_pixels, 1))


@dataclass(frozen=True)
class DataSplit(DataSource):
    """Images of one split.

    Args:
        split: which images, for example train, test or train[:1000].
    """

    split: str = "train"


@dataclass(frozen=True)
class FeatureCache:
    """Where features of whole data sets are kept between calls.

    Args:
        features_folder: where features are kept; ~/.cache/esvit_hf/features if not given.
    """

    features_folder: str | Path | None = None


@dataclass(frozen=True)
class Batches:
    """How images reach the network; no number depends on it.

    Args:
        batch_size: images at once on each device.
        num_workers: processes that decode images, for each device.
    """

    batch_size: int = 64
    num_workers: int = 2

    def __post_init__(self) -> None:
        check_least(batch_size=(self.batch_size, 1), num_workers=(self.num_workers, 0))


@dataclass(frozen=True)
class Compute(Batches):
    """How features are computed.

    Args:
        mixed_precision: number format of the network's computation.
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
