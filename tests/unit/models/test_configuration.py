"""Names that configurations take, refuse and remember."""

import json
import re
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.networks import NETWORKS, build
from transformers import AutoConfig, AutoModel, GenerationConfig


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
        ("Swin", "hidden_sizes", "here it is 'embed_dim'"),
        ("Swin", "relative_position_bias", "no choice"),
        ("Swin", "pretrained_window_sizes", "no choice"),
        ("Swin", "pretrained", "from_pretrained() of the model loads weights"),
        ("Swin", "attention_dropout", "no dropout"),
        ("CvT", "num_stages", "here it is 'depths'"),
        ("CvT", "nb_classes", "here it is 'num_labels'"),
        ("CvT", "use_pos_embed", "no choice"),
        ("ViL", "arch", "say what an architecture string does"),
        ("ViL", "use_absolute_embeddings", "here it is 'position_embedding'"),
        ("ViL", "reg_tokens", "no choice"),
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


CONFIGURATIONS = {family: type(network.config()) for family, network in NETWORKS.items()}
NAMES = sorted(
    {
        *(field.name for made in CONFIGURATIONS.values() for field in fields(made)),
        *(name for made in CONFIGURATIONS.values() for name in made.attribute_map),
        *vars(GenerationConfig()),
        *("num_labels", "out_features", "out_indices", "stage_names", "num_hidden_layers"),
        *("in_chans", "drop", "window", "drop_pth_rate", "anything"),
    }
)
NUMBERS = st.booleans() | st.integers(-2, 300) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = (
    st.none()
    | NUMBERS
    | st.text("a1_", max_size=4)
    | st.lists(st.integers(-1, 20), max_size=3)
    | st.dictionaries(st.text("a1", min_size=1, max_size=2), NUMBERS, max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.sampled_from(NAMES), VALUES)
def test_what_could_be_saved_can_be_loaded(family, name, value):
    config = NETWORKS[family].config()
    try:
        setattr(config, name, value)
    except (AttributeError, StrictDataclassError, TypeError, ValueError):
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
        except ValueError as refused:
            assert (
                name in str(refused) or "generation" in str(refused) or "could not" in str(refused)
            )
            assert not list(Path(folder).iterdir())
            return
        assert type(AutoConfig.from_pretrained(folder)) is type(config)


@pytest.mark.parametrize("kind", ["model", "classifier", "backbone"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depths", [1, 1, 1], "entries; the network has"),
        ("num_attention_heads", [3, 3], "does not divide"),
        ("layer_norm_epsilon", None, "layer_norm_eps.*expected float"),
        ("id2label", ["cat", "dog"], "items"),
        ("_out_indices", [7], "valid indices"),
    ],
)
def test_contradictions_are_refused_at_saving(network, kind, name, value, message, tmp_path):
    model = build(getattr(network, kind), network.config())
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"could not be loaded again.*{message}"):
        model.save_pretrained(tmp_path)
    # The code of a registered class comes first.
    assert {path.suffix for path in tmp_path.iterdir()} <= {".py"}
