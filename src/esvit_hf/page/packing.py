"""Arrays as browsers get them: bytes in base64 beside their shape."""

import base64
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from esvit_hf.regions.whole_images import ImageRegions

__all__ = ["pack_maps", "pack_regions"]

_LARGEST_BYTE = 255
_LARGEST_SIGNED_BYTE = 127


def pack_regions(regions: ImageRegions) -> dict[str, Any]:
    """Pack the directions of the features: a byte a number, scaled for each region by its largest.

    Cosines of what is unpacked and normalized again differ by less than 0.01.

    Args:
        regions: features of an image.

    Returns:
        `grid` [h, w], `channels`, and `features`, int8 in base64, row-major.
    """
    features = F.normalize(regions.features, dim=2)
    largest = features.abs().amax(dim=2, keepdim=True).clamp(min=1e-12)
    signed = (features / largest * _LARGEST_SIGNED_BYTE).round().numpy().astype(np.int8)
    return {
        "grid": list(regions.grid),
        "channels": features.shape[2],
        "features": _base64(signed),
    }


def pack_maps(maps: Tensor) -> dict[str, Any]:
    """Pack maps of probabilities: a byte a number, scaled by the largest of all.

    Args:
        maps: (n, h, w), none below 0.

    Returns:
        `grid` [h, w], `count`, `largest`, and `values`, uint8 in base64.
    """
    largest = float(maps.max())
    scaled = maps / max(largest, 1e-12) * _LARGEST_BYTE
    return {
        "grid": list(maps.shape[1:]),
        "count": len(maps),
        "largest": largest,
        "values": _base64(scaled.round().numpy().astype(np.uint8)),
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
