"""The verb `extract_features`: one row an image, in any precision, again and again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import esvit_hf
from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.commands.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and six images with labels."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder / "model")
    size = {"shortest_edge": 32}
    EsvitImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "model"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    rows = {"image": [Image.fromarray(values) for values in pixels], "label": [0, 1, 0, 1, 1, 0]}
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    (folder / "data").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "train.parquet")
    return folder


def test_every_call_chooses_its_precision(folder: Path, tmp_path: Path) -> None:
    found = {}
    for name, precision in (("first", "no"), ("half", "bf16"), ("again", "no")):
        report = esvit_hf.extract_features(
            folder / "model",
            folder / "data",
            output=tmp_path / f"{name}.safetensors",
            num_workers=0,
            mixed_precision=precision,
        )
        assert report == {
            "output": str(tmp_path / f"{name}.safetensors"),
            "images": 6,
            "dimension": 16,
            "labels": True,
        }
        found[name] = load_file(report["output"])
    assert found["first"]["labels"].tolist() == [0, 1, 0, 1, 1, 0]
    assert torch.equal(found["first"]["features"], found["again"]["features"])
    difference = (found["first"]["features"] - found["half"]["features"]).abs().max()
    assert 1e-5 < difference < 0.2


def test_the_command_writes_the_same_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(folder / "model"), str(folder / "data")
    options = {"split": "train[:4]", "blocks": 2, "num_workers": 0}
    report = esvit_hf.extract_features(
        model, data, output=str(tmp_path / "verb.safetensors"), **options
    )
    capsys.readouterr()
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    path = tmp_path / "command.safetensors"
    assert main(["features", model, data, "--output", str(path), *words]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {**report, "output": str(path)}
    rows, again = load_file(path), load_file(tmp_path / "verb.safetensors")
    assert rows.keys() == again.keys() == {"features", "labels"}
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    for written in (path, tmp_path / "verb.safetensors"):
        with safe_open(written, framework="pt") as file:
            assert file.metadata() == {
                "model": model,
                "dataset": data,
                "split": "train[:4]",
                "blocks": "2",
            }


def test_wrong_places_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for output in (tmp_path / "rows.npy", tmp_path / "no" / "rows.safetensors"):
        with pytest.raises(ValueError, match="--output is .*: give a name that ends in"):
            esvit_hf.extract_features("no/model", "no/data", output=output)
    with pytest.raises(TypeError, match=r"extract_features\(\) got an unexpected.*'batchsize'"):
        esvit_hf.extract_features("model", "data", output="rows.safetensors", batchsize=3)
