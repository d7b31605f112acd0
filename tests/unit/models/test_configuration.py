"""Names that configurations take, refuse and remember."""

import json
import re
from pathlib import Path

import pytest
from tests.support.networks import NETWORKS, build
from transformers import AutoConfig, AutoModel


def test_configuration_survives_the_round_trip(network, tmp_path):
    config = network.config(drop_path_rate=0.3, id2label={0: "cat", 1: "dog"}, out_indices=[1, 2])
    config.save_pretrained(tmp_path)
    loaded = type(config).from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.out_features == ["stage1", "stage2"]
    written = json.loads(Path(tmp_path, "config.json").read_text())
    assert "hidden_size" not in written  # derived values would win over what they are derived from


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        *(
            (family, name, message)
            for family in NETWORKS
            for name, message in {
                "drop_pth_rate": "did you mean 'drop_path_rate'?",
                "image_sizes": "did you mean 'image_size'?",
                "out_feature": "did you mean 'out_features'?",
                "out_indexes": "did you mean 'out_indices'?",
                "num_classes": "here it is 'num_labels'",
                "in_chans": "here it is 'num_channels'",
                "img_size": "here it is 'image_size'",
                "drop_path": "here it is 'drop_path_rate'",
                "window": "here it is 'window_size'",
                "act_layer": "here it is 'hidden_act'",
                "depth": "here it is 'depths'",
                "num_hidden_layers": "here it is 'depths'",
                "DROP_PATH": "here it is 'drop_path_rate'",
                "drop": "no dropout; drop_path_rate",
                "attn_drop_rate": "no dropout",
                "hidden_dropout_prob": "no dropout",
                "qk_scale": "no choice",
                "patch_norm": "no choice",
                "use_checkpoint": "gradient_checkpointing_enable()",
            }.items()
        ),
        ("Swin", "patch_sizes", "here it is 'patch_size'"),
        ("Swin", "ape", "here it is 'use_absolute_embeddings'"),
        ("Swin", "hidden_size", "here it is 'embed_dim'"),
        ("CvT", "patch_size", "here it is 'patch_sizes'"),
        ("CvT", "DIM_EMBED", "here it is 'hidden_sizes'"),
        ("CvT", "REL_POS_EMBED", "here it is 'relative_position_bias'"),
        ("CvT", "KERNEL_QKV", "here it is 'qkv_kernel_sizes'"),
        ("CvT", "RES_STEM", "here it is 'deep_stem'"),
        ("CvT", "SHIFT", "a CvT never does"),
        ("ViL", "embed_dim", "here it is 'hidden_sizes'"),
        ("ViL", "nglo", "here it is 'num_global_tokens'"),
        ("ViL", "rpe", "here it is 'position_embedding'"),
        ("ViL", "sharew", "no choice"),
    ],
)
def test_names_that_mean_something_else_are_refused_with_the_right_one(
    family, name, message, tmp_path
):
    network = NETWORKS[family]
    expected = f"has no field {name!r}.*{re.escape(message)}"
    with pytest.raises(ValueError, match=expected) as refused:
        network.config(**{name: 1})
    assert "'_" not in str(refused.value)
    network.config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=expected):
        AutoConfig.from_pretrained(tmp_path, **{name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 3),
        ("num_beam_groups", 1),
        ("output_scores", True),
        ("use_cache", False),
        ("is_decoder", False),
        ("tie_word_embeddings", False),
        ("torch_dtype", "float32"),
        ("num_labels", 7),
        ("num_attention_heads", [2, 4]),
        ("layer_norm_epsilon", 1e-3),
    ],
)
def test_names_of_transformers_are_taken(network, name, value):
    config = network.config(**{name: value})
    if name == "layer_norm_epsilon":
        assert config.layer_norm_eps == value
        assert build(network.model, config).norm.eps == value
    if name == "num_attention_heads":
        assert config.num_heads == value


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone"])
def test_whatever_was_set_and_saved_can_be_loaded(network, kind, tmp_path):
    model = build(getattr(network, kind), network.config())
    for name in (
        "layer_norm_epsilon",
        "num_cls_tokens",
        "drop_pth_rate",
        "drop",
        "window",
        "anything",
    ):
        setattr(model.config, name, 0.5)
    model.save_pretrained(tmp_path)
    for loaded in (type(model).from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert loaded.config.layer_norm_eps == loaded.config.anything == 0.5
    assert type(model.config).from_dict(model.config.to_dict()).drop == 0.5
