"""The command `esvit`: folders are whole, hostile files harmless, wrong words explained, and the
other jobs run.
"""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model, ViTModel

import esvit_hf
from esvit_hf import EsvitImageProcessor, EsvitSwinModel, convert_checkpoint
from esvit_hf.commands.main import main
from esvit_hf.reference.convert import read_reference_checkpoint

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `esvit` with words; its exit code, stdout and stderr without progress bars."""

    def program(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        output, errors = capsys.readouterr()
        return (
            code,
            output,
            "\n".join(line for line in errors.splitlines() if "it/s]" not in line and line.strip()),
        )

    return program


def refused(result: tuple[int, str, str]) -> str:
    """The one line that an error must be."""
    code, output, errors = result
    assert code == 2
    assert not output
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: ")
    return errors


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def last_line(output: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return report


def test_the_folder_is_complete(golden: Callable[[str], Any], call: Call, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "model"
    assert (
        call(
            "convert",
            golden("swin_w7_view").checkpoint,
            output,
            "--set",
            "image_size=56",
            "--set",
            "patch_size=2",
        )[0]
        == 2
    )
    assert contents(tmp_path) == []
    assert (
        call("convert", golden("swin_w7_view").checkpoint, output, "--set", "drop_path_rate=0.3")[0]
        == 0
    )
    assert contents(tmp_path / "new" / "folder") == [
        "model",
        *(f"model/{name}" for name in contents(output)),
    ]
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(contents(output))
    model = AutoModel.from_pretrained(output)
    assert type(model) is EsvitSwinModel
    assert model.config.drop_path_rate == 0.3
    processor = AutoImageProcessor.from_pretrained(output)
    assert type(processor) is EsvitImageProcessor
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)
    usual = tmp_path / "usual"
    usual.mkdir()
    assert output.stat().st_mode == usual.stat().st_mode


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sentinel,)


class Command(Payload):
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("payload", [Payload, Command])
@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["args", "teacher", "top"])
def test_payloads_are_not_executed(
    payload: type[Payload],
    write: str,
    place: str,
    golden: Callable[[str], Any],
    call: Call,
    tmp_path: Path,
) -> None:
    sentinel = tmp_path / "executed"
    checkpoint: Any = read_reference_checkpoint(golden("swin_w7_view").checkpoint)
    if place == "args":
        checkpoint["args"] = argparse.Namespace(arch=payload(sentinel))
    elif place == "teacher":
        checkpoint["teacher"]["norm.weight"] = payload(sentinel)
    else:
        checkpoint = payload(sentinel)
    file = tmp_path / "checkpoint.pth"
    if write == "pickle":
        file.write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, file, _use_new_zipfile_serialization=write == "zip")
    message = refused(call("convert", file, tmp_path / "model"))
    assert str(file) in message
    assert contents(tmp_path) == ["checkpoint.pth"]
    # The file would do it to a reader that trusts it.
    if write == "pickle":
        pickle.loads(file.read_bytes())
        assert sentinel.exists()


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files(
    share: float, golden: Callable[[str], Any], call: Call, tmp_path: Path
) -> None:
    whole = golden("vil_view_region").checkpoint.read_bytes()
    (tmp_path / "checkpoint.pth").write_bytes(whole[: int(len(whole) * share)])
    assert "checkpoint.pth" in refused(
        call("convert", tmp_path / "checkpoint.pth", tmp_path / "model")
    )
    assert contents(tmp_path) == ["checkpoint.pth"]


def write_foreign(kind: str, path: Path) -> None:
    """Write a file that is no checkpoint of the reference."""
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "safetensors":
        save_file({"weight": torch.ones(2)}, path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "folder":
        path.mkdir()
    elif kind == "numbers":
        torch.save([1, 2, 3], path)
    elif kind == "model":
        torch.save({"model": {"weight": torch.ones(2)}}, path)
    elif kind == "objects":
        torch.save({"teacher": {"weight": "a string"}}, path)
    elif kind == "other network":
        torch.save({"teacher": {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}}, path)
    elif kind == "student only":
        torch.save({"student": {"fc.weight": torch.ones(2, 2)}}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no checkpoint file"),
        ("folder", "no checkpoint file"),
        ("text", "not a readable checkpoint"),
        ("safetensors", "not a readable checkpoint"),
        ("zip", "not a readable checkpoint"),
        ("numbers", "not a reference checkpoint"),
        ("model", "neither 'student' nor 'teacher'"),
        ("objects", "does not map names to tensors"),
        ("other network", "fc.weight.*known networks"),
        ("student only", "only: student"),
    ],
)
def test_foreign_files(kind: str, message: str, call: Call, tmp_path: Path) -> None:
    write_foreign(kind, tmp_path / "checkpoint.pth")
    before = contents(tmp_path)
    assert re.search(
        message, refused(call("convert", tmp_path / "checkpoint.pth", tmp_path / "model"))
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("edit", ["missing", "left over", "shape", "index", "head", "center"])
def test_every_tensor_counts(
    edit: str, golden: Callable[[str], Any], call: Call, tmp_path: Path
) -> None:
    checkpoint = read_reference_checkpoint(golden("swin_w7_view").checkpoint)
    teacher, block = checkpoint["teacher"], "layers.0.blocks.0."
    names = {
        "missing": block + "mlp.fc2.bias",
        "left over": block + "mlp.fc3.bias",
        "shape": block + "norm1.bias",
        "index": block + "attn.relative_position_index",
        "head": "head.mlp.0.gain",
        "center": "center",
    }
    name = names[edit]
    if edit == "missing":
        del teacher[name]
    elif edit == "index":
        teacher[name] = teacher[name].T.contiguous()
    elif edit == "center":
        checkpoint["dino_loss"]["center"] = torch.zeros(1, 63)
    else:
        teacher[name] = torch.ones(3)
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    message = refused(
        call("convert", tmp_path / "checkpoint.pth", tmp_path / "model", "--with-heads")
    )
    ours = {
        "missing": "mlp.contract.bias",
        "shape": "attention_norm.bias",
        "index": "relative_position_index",
    } | {"head": "layers.0.gain"}
    assert ours.get(edit, name) in message
    assert contents(tmp_path) == ["checkpoint.pth"]


def test_an_existing_output_is_refused(
    golden: Callable[[str], Any], call: Call, tmp_path: Path
) -> None:
    checkpoint = golden("swin_w7_view").checkpoint
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    file.write_text("kept")
    link.symlink_to(tmp_path / "nowhere")
    for taken in (folder, file, link):
        assert "exists" in refused(call("convert", checkpoint, taken))
    assert "cannot be written" in refused(call("convert", checkpoint, file / "model"))
    assert contents(tmp_path) == ["file", "folder", "folder/kept.txt", "link"]
    (folder / "kept.txt").unlink()
    assert call("convert", checkpoint, folder)[0] == 0
    assert "exists" in refused(call("convert", folder, file, "--to-reference"))
    assert file.read_text() == "kept"


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_when_writing_fails(
    existing: bool,
    golden: Callable[[str], Any],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(self: EsvitImageProcessor, folder: Path, **_: Any) -> None:
        assert (folder / "model.safetensors").is_file()
        raise OSError("no space left on device")

    monkeypatch.setattr(EsvitImageProcessor, "save_pretrained", full_disk)
    if existing:
        (tmp_path / "model").mkdir()
    assert "no space" in refused(
        call("convert", golden("swin_w7_view").checkpoint, tmp_path / "model")
    )
    assert contents(tmp_path) == (["model"] if existing else [])


@pytest.mark.parametrize(
    ("case", "words", "message"),
    [
        ("swin_w7_view", ["--set", "image_size"], "FIELD=VALUE"),
        ("swin_w7_view", ["--set", "=3"], "FIELD=VALUE"),
        ("swin_w7_view", ["--set", "imagesize=224"], "image_size"),
        ("swin_w7_view", ["--set", "color=3"], "no field color"),
        ("swin_w7_view", ["--set", "depths=[1,2]"], "4 entries; the network has 2 stages"),
        ("swin_w7_view", ["--set", "qkv_bias=maybe"], "qkv_bias"),
        ("swin_w7_view", ["--set", "image_size=56"], "image_size"),
        ("swin_w7_view", ["--arch", "resnext"], "resnext.*known: swin, vil, cvt, vit, resnet"),
        ("swin_w7_view", ["--arch", "vil"], "no place in a vil network"),
        ("swin_w7_view", ["--weights", "average"], "weights"),
        ("swin_w7_view", ["--with-hats"], "with-hats"),
        ("cvt_view_region", [], "show num_heads: pass"),
        ("vit_view_region", [], "num_attention_heads"),
        ("vit_view_region", ["--set", "heads=4"], "no field heads"),
        ("swin_w7_view", ["--to-reference"], "cannot load a model"),
        ("swin_w7_view", ["--to-reference", "--arch", "swin"], "--arch"),
    ],
)
def test_wrong_words_of_convert(
    case: str,
    words: list[str],
    message: str,
    golden: Callable[[str], Any],
    call: Call,
    tmp_path: Path,
) -> None:
    assert re.search(
        message, refused(call("convert", golden(case).checkpoint, tmp_path / "model", *words))
    )
    assert contents(tmp_path) == []


def test_what_cannot_go_to_the_reference(
    golden: Callable[[str], Any], call: Call, tmp_path: Path
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file.pth"
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(folder)
    message = refused(call("convert", folder, file, "--to-reference"))
    assert "'dinov2'" in message
    assert "esvit_swin, esvit_vil, esvit_cvt, vit, resnet" in message
    model = convert_checkpoint(golden("vit_view_region").checkpoint, num_attention_heads=4)
    assert type(model) is ViTModel
    model.save_pretrained(tmp_path / "vit")
    assert "no heads" in refused(
        call("convert", tmp_path / "vit", file, "--to-reference", "--with-heads")
    )
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors" in refused(call("convert", tmp_path / "vit", file, "--to-reference"))
    assert not file.exists()


@pytest.fixture
def dark_and_bright(tmp_path: Path) -> Path:
    """Dark and bright images, which any network tells apart."""
    random = np.random.default_rng(0)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["dark", "bright"])})
    (tmp_path / "data").mkdir()
    for split, count in (("train", 20), ("test", 6)):
        labels = [index % 2 for index in range(count)]
        pixels = [
            random.integers(140 * label, 140 * label + 100, (32, 32, 3), dtype=np.uint8)
            for label in labels
        ]
        rows = {"image": [Image.fromarray(values) for values in pixels], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        )
    return tmp_path / "data"


def save_small_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = esvit_hf.EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_evaluation_jobs(dark_and_bright: Path, call: Call, tmp_path: Path) -> None:
    model, data, rows = tmp_path / "model", dark_and_bright, tmp_path / "rows.safetensors"
    save_small_model(model)
    code, output, _ = call(
        *("evaluate", model, data, "--tasks", "knn,linear", "--knn.k", "[3]"),
        *("--linear.blocks", "[2]", "--linear.epochs", "20", "--num_workers", "0"),
        *("--features_folder", tmp_path / "features"),
    )
    assert code == 0
    tasks = last_line(output)["tasks"]
    assert tasks["knn"]["accuracies"] == [
        {"k": 3, "temperature": 0.07, "top1": 100.0, "top5": 100.0}
    ]
    assert tasks["linear"]["top1"] == 100.0
    code, output, _ = call(
        "features", model, data, "--output", rows, "--split", "test", "--num_workers", "0"
    )
    assert code == 0
    assert last_line(output) == {"output": str(rows), "images": 6, "dimension": 16, "labels": True}
    assert load_file(rows)["features"].shape == (6, 16)
    assert "safetensors" in refused(call("features", model, data, "--output", "features.npy"))


def test_export_job(call: Call, tmp_path: Path) -> None:
    save_small_model(tmp_path / "model")
    code, output, _ = call("export", tmp_path / "model", tmp_path / "model.onnx")
    assert code == 0
    report = last_line(output)
    assert report["largest_difference"] < 1e-4
    assert report["image_size"] == [32, 32]
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
    assert "no/model" in refused(call("export", "/no/model", tmp_path / "other.onnx"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "convert,export,pretrain,features"),
        (["train"], "'train'"),
        (["convert"], "checkpoint"),
        (["evaluate", "model"], "dataset"),
        (["pretrain", "no_such_recipe.yaml"], "no_such_recipe.yaml"),
    ],
)
def test_wrong_words(words: list[str], message: str, call: Call) -> None:
    assert message in refused(call(*words))


@pytest.mark.parametrize(
    "job",
    [
        [],
        ["convert"],
        ["export"],
        ["transfer"],
        ["features"],
        ["evaluate"],
        ["pretrain"],
    ],
)
def test_help(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*job, "--help"])
    assert not stopped.value.code
    assert "usage: esvit" in capsys.readouterr().out
