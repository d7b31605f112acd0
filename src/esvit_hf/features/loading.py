"""Networks, images and kept features from the options that verbs and commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from esvit_hf.backbones.adapter import RegionBackbone
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.common.options import Batches, DataSplit, FeatureCache, ModelSource
from esvit_hf.common.places import check_model_place
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.features.extraction import load_image_processor
from esvit_hf.features.store import FeatureStore, default_features_folder

__all__ = ["load_images", "load_network", "open_store"]


def load_network(source: ModelSource) -> tuple[RegionBackbone, Callable[..., Any]]:
    """Load a network and its image processor.

    Args:
        source: names of both.

    Returns:
        The backbone in evaluation mode, and the processor.

    Raises:
        ValueError: one of them cannot be loaded; the message names the remedy.
    """
    trust = source.trust_remote_code
    backbone = load_backbone(source.model, revision=source.revision, trust_remote_code=trust)
    processor = load_image_processor(
        str(source.processor or source.model),
        # A revision is one of the model's.
        revision=None if source.processor else source.revision,
        trust_remote_code=trust,
    )
    return backbone, processor


def load_images(data: DataSplit) -> ImageSource:
    """Open the images of one split.

    Args:
        data: where they are.

    Returns:
        The images, with labels where there are some.

    Raises:
        ValueError: they cannot be opened; the message names the remedy.
    """
    return load_image_source(
        str(data.dataset),
        split=data.split,
        config_name=data.config_name,
        image_column=data.image_column,
        label_column=data.label_column,
        max_image_pixels=data.max_image_pixels,
    )


def open_store(
    source: ModelSource, batches: Batches, cache: FeatureCache, accelerator: Accelerator
) -> FeatureStore:
    """Open the features of a network that are kept on disk.

    Args:
        source: names of the network and its image processor.
        batches: how images are read.
        cache: where features are kept.
        accelerator: device, processes and mixed precision.

    Returns:
        The store; the network is loaded when it is first needed.

    Raises:
        ValueError: the folder cannot be made, or there is no such network.
    """
    check_model_place(str(source.model), revision=source.revision)
    return FeatureStore(
        Path(cache.features_folder or default_features_folder()),
        str(source.model),
        processor=None if source.processor is None else str(source.processor),
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        batch_size=batches.batch_size,
        num_workers=batches.num_workers,
        accelerator=accelerator,
    )
