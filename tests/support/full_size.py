"""Checkpoints as large as the released ones, made from the manifests."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from esvit_hf.reference.from_reference import read_reference_checkpoint


def position_index(shape: list[int], golden_vil: Mapping[str, Tensor]) -> Tensor:
    """Indices that the reference stores: computed for windows, taken from a golden for ViL."""
    for key, tensor in golden_vil.items():
        if key.endswith("relative_position_index") and list(tensor.shape) == shape:
            return tensor
    window = math.isqrt(shape[0])
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    offsets = places[:, None] - places[None] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def full_size_checkpoint(
    manifest: Mapping[str, Any], golden: Callable[[str], Any], *, with_heads: bool
) -> dict[str, Any]:
    """Tensors of the shapes of a manifest, each full of a number of its own; constants take no
    space in a file.
    """
    vil = read_reference_checkpoint(golden("vil_view_region").checkpoint)["teacher"]
    networks: dict[str, dict[str, Tensor]] = {}
    for network in ("student", "teacher"):
        networks[network] = {}
        for number, (key, (shape, dtype)) in enumerate(manifest[network].items()):
            if re.match(r"(module\.)?head", key) and not with_heads:
                continue
            if re.search(r"relative_position_index|rel_pos_idx", key):
                is_vil = manifest["spec"]["family"] == "vil"
                networks[network][key] = position_index(shape, vil if is_vil else {})
            else:
                # ViL stores these twice.
                number = (
                    list(manifest[network]).index(key.replace("_global.", "."))
                    if "_global." in key
                    else number
                )
                networks[network][key] = torch.full(
                    (1,) * len(shape), number, dtype=getattr(torch, dtype)
                ).expand(shape)
    prototypes = manifest["spec"]["head"]["out_dim"]
    centers = {
        "center": torch.full((1, prototypes), 0.25),
        "center_grid": torch.full((1, prototypes), 0.5),
    }
    return {
        **networks,
        "dino_loss": centers if with_heads else {},
        "args": argparse.Namespace(arch="any"),
    }
