"""The command `esvit`: folders are whole, hostile files harmless, wrong words explained, and the
other commands run.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
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
from esvit_hf import EsvitImageProcessor, EsvitSwinModel
from esvit_hf.commands.main import COMMANDS, main
from esvit_hf.reference.from_reference import load_reference_model, read_reference_checkpoint

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
            "--config.image_size",
            "56",
            "--config.patch_size",
            "2",
        )[0]
        == 2
    )
    assert contents(tmp_path) == []
    assert (
        call("convert", golden("swin_w7_view").checkpoint, output, "--config.drop_path_rate=0.3")[0]
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
        ("numbers", "holds no network"),
        ("model", "weight.*known networks"),
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
        call("convert", tmp_path / "checkpoint.pth", tmp_path / "model", "--with_heads")
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
    assert "exists" in refused(call("convert", folder, file, "--to_reference"))
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
        ("swin_w7_view", ["--config", "image_size"], "--config is 'image_size': give a mapping"),
        ("swin_w7_view", ["--config", "3"], "--config is '3': give a mapping"),
        ("swin_w7_view", ["--set", "image_size=56"], "esvit convert has no flag --set"),
        ("swin_w7_view", ["--config", "{imagesize: 224}"], "image_size"),
        ("swin_w7_view", ["--config.color", "3"], "no field color"),
        ("swin_w7_view", ["--config.depths", "[1,2]"], "4 entries; the network has 2 stages"),
        ("swin_w7_view", ["--config.qkv_bias", "maybe"], "qkv_bias"),
        ("swin_w7_view", ["--config.image_size=56"], "image_size"),
        ("swin_w7_view", ["--arch", "resnext"], "resnext.*known: swin, vil, cvt, vit, resnet"),
        ("swin_w7_view", ["--arch", "vil"], "no place in a vil network"),
        (
            "swin_w7_view",
            ["--weights", "average"],
            "--weights is 'average': give teacher or student",
        ),
        ("swin_w7_view", ["--with_hats"], "no flag --with_hats: did you mean --with_heads?"),
        ("cvt_view_region", [], "show num_heads: pass"),
        ("vit_view_region", [], "num_attention_heads"),
        ("vit_view_region", ["--config.heads", "4"], "no field heads"),
        ("swin_w7_view", ["--to_reference"], "cannot load a model"),
        ("swin_w7_view", ["--to_reference", "--arch", "swin"], "--arch"),
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
    message = refused(call("convert", folder, file, "--to_reference"))
    assert "'dinov2'" in message
    assert "esvit_swin, esvit_vil, esvit_cvt, vit, resnet" in message
    model = load_reference_model(golden("vit_view_region").checkpoint, num_attention_heads=4)
    assert type(model) is ViTModel
    model.save_pretrained(tmp_path / "vit")
    assert "no heads" in refused(
        call("convert", tmp_path / "vit", file, "--to_reference", "--with_heads")
    )
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors" in refused(call("convert", tmp_path / "vit", file, "--to_reference"))
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


def test_features(dark_and_bright: Path, call: Call, tmp_path: Path) -> None:
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
    report = last_line(output)
    assert (report["rows"], report["dimension"]) == (6, 16)
    assert load_file(rows)["features"].shape == (6, 16)
    assert ".parquet" in refused(call("features", model, data, "--output", "features.txt"))


def test_export(call: Call, tmp_path: Path) -> None:
    save_small_model(tmp_path / "model")
    words = ("--image_size", "32")
    code, output, _ = call("export", tmp_path / "model", tmp_path / "model.onnx", *words)
    assert code == 0
    report = last_line(output)
    assert report["largest_difference"] < 1e-4
    assert report["image_size"] == [32, 32]
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
    assert "no/model" in refused(call("export", "/no/model", tmp_path / "other.onnx"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what to do: esvit pretrain, "),
        (["pretrian"], "esvit has no command 'pretrian': did you mean pretrain?"),
        (["zoo", "biuld", "x"], "esvit zoo has no command 'biuld': did you mean build?"),
        (["linear-probe"], "esvit has no command 'linear-probe': esvit --help lists them"),
        (["convert"], "CHECKPOINT, OUTPUT are missing: esvit convert CHECKPOINT OUTPUT"),
        (["convert", "a", "b", "c"], "'c' is too much: esvit convert CHECKPOINT OUTPUT"),
        (["features", "model", "--output", "o"], "DATASET is missing"),
        (["pretrain", "no_such_recipe.yaml"], "no_such_recipe.yaml"),
    ],
)
def test_wrong_words(words: list[str], message: str, call: Call) -> None:
    assert message in refused(call(*words))


def test_every_command_explains_itself_without_heavy_packages() -> None:
    program = """
import contextlib, json, os, sys
from esvit_hf.commands.main import COMMANDS, main

for name in ["", *COMMANDS]:
    if os.fork() == 0:
        with contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
        heavy = {"torch", "transformers", "datasets", "accelerate"} & set(sys.modules)
        print(json.dumps(["imported", name, sorted(heavy)]), flush=True)
        os._exit(0)
    os.wait()
"""
    lines = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()
    usages = [line for line in lines if line.startswith("usage: esvit")]
    imported = [json.loads(line)[1:] for line in lines if line.startswith('["imported"')]
    assert len(usages) == len(imported) == len(COMMANDS) + 1
    assert {name: packages for name, packages in imported if packages} == {}


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split() == [*name.split(), *command.help.split()] for line in lines)


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"esvit-hf {esvit_hf.__version__}\n", "")
