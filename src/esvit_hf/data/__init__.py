"""From any images to batches of augmented crops."""

from esvit_hf.data.color import augment
from esvit_hf.data.decoding import BrokenImage, decode_image
from esvit_hf.data.multicrop import (
    CropBatch,
    MultiCropDataset,
    TooManyBrokenImagesError,
    make_multicrop_loader,
)
from esvit_hf.data.sampling import EpochSampler, StreamSampler
from esvit_hf.data.sources import ImageSource, load_image_source
from esvit_hf.data.streaming import StreamSource, open_stream
from esvit_hf.data.views import ViewSpec, dino_views, expand_views

__all__ = [
    "BrokenImage",
    "CropBatch",
    "EpochSampler",
    "ImageSource",
    "MultiCropDataset",
    "StreamSampler",
    "StreamSource",
    "TooManyBrokenImagesError",
    "ViewSpec",
    "augment",
    "decode_image",
    "dino_views",
    "expand_views",
    "load_image_source",
    "make_multicrop_loader",
    "open_stream",
]
