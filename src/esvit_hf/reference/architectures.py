"""The networks of the zoo: their configuration, and what of it a checkpoint's tensors show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CVT_48PX",
    "CVT_TINY_W7",
    "RESNET_50",
    "SWIN_48PX",
    "SWIN_BASE_W7",
    "SWIN_BASE_W14",
    "SWIN_DEMO",
    "SWIN_SMALL_W7",
    "SWIN_SMALL_W14",
    "SWIN_TINY_W7",
    "SWIN_TINY_W14",
    "VIL_2262_W7",
    "Architecture",
]


@dataclass(frozen=True)
class Architecture:
    """A network, up to its weights.

    Attributes:
        title: its name in the paper's tables.
        family: name of the converter's rule for it.
        model_type: of its configuration.
        window: side of the attention windows in tokens, None without windows.
        parameters: of the base model.
        operations: floating-point operations of one image of the usual size, in which a
            multiplication and an addition are two.
        shape: configuration fields that the tensors of a checkpoint show.
        untraced: configuration fields that leave no trace in them.
    """

    title: str
    family: str
    model_type: str
    window: int | None
    parameters: int
    operations: int
    shape: Mapping[str, Any]
    untraced: Mapping[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        """All configuration fields, lists as lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in {**self.shape, **self.untraced}.items()
        }


def _swin(
    title: str,
    window: int,
    parameters: int,
    operations: int,
    *,
    embed_dim: int,
    third_depth: int,
    heads: int,
    drop_path_rate: float,
) -> Architecture:
    return Architecture(
        title=title,
        family="swin",
        model_type="esvit_swin",
        window=window,
        parameters=parameters,
        operations=operations,
        shape={
            "embed_dim": embed_dim,
            "depths": (2, 2, third_depth, 2),
            "num_heads": (heads, 2 * heads, 4 * heads, 8 * heads),
            "patch_size": 4,
            "window_size": window,
        },
        untraced={"image_size": 224, "drop_path_rate": drop_path_rate},
    )


_TINY: dict[str, Any] = {"embed_dim": 96, "third_depth": 6, "heads": 3, "drop_path_rate": 0.1}
_SMALL: dict[str, Any] = {"embed_dim": 96, "third_depth": 18, "heads": 3, "drop_path_rate": 0.2}
_BASE: dict[str, Any] = {"embed_dim": 128, "third_depth": 18, "heads": 4, "drop_path_rate": 0.2}

SWIN_TINY_W7 = _swin("Swin-T", 7, 27_519_354, 8_979_597_312, **_TINY)
SWIN_TINY_W14 = _swin("Swin-T", 14, 27_569_754, 9_776_191_488, **_TINY)
SWIN_SMALL_W7 = _swin("Swin-S", 7, 48_837_258, 17_480_214_528, **_SMALL)
SWIN_SMALL_W14 = _swin("Swin-S", 14, 48_968_298, 18_807_871_488, **_SMALL)
SWIN_BASE_W7 = _swin("Swin-B", 7, 86_743_224, 30_859_845_632, **_BASE)
SWIN_BASE_W14 = _swin("Swin-B", 14, 86_917_944, 32_630_054_912, **_BASE)

VIL_2262_W7 = Architecture(
    title="ViL",
    family="vil",
    model_type="esvit_vil",
    window=7,
    parameters=27_569_352,
    operations=10_695_591_168,
    shape={
        "image_size": 224,
        "hidden_sizes": (96, 192, 384, 768),
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "patch_sizes": (4, 2, 2, 2),
        "window_size": 7,
        "sparse_stages": (True, True, False, False),
        "num_global_tokens": (1, 1, 1, 0),
    },
    untraced={"drop_path_rate": 0.1},
)
CVT_TINY_W7 = Architecture(
    title="CvT",
    family="cvt",
    model_type="esvit_cvt",
    window=7,
    parameters=29_303_616,
    operations=8_568_605_696,
    shape={
        "hidden_sizes": (64, 192, 384, 768),
        "depths": (2, 2, 6, 2),
        "patch_sizes": (7, 3, 3, 3),
        "qkv_kernel_sizes": (3, 3, 3, 3),
    },
    untraced={
        "image_size": 224,
        "num_heads": (1, 3, 6, 12),
        "patch_strides": (4, 2, 2, 2),
        "patch_padding": (2, 1, 1, 1),
        "window_size": (7, 7, 7, 7),
        "drop_path_rate": 0.1,
    },
)
RESNET_50 = Architecture(
    title="ResNet-50",
    family="resnet",
    model_type="resnet",
    window=None,
    parameters=23_508_032,
    operations=8_174_272_512,
    shape={
        "embedding_size": 64,
        "hidden_sizes": (256, 512, 1024, 2048),
        "depths": (3, 4, 6, 3),
        "layer_type": "bottleneck",
    },
    untraced={},
)
SWIN_DEMO = Architecture(
    title="Swin (2 stages)",
    family="swin",
    model_type="esvit_swin",
    window=4,
    parameters=302_268,
    operations=15_630_336,
    shape={
        "embed_dim": 48,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "patch_size": 4,
        "window_size": 4,
    },
    untraced={"image_size": 32, "drop_path_rate": 0.0},
)
SWIN_48PX = Architecture(
    title="Swin (2 stages)",
    family="swin",
    model_type="esvit_swin",
    window=3,
    parameters=1_207_458,
    operations=34_877_952,
    shape={
        "embed_dim": 96,
        "depths": (2, 2),
        "num_heads": (3, 6),
        "patch_size": 8,
        "window_size": 3,
    },
    untraced={"image_size": 48, "drop_path_rate": 0.0},
)
CVT_48PX = Architecture(
    title="CvT (3 stages)",
    family="cvt",
    model_type="esvit_cvt",
    window=None,
    parameters=1_219_488,
    operations=35_251_200,
    shape={
        "hidden_sizes": (32, 96, 192),
        "depths": (1, 1, 2),
        "patch_sizes": (7, 3, 3),
        "mlp_ratio": (4, 4, 4),
        "qkv_kernel_sizes": (3, 3, 3),
        "qkv_bias": (True, True, True),
    },
    untraced={
        "image_size": 48,
        "num_heads": (1, 3, 6),
        "patch_strides": (4, 2, 2),
        "patch_padding": (2, 1, 1),
        "window_size": (6, 6, 3),
        "drop_path_rate": 0.0,
    },
)
