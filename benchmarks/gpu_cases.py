"""What `benchmarks.gpu` measures, in its size and in one for a try on a CPU: training steps of ours
and of the plain formula, networks alone, and the data path.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import SwinConfig, SwinModel

from benchmarks import reference
from benchmarks.data import SAMPLE_PHOTOGRAPHS
from benchmarks.measure import Run
from benchmarks.step import (
    MAX_NORM,
    NUM_PROTOTYPES,
    TEACHER_MOMENTUM,
    VIEWS,
    PlainNetwork,
    build_plain,
    build_step,
    draw_crops,
    transformers_features,
)
from esvit_hf.data.color import augment
from esvit_hf.data.multicrop import CropBatch, MultiCropDataset, make_multicrop_loader
from esvit_hf.data.sampling import EpochSampler
from esvit_hf.data.sources import load_image_source
from esvit_hf.data.views import dino_views
from esvit_hf.pretraining.compilation import compile_blocks
from esvit_hf.pretraining.optimizer import clip_each_gradient

PLAIN_BLOCKS = ("SwinLayer", "SwinTransformerBlock")
"""Blocks of transformers' and timm's Swin."""


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        batches: images in a step; the first one counts most.
        fields: of our configurations, by model type.
        swin: fields of transformers' Swin.
        timm: arguments of timm's Swin.
        compilers: arguments of `compile_blocks`, by the way of compiling.
        product_side: of the square matrices that give the device's speed.
        photographs: JPEG files of the data path.
        workers: processes that decode.
    """

    views: tuple[tuple[int, int], ...]
    num_prototypes: int
    batches: tuple[int, ...]
    fields: Mapping[str, Mapping[str, Any]]
    swin: Mapping[str, Any]
    timm: Mapping[str, Any]
    compilers: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"blocks": {}, "graphs": {"mode": "reduce-overhead"}}
    )
    product_side: int = 8192
    evaluation_batch: int = 256
    photographs: int = 2048
    workers: int = max(1, (os.cpu_count() or 2) - 1)

    @property
    def channels(self) -> int:
        """Channels of the last stage of Swin."""
        channels: int = SwinConfig(**self.swin).hidden_size
        return channels


FULL = Size(
    views=VIEWS,
    num_prototypes=NUM_PROTOTYPES,
    batches=(64, 32, 128),
    fields={name: {} for name in ("esvit_swin", "esvit_cvt", "esvit_vil")},
    swin={},
    timm={},
)
_TINY_SWIN = {
    **{"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "image_size": 32,
}
TINY = Size(
    views=((2, 32), (2, 16)),
    num_prototypes=32,
    batches=(2, 1, 3),
    fields={
        "esvit_swin": _TINY_SWIN,
        "esvit_cvt": {
            **{"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_heads": [1, 2]},
            **{"patch_sizes": [7, 3], "patch_strides": [4, 2], "patch_padding": [2, 1]},
            **{"window_size": [4, 4], "mlp_ratio": [4.0, 4.0], "qkv_kernel_sizes": [3, 3]},
            "qkv_bias": [True, True],
        },
        "esvit_vil": {
            **{"image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_heads": [1, 2]},
            **{"patch_sizes": [4, 2], "sparse_stages": [True, False], "window_size": 4},
            "num_global_tokens": [1, 0],
        },
    },
    swin=_TINY_SWIN,
    timm={
        **{"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
        "window_size": 4,
    },
    compilers={"blocks": {"backend": "eager"}, "graphs": {"backend": "eager"}},
    product_side=64,
    evaluation_batch=2,
    photographs=4,
    workers=0,
)


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how large it is."""

    device: str
    size: Size

    def crops(self, batch: int) -> list[Tensor]:
        """One tensor (B, 3, S, S) a view; they stay where they are, as CUDA graphs want it."""
        return [crop.to(self.device) for crop in draw_crops(batch, self.size.views)]


def prepare_ours(
    machine: Machine,
    batch: int,
    *,
    compiled: str | None = None,
    model_type: str = "esvit_swin",
    attention: str = "sdpa",
) -> Run:
    """Prepare our step.

    Args:
        machine: where it runs.
        batch: images.
        compiled: a key of `Size.compilers`; None to run eagerly.
        model_type: of the network.
        attention: implementation of attention in the network.
    """
    size = machine.size
    fields = {**size.fields[model_type], "attn_implementation": attention}
    step = build_step(
        "bf16",
        batch=batch,
        num_prototypes=size.num_prototypes,
        device=machine.device,
        model_type=model_type,
        fields=fields,
    )
    if compiled is not None:
        for network in (step.student, step.teacher):
            compile_blocks(network.backbone.model, **size.compilers[compiled])
    crops, teacher_views = machine.crops(batch), size.views[0][0]

    def run() -> None:
        if compiled == "graphs":
            # What the graphs of the step before gave may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        step.accumulate(crops, teacher_views, 0, last=True)
        step.update(0)

    return run


def _timm_features(backbone: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    regions = backbone.forward_features(pixels).flatten(1, 2)  # type: ignore[operator]
    return regions.mean(1), regions


def build_plain_network(size: Size, library: str, drop_path_rate: float) -> PlainNetwork:
    """Build the backbone of a library, which gets its fused attention, with plain heads."""
    if library == "timm":
        backbone = timm.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=0,
            drop_path_rate=drop_path_rate,
            strict_img_size=False,
            **size.timm,
        )
        return PlainNetwork(backbone, _timm_features, size.channels, size.num_prototypes)
    config = SwinConfig(drop_path_rate=drop_path_rate, **size.swin)
    backbone = SwinModel._from_config(config, attn_implementation="sdpa")
    return PlainNetwork(backbone, transformers_features, size.channels, size.num_prototypes)


def prepare_plain(
    machine: Machine, batch: int, *, library: str = "transformers", compiled: str | None = None
) -> Run:
    """Prepare the plain step with what makes it fast on a GPU: fused attention, a fused AdamW,
    clipping and averaging of many tensors at once.

    Args:
        machine: where it runs.
        batch: images.
        library: transformers or timm.
        compiled: a key of `Size.compilers`, to compile every block; None to run eagerly.
    """
    size, device = machine.size, machine.device
    student, teacher = build_plain(lambda rate: build_plain_network(size, library, rate), device)
    if compiled is not None:
        for network in (student, teacher):
            for module in network.modules():
                if type(module).__name__ in PLAIN_BLOCKS:
                    module.compile(dynamic=False, **size.compilers[compiled])
    optimizer = torch.optim.AdamW(reference.parameter_groups(student), lr=1e-4, fused=True)
    centers = {name: torch.zeros(size.num_prototypes, device=device) for name in ("view", "region")}
    crops, teacher_views = machine.crops(batch), size.views[0][0]

    def run() -> None:
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                targets = teacher(crops[:teacher_views])
            loss = reference.plain_losses(student(crops), targets, centers)
            reference.update_center(centers["view"], targets.view_logits)
            reference.update_center(centers["region"], targets.region_logits)
        optimizer.zero_grad()
        loss.backward()
        clip_each_gradient(student.parameters(), MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(teacher.parameters()), list(student.parameters()), 1 - TEACHER_MOMENTUM
            )

    return run


def prepare_data(machine: Machine, folder: Path, batch: int) -> tuple[Callable[[], object], int]:
    """Prepare one epoch of the data path: JPEG files to normalized crops on the device.

    Args:
        machine: where it runs.
        folder: a folder that gets the photographs.
        batch: images at once.

    Returns:
        The epoch, and its images.
    """
    size = machine.size
    originals = sorted(SAMPLE_PHOTOGRAPHS.glob("*.jpg"))
    for number in range(size.photographs):
        shutil.copy(originals[number % len(originals)], folder / f"{number}.jpg")
    (_, large), (local_count, small) = size.views
    views = dino_views(global_size=large, local_size=small, local_count=local_count)
    source = load_image_source(str(folder))
    steps = size.photographs // batch

    def run() -> None:
        sampler = EpochSampler(len(source), batch, seed=0, total_steps=steps)
        loader: DataLoader[CropBatch] = make_multicrop_loader(
            MultiCropDataset(source, views, seed=0), sampler, num_workers=size.workers
        )
        for crops in loader:
            there = crops.to(torch.device(machine.device), non_blocking=True)
            for crop, parameters in zip(there.crops, there.parameters, strict=True):
                augment(crop, parameters)

    return run, steps * batch
