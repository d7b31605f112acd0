"""ONNX files of our networks, run in onnxruntime."""

import onnx
import onnxruntime
import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from esvit_hf import (
    EsvitCvtConfig,
    EsvitCvtModel,
    EsvitSwinConfig,
    EsvitSwinForImageClassification,
    EsvitVilConfig,
    EsvitVilModel,
)
from esvit_hf.export import onnx as export
from esvit_hf.export.onnx import OnnxExport, export_onnx


def spread(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save_vil(folder) -> EsvitVilModel:
    config = EsvitVilConfig(
        image_size=16,
        patch_sizes=[2, 2],
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=3,
        sparse_stages=[True, False],
        num_global_tokens=[1, 1],
    )
    model = spread(EsvitVilModel(config))
    model.save_pretrained(folder)
    return model


def save_swin(folder) -> EsvitSwinForImageClassification:
    config = EsvitSwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=3,
        num_labels=5,
    )
    model = spread(EsvitSwinForImageClassification(config))
    model.save_pretrained(folder)
    return model


def save_cvt(folder) -> EsvitCvtModel:
    config = EsvitCvtConfig(
        image_size=16,
        patch_sizes=[7],
        patch_strides=[4],
        patch_padding=[2],
        hidden_sizes=[8],
        depths=[1],
        num_heads=[2],
        window_size=[3],
        mlp_ratio=[4.0],
        qkv_kernel_sizes=[3],
        qkv_bias=[True],
    )
    model = spread(EsvitCvtModel(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    # The bias tables of ViL are resized for another grid; Swin and CvT pad, Swin masks its shifted
    # windows.
    ("save", "image_size", "size", "outputs"),
    [
        (save_vil, (22, 14), (22, 14), ("last_hidden_state", "pooler_output")),
        (save_swin, None, (16, 16), ("logits",)),
        (save_cvt, (16, 20), (16, 20), ("last_hidden_state", "pooler_output")),
    ],
)
def test_file_computes_what_the_network_computes(tmp_path, save, image_size, size, outputs):
    model = save(tmp_path / "model")
    path = tmp_path / "network.onnx"
    path.write_text("an older file")
    result = export_onnx(tmp_path / "model", path, image_size=image_size)
    assert result == OnnxExport(path, size, outputs, result.largest_difference)
    assert result.largest_difference is not None and result.largest_difference < 1e-5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "network.onnx"]

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    pixels = torch.randn(5, 3, *size)
    with torch.no_grad():
        expected = model(pixels)
    for name, array in zip(
        outputs, session.run(list(outputs), {"pixel_values": pixels.numpy()}), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(array), expected[name], atol=1e-5, rtol=0)

    # The comparison that guards the export sees another network in the file.
    with torch.no_grad():
        list(model.parameters())[-1].add_(0.01)
    assert (
        export._largest_difference(export._PlainOutputs(model, outputs), path, (3, *size))
        > export.TOLERANCE
    )


def test_nothing_is_kept_of_a_failed_export(tmp_path):
    save_vil(tmp_path / "model")
    path = tmp_path / "network.onnx"
    path.write_text("an older file")
    with pytest.raises(
        ValueError, match="cannot be exported for 2 x 2 pixels with opset 18: .*needs .*4 x 4"
    ):
        export_onnx(tmp_path / "model", path, image_size=2)
    assert path.read_text() == "an older file"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "network.onnx"]


@pytest.mark.parametrize(
    ("output", "image_size", "message"),
    [
        ("nowhere/network.onnx", None, "not a file in an existing folder"),
        ("model", None, "not a file in an existing folder"),
        ("network.onnx", (16, 16, 3), r"image_size=\(16, 16, 3\) is not a size"),
        ("network.onnx", 0, "image_size=0 is not a size"),
    ],
)
def test_wrong_arguments(tmp_path, output, image_size, message):
    save_swin(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        export_onnx(tmp_path / "model", tmp_path / output, image_size=image_size)


def test_models_that_are_not_ours(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])).save_pretrained(
        tmp_path / "resnet"
    )
    with pytest.raises(ValueError, match="holds a ResNetModel: only networks of this package"):
        export_onnx(tmp_path / "resnet", tmp_path / "network.onnx")
    with pytest.raises(
        ValueError, match="cannot load a model from .*: give a Hub name or a folder"
    ):
        export_onnx(tmp_path / "nothing", tmp_path / "network.onnx")
