"""Experiment files and architecture strings of the reference."""

import re

import pytest

from esvit_hf import EsvitCvtConfig, EsvitSwinConfig, EsvitVilConfig
from esvit_hf.reference.experiments import fields_of_experiment, read_experiment, read_options

SWIN = """
MODEL:
  NAME: swin_transformer
  SPEC:
    PATCH_SIZE: 4
    DIM_EMBED: 96
    DEPTHS: [2, 2, 6, 2]
    NUM_HEADS: [3, 6, 12, 24]
    WINDOW_SIZE: 14
    MLP_RATIO: 4
    QKV_BIAS: True
    DROP_RATE: 0
    ATTN_DROP_RATE: 0
    DROP_PATH_RATE: 0.2
    USE_APE: False
    PATCH_NORM: True
TRAIN:
  IMAGE_SIZE: [256, 256]
"""
CVT = """
MODEL:
  SPEC:
    INIT: trunc_norm
    NUM_STAGES: 3
    REL_POS_EMBED: False
    SHIFT: [False, False, False, False]
    DROP_PATH_RATE: 0.1
    PATCH_SIZE: [7, 3, 3, 3]
    PATCH_STRIDE: [4, 2, 2, 2]
    PATCH_PADDING: [2, 1, 1, 1]
    WINDOW_SIZE: [14, 14, 7, 7]
    DIM_EMBED: [64, 192, 384, 768]
    NUM_HEADS: [1, 3, 6, 12]
    DEPTH: [2, 2, 6, 2]
    MLP_RATIO: [4.0, 4.0, 4.0, 4.0]
    QKV_BIAS: [True, True, True, True]
    KERNEL_QKV: [3, 3, 3, 3]
    PADDING_QKV: [1, 1, 1, 1]
"""
VIL = """
MODEL:
  SPEC:
    AVG_POOL: False
    DROP: 0.0
    DROP_PATH: 0.1
    NORM_EMBED: True
    MSVIT:
      ARCH: 'l1,h3,d96,n1,s1,g1,p4,f7_l2,d192,n2,g0,f5,a0_l3,h6,d384,n8,s0,f7,a0_l4,d768,g2,s1,a0'
      LN_EPS: 1e-06
      SHARE_W: True
      ATTN_TYPE: longformerhand
      SHARE_KV: True
      ONLY_GLOBAL: False
      SW_EXACT: 0
      MODE: 1
      VIL_MODE_SWITCH: 0.5
      POOL_METHOD: None
      WITH_SE: None
"""


def fields(folder, text: str, family: str) -> dict:
    (folder / "experiment.yaml").write_text(text)
    return fields_of_experiment(read_experiment(folder / "experiment.yaml"), family)


def test_swin(tmp_path):
    config = EsvitSwinConfig(**fields(tmp_path, SWIN, "swin"))
    assert (config.embed_dim, config.window_size, config.drop_path_rate) == (96, 14, 0.2)
    assert config.image_size == 256
    assert config.stage_windows == [14, 14, 14, 8]


def test_cvt_and_the_file_that_it_is_based_on(tmp_path):
    (tmp_path / "s1.yaml").write_text(CVT)
    more = "BASE: ['s1.yaml']\nMODEL:\n  SPEC:\n    REL_POS_EMBED: True\n    RES_STEM: True\n"
    config = EsvitCvtConfig(**fields(tmp_path, more, "cvt"))
    assert list(config.hidden_sizes) == [64, 192, 384]
    assert list(config.window_size) == [14, 14, 7]
    assert config.relative_position_bias and config.deep_stem


def test_every_setting_of_a_stage_of_vil(tmp_path):
    config = EsvitVilConfig(**fields(tmp_path, VIL, "vil"))
    assert list(config.num_heads) == [3, 3, 6, 3]
    assert list(config.hidden_sizes) == [96, 192, 384, 768]
    assert list(config.depths) == [1, 2, 8, 1]
    assert list(config.num_global_tokens) == [1, 0, 1, 2]
    assert list(config.patch_sizes) == [4, 2, 2, 2]
    assert config.stage_windows == [7, 5, 7, 7]
    # A full stage makes those behind it full, whatever they say.
    assert list(config.sparse_stages) == [True, True, False, False]
    assert config.stage_positions == ["absolute", "relative", "relative", "relative"]
    assert config.sparse_training_mode == "random_neighbor"


def test_command_lines():
    options = ["MODEL.SPEC.SHIFT", "[False, False]", "MODEL.NUM_CLASSES", "0", "DATA_DIR", "/data"]
    assert read_options(options) == {
        "MODEL": {"SPEC": {"SHIFT": [False, False]}, "NUM_CLASSES": 0},
        "DATA_DIR": "/data",
    }
    with pytest.raises(ValueError, match="'DATA_DIR', the last option.*has no value"):
        read_options(options[:-1])


@pytest.mark.parametrize(
    ("text", "family", "message"),
    [
        (SWIN.replace("PATCH_NORM: True", "PATCH_NORM: False"), "swin", "PATCH_NORM=False"),
        (SWIN.replace("USE_APE", "FUSED"), "swin", "FUSED=False cannot.*a swin has no such"),
        (
            CVT.replace("SHIFT: [False,", "SHIFT: [True,"),
            "cvt",
            "SHIFT=[True, False, False, False]",
        ),
        (CVT.replace("PADDING_QKV: [1,", "PADDING_QKV: [0,"), "cvt", "PADDING_QKV=[0, 1, 1, 1]"),
        (VIL.replace("AVG_POOL: False", "AVG_POOL: True"), "vil", "AVG_POOL=True"),
        (VIL.replace("SHARE_W: True", "SHARE_W: False"), "vil", "SHARE_W=False"),
        (VIL.replace("longformerhand", "performer"), "vil", "ATTN_TYPE='performer'"),
        (VIL.replace("SW_EXACT: 0", "SW_EXACT: 1"), "vil", "SW_EXACT=1"),
        (VIL.replace("MODE: 1", "MODE: -1"), "vil", "MODE=-1"),
        (VIL.replace("WITH_SE: None", "WITH_SE: ECA"), "vil", "WITH_SE='ECA'"),
        (VIL.replace("f7_l2", "f7,r1_l2"), "vil", "r1 in ARCH"),
        (VIL.replace("f7_l2", "f7,x1_l2"), "vil", "'x1' is no setting"),
        (VIL.replace("_l3,", "_l4,"), "vil", "stage 3 is called 'l4,"),
        (SWIN, "resnet", "say nothing about a resnet"),
        ("- 1", "swin", "holds no settings"),
        ("BASE: ['gone.yaml']", "swin", "gone.yaml' is not a readable experiment file"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, text, family, message):
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        fields(tmp_path, text, family)
