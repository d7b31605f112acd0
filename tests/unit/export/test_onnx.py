"""ONNX files of our networks, run in onnxruntime."""

import onnx
import onnxruntime
import pytest
import torch
from tests.support.networks import build, cvt_config, swin_config, vil_config
from transformers import ResNetConfig, ResNetModel

from esvit_hf import (
    EsvitCvtConfig,
    EsvitCvtModel,
    EsvitSwinConfig,
    EsvitSwinForImageClassification,
    EsvitSwinModel,
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
    ("save", "size", "outputs"),
    [
        (save_vil, (22, 14), ("last_hidden_state", "pooler_output")),
        (save_swin, (16, 16), ("logits",)),
        (save_cvt, (16, 20), ("last_hidden_state", "pooler_output")),
    ],
)
def test_file_for_one_size_computes_what_the_network_computes(tmp_path, save, size, outputs):
    model = save(tmp_path / "model")
    path = tmp_path / "network.onnx"
    path.write_text("an older file")
    result = export_onnx(tmp_path / "model", path, image_size=size)
    assert result == OnnxExport(path, size, outputs, result.largest_difference)
    assert result.largest_difference is not None and result.largest_difference < 1e-5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "network.onnx"]

    onnx.checker.check_model(path, full_check=True)
    assert largest_difference(model, onnxruntime.InferenceSession(path), outputs, size) < 1e-5
    # The comparison that guards the export sees another network in the file.
    with torch.no_grad():
        list(model.parameters())[-1].add_(0.01)
    plain = export._PlainOutputs(model, outputs)
    assert export._largest_difference(plain, path, [size]) > export.TOLERANCE


def largest_difference(model, session, outputs, size: tuple[int, int]) -> float:
    pixels = torch.randn(5, 3, *size)
    with torch.no_grad():
        expected = model(pixels)
    arrays = session.run(list(outputs), {"pixel_values": pixels.numpy()})
    return max(
        float((torch.from_numpy(array) - expected[name]).abs().max())
        for name, array in zip(outputs, arrays, strict=True)
    )


# Everything of a network that depends on the size: tables, positions, masks, padding.
FREE = {
    "Swin": (EsvitSwinModel, swin_config(use_absolute_embeddings=True)),
    "CvT": (EsvitCvtModel, cvt_config(deep_stem=True)),
    "CvT with windows larger than its maps": (EsvitCvtModel, cvt_config(window_size=[9, 9])),
    "ViL": (EsvitVilModel, vil_config(depths=[1, 1])),
    "ViL with positions": (
        EsvitVilModel,
        vil_config(position_embedding=["absolute", "relative"], num_global_tokens=[1, 2]),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("Swin", "ViL"))) for name in FREE],
)
def test_file_for_any_size_computes_what_the_network_computes(tmp_path, name):
    network_class, config = FREE[name]
    model = build(network_class, config)
    model.save_pretrained(tmp_path / "model")
    if name == "ViL" and torch.torch_version.TorchVersion(torch.__version__) < (2, 14):
        # Older exporters write a ViL that computes something else at other sizes.
        with pytest.raises(ValueError, match="not kept; try a newer torch"):
            export_onnx(tmp_path / "model", tmp_path / "network.onnx")
        return
    result = export_onnx(tmp_path / "model", tmp_path / "network.onnx")
    assert result.image_size is None
    assert result.largest_difference is not None and result.largest_difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for size in ((32, 32), (64, 64), (37, 70), (88, 24), (16, 17), (8, 96)):
        assert largest_difference(model, session, result.outputs, size) < 1e-4


def test_operators_that_are_not_to_be_had_are_refused(tmp_path):
    save_cvt(tmp_path / "model")
    with pytest.raises(ValueError, match="with opset 9: the operators are those of opset 18"):
        export_onnx(tmp_path / "model", tmp_path / "network.onnx", image_size=16, opset=9)
    assert not (tmp_path / "network.onnx").exists()


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
    with pytest.raises(ValueError, match="cannot load a model from .*: there is no such folder"):
        export_onnx(tmp_path / "nothing", tmp_path / "network.onnx")
    with pytest.raises(ValueError, match="/proc/network.onnx' cannot be written"):
        export_onnx(tmp_path / "nothing", "/proc/network.onnx")
