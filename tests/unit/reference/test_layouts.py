"""The layouts in which people keep a network: one file, many names around it, the same outputs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.support.small_networks import SMALL_NETWORKS
from torch import Tensor
from transformers import AutoConfig, AutoModel, ResNetConfig, ViTConfig

from esvit_hf.reference.from_reference import load_reference_model
from esvit_hf.reference.to_reference import convert_to_reference

PREFIXES = ["module.", "_orig_mod.", "backbone.", "model."]
# What the tensors do not show.
UNTRACED: dict[str, dict[str, Any]] = {
    "esvit_swin": {"image_size": 32},
    "esvit_vil": {
        "num_heads": [1, 2],
        "image_size": 32,
        "window_size": 4,
        "sparse_stages": [True, False],
    },
    "esvit_cvt": {
        "num_heads": [1, 2],
        "window_size": [4, 4],
        "image_size": 32,
        "patch_strides": [4, 2],
        "patch_padding": [2, 1],
    },
    "vit": {"num_attention_heads": 2},
    "resnet": {},
}


def small_config(name: str) -> Any:
    if name == "vit":
        return ViTConfig(
            **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "intermediate_size": 32, "layer_norm_eps": 1e-6},
        )
    if name == "resnet":
        return ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])
    return AutoConfig.for_model(name, image_size=32, **SMALL_NETWORKS[name])


@pytest.fixture(scope="module", params=UNTRACED)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, tensors under the reference's names without a wrapper, and the network itself."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    options = {"add_pooling_layer": False} if request.param == "vit" else {}
    model = AutoModel.from_config(small_config(request.param), **options).eval()
    model.save_pretrained(folder)
    state = {
        re.sub(r"^(module\.|backbone\.)+", "", name): tensor
        for name, tensor in convert_to_reference(str(folder))["teacher"].items()
    }
    return request.param, state, model


def wrapped(state: dict[str, Tensor], wrapping: str) -> dict[str, Any]:
    return {
        "bare": state,
        "model": {"model": state, "epoch": 3, "optimizer": {"state": {}}},
        "state_dict": {"state_dict": state, "meta": {"epoch": 3}},
        "both": {"state_dict": {"model": state}},
        "teacher": {"teacher": state},
    }[wrapping]


def last_regions(model: Any) -> Tensor:
    pixels = torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        return model(pixels).last_hidden_state


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
    wrapping=st.sampled_from(["bare", "model", "state_dict", "both", "teacher"]),
    classifier=st.sampled_from([None, "head", "fc", "classifier", "linear", "head.fc"]),
)
def test_every_layout_gives_the_same_network(
    network: Any,
    tmp_path: Path,
    prefixes: list[str],
    wrapping: str,
    classifier: str | None,
) -> None:
    name, state, model = network
    prefix = "".join(prefixes)
    content = {prefix + key: tensor for key, tensor in state.items()}
    if classifier is not None:
        content |= {f"{prefix}{classifier}.weight": torch.ones(10, 8)}
        content |= {f"{prefix}{classifier}.bias": torch.ones(10)}
    torch.save(wrapped(content, wrapping), tmp_path / "file.pth")
    loaded = load_reference_model(tmp_path / "file.pth", **UNTRACED[name])
    assert torch.equal(last_regions(loaded), last_regions(model))


def test_a_file_of_safetensors_and_one_without_counters(network: Any, tmp_path: Path) -> None:
    name, state, model = network
    counted = {key: tensor for key, tensor in state.items() if not key.endswith("batches_tracked")}
    save_file({key: tensor.clone() for key, tensor in counted.items()}, tmp_path / "a.safetensors")
    loaded = load_reference_model(tmp_path / "a.safetensors", **UNTRACED[name])
    assert torch.equal(last_regions(loaded), last_regions(model))


def test_a_classifier_is_left_out_and_named(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, state, _ = network
    torch.save({"model": state | {"head.weight": torch.ones(10, 8)}}, tmp_path / "file.pth")
    load_reference_model(tmp_path / "file.pth", **UNTRACED[name])
    assert "a classifier is left out, head.weight" in capsys.readouterr().out


def test_masks_of_shifted_windows_are_left_out(tmp_path: Path) -> None:
    model = AutoModel.from_config(small_config("esvit_swin")).eval()
    model.save_pretrained(tmp_path)
    state = convert_to_reference(str(tmp_path))["teacher"]
    torch.save(
        {"model": state | {"layers.0.blocks.1.attn_mask": torch.ones(4, 16, 16)}}, tmp_path / "a"
    )
    loaded = load_reference_model(tmp_path / "a", image_size=32)
    assert torch.equal(last_regions(loaded), last_regions(model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "holds no network"),
        ({"model": [torch.ones(1)]}, "holds no network"),
        ({"state_dict": {"weights": 3}}, "holds no network"),
        ({"model": {"unknown.weight": torch.ones(2)}}, "none of the known networks"),
    ],
)
def test_what_is_no_network_is_said(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        load_reference_model(tmp_path / "file.pth")


def test_tensors_without_a_place_are_named_and_a_student_alone_is_not_made_up(
    network: Any, tmp_path: Path
) -> None:
    name, state, _ = network
    torch.save(state | {"decoder.weight": torch.ones(2)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="decoder.weight"):
        load_reference_model(tmp_path / "file.pth", **UNTRACED[name])
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="only: teacher"):
        load_reference_model(tmp_path / "file.pth", weights="student", **UNTRACED[name])
