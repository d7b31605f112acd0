"""Files of the reference: what they become, and what is refused."""

import argparse
import io
import os
import pickle
import random
import re
import resource
from pathlib import Path

import pytest
import torch

from esvit_hf import EsvitSwinConfig, EsvitSwinModel
from esvit_hf.reference.folders import convert_to_file
from esvit_hf.reference.from_reference import (
    load_reference_model,
    read_reference_checkpoint,
    split_reference_state_dict,
)


@pytest.fixture
def reference(golden):
    """A copy of a reference checkpoint to change."""
    return read_reference_checkpoint(golden("swin_w7_view_region").checkpoint)


def saved(checkpoint, folder: Path) -> Path:
    torch.save(checkpoint, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def test_configuration_is_read_off_the_tensors(golden):
    spec = golden("swin_w14_view_region").spec
    model = load_reference_model(golden("swin_w14_view_region").checkpoint)
    assert not model.training
    for field in (
        "image_size",
        "patch_size",
        "embed_dim",
        "depths",
        "num_heads",
        "window_size",
        "mlp_ratio",
    ):
        assert getattr(model.config, field) == spec[field], field
    given = load_reference_model(
        golden("swin_w14_view_region").checkpoint, drop_path_rate=0.3, num_labels=7
    )
    assert (given.config.drop_path_rate, given.config.num_labels) == (0.3, 7)


def test_the_student_is_converted_on_request(golden):
    case = golden("swin_w7_view_region")
    teacher, student = (
        load_reference_model(case.checkpoint, weights=weights) for weights in ("teacher", "student")
    )
    assert not torch.equal(teacher.norm.weight, student.norm.weight)


def test_small_windows_reveal_the_image_size(golden, tmp_path):
    tensors = golden("trajectory_swin_view").tensors
    state = {
        name.removeprefix("init."): value
        for name, value in tensors.items()
        if name.startswith("init.")
    }
    model = load_reference_model(saved({"teacher": state}, tmp_path))
    assert (
        model.config.image_size == golden("trajectory_swin_view").spec["model"]["image_size"] == 64
    )
    assert model.config.stage_windows == [4, 4, 4, 2]


def test_image_size_that_contradicts_the_windows_is_refused(golden):
    with pytest.raises(ValueError, match="image_size"):
        load_reference_model(golden("swin_w7_view").checkpoint, image_size=96)


def test_heads_keep_their_layers(reference):
    _, view, region = split_reference_state_dict(reference["teacher"])
    for head, prefix in ((view, "head."), (region, "head_dense.")):
        assert torch.equal(head["layers.2.weight"], reference["teacher"][prefix + "mlp.2.weight"])
        assert torch.equal(
            head["prototype_gain"], reference["teacher"][prefix + "last_layer.weight_g"]
        )
        assert torch.equal(
            head["prototype_direction"], reference["teacher"][prefix + "last_layer.weight_v"]
        )
    one_layer = {
        **reference["teacher"],
        "head.mlp.weight": torch.ones(1),
        "head.mlp.bias": torch.zeros(1),
    }
    one_layer = {
        name: value for name, value in one_layer.items() if not re.match(r"head\.mlp\.\d", name)
    }
    assert split_reference_state_dict(one_layer)[1]["layers.0.weight"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({"norm.scale": torch.ones(1)}), "norm.scale"),
        (lambda state: state.update({"head.extra": torch.ones(1)}), "head.extra"),
        (lambda state: state.update({"module.norm.weight": torch.ones(64)}), "twice"),
        (
            lambda state: state.pop("layers.2.blocks.1.mlp.fc1.bias"),
            "stages.2.blocks.1.mlp.expand.bias",
        ),
        (lambda state: state.pop("patch_embed.proj.weight"), "embeddings.projection.weight"),
        (lambda state: state.update({"norm.weight": torch.ones(3)}), "norm.weight is (3,)"),
        (
            lambda state: state["layers.0.blocks.0.attn.relative_position_index"].add_(1),
            "relative_position_index",
        ),
        (lambda state: state.clear(), "none of the known networks"),
    ],
)
def test_what_does_not_fit_is_named(reference, tmp_path, change, message):
    change(reference["teacher"])
    with pytest.raises(ValueError, match=re.escape(message)):
        load_reference_model(saved(reference, tmp_path))


def test_unknown_family_lists_the_known_ones(golden):
    with pytest.raises(ValueError, match="'focal' is unknown; known: swin"):
        load_reference_model(golden("swin_w7_view").checkpoint, arch="focal")


class Payload:
    """Would create a folder when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_objects_are_refused_and_not_executed(tmp_path):
    target = tmp_path / "executed"
    path = saved({"teacher": {}, "args": Payload(target)}, tmp_path)
    with pytest.raises(ValueError, match=r"it holds \w+\.mkdir, which could run code") as caught:
        read_reference_checkpoint(path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_reference_checkpoint(plain)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_broken_and_foreign_files_are_one_line_errors(golden, reference, tmp_path):
    whole = golden("swin_w7_view").checkpoint.read_bytes()
    cases = {
        "truncated.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"epoch,loss\n1,2\n",
        "image.pth": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    foreign = {
        "list.pth": [1, 2],
        "model.pth": {"model": {}},
        "names.pth": {"teacher": {"norm.weight": 3}},
    }
    for name, content in foreign.items():
        torch.save(content, tmp_path / name)
    for name in [*cases, *foreign, "missing.pth", "."]:
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
            load_reference_model(tmp_path / name)
        assert "\n" not in str(caught.value), name
    with pytest.raises(ValueError, match="only: teacher"):
        load_reference_model(saved({"teacher": reference["teacher"]}, tmp_path), weights="student")


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    buffer = io.BytesIO()
    torch.save(
        {"teacher": {"norm.weight": torch.ones(3)}}, buffer, _use_new_zipfile_serialization=False
    )
    whole, chance = buffer.getvalue(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            assert isinstance(read_reference_checkpoint(tmp_path / "damaged.pth"), dict)
        except ValueError as error:
            assert "\n" not in str(error)


def test_arguments_of_the_run_are_readable(reference):
    assert isinstance(reference["args"], argparse.Namespace)
    assert reference["args"].arch == "swin"


def test_a_network_without_bias_and_with_positions(tmp_path, reference):
    config = EsvitSwinConfig(
        image_size=(64, 32),
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
        qkv_bias=False,
        use_absolute_embeddings=True,
        mlp_ratio=2,
    )
    torch.manual_seed(0)
    model = EsvitSwinModel(config).eval()
    renames = {
        "embeddings.projection": "patch_embed.proj",
        "embeddings.norm": "patch_embed.norm",
        "embeddings.position_embeddings": "absolute_pos_embed",
        "stages": "layers",
        "attention_norm": "norm1",
        "mlp_norm": "norm2",
        "attention.": "attn.",
        "attn.projection": "attn.proj",
        "mlp.expand": "mlp.fc1",
        "mlp.contract": "mlp.fc2",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        state["module." + name] = tensor
    converted = load_reference_model(
        saved({"student": state}, tmp_path), weights="student", image_size=(64, 32)
    )
    assert not converted.config.qkv_bias
    pixels = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(converted(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_a_full_disk_leaves_no_file(tmp_path):
    EsvitSwinModel(
        EsvitSwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    ).save_pretrained(tmp_path / "model")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(ValueError, match="back.pth' cannot be written.*make room on the disk"):
            convert_to_file(str(tmp_path / "model"), tmp_path / "back.pth", with_heads=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
