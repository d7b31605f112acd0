"""The example programs and what they share: numbers on the last line, errors in one line."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from safetensors.torch import load_file
from tests.support.paths import EXAMPLES

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.commands.command_line import report_errors, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dark and bright images, which any network tells apart."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "bright"])})
    for split, count in (("train", 40), ("test", 10)):
        labels = [index % 2 for index in range(count)]
        pixels = [
            random.integers(128 * label, 128 * label + 64, (32, 32, 3), dtype=np.uint8)
            for label in labels
        ]
        rows = {"image": [PILImage.fromarray(values) for values in pixels], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return str(folder)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run an example with arguments; its exit code, stdout and stderr."""

    def program(name: str, *arguments: str) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(module.main)
        output, errors = capsys.readouterr()
        return int(stopped.value.code or 0), output, errors

    return program


Call = Callable[..., tuple[int, str, str]]


def last_line(output: str) -> Any:
    return json.loads(output.strip().splitlines()[-1])


def test_knn(call: Call, model: str, dataset: str) -> None:
    code, output, _ = call(
        "knn", model, dataset, "--k=[1,20]", "--temperature=0.1", "--num_workers=0"
    )
    assert code == 0
    rows = last_line(output)
    assert (rows["train_images"], rows["test_images"]) == (40, 10)
    assert rows["knn"] == [
        {"k": k, "temperature": 0.1, "top1": 100.0, "top5": 100.0} for k in (1, 20)
    ]


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_linear_probe(call: Call, model: str, dataset: str) -> None:
    arguments = (
        "--learning_rates=[0.1,1.0]",
        "--blocks=2",
        "--epochs=20",
        "--num_workers=0",
        "--test_split=test[:6]",
    )
    code, output, _ = call("linear_probe", model, dataset, *arguments)
    assert code == 0
    numbers = last_line(output)
    assert (numbers["top1"], numbers["top5"], numbers["mean_per_class"]) == (100.0, 100.0, 100.0)
    assert [(row["blocks"], row["learning_rate"]) for row in numbers["validation"]] == [
        (2, 0.1),
        (2, 1.0),
    ]
    assert numbers["blocks"] == 2
    assert numbers["test_images"] == 6


def test_extract_features(call: Call, model: str, dataset: str, tmp_path: Path) -> None:
    target = tmp_path / "features.safetensors"
    code, output, _ = call(
        "extract_features", model, dataset, f"--output={target}", "--split=test", "--num_workers=0"
    )
    assert code == 0
    assert last_line(output) == {
        "output": str(target),
        "images": 10,
        "dimension": 16,
        "labels": True,
    }
    saved = load_file(target)
    assert saved["features"].shape == (10, 16)
    assert saved["labels"].tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("knn", ("{model}", "/no/such/data"), "/no/such/data"),
        ("knn", ("/no/such/model", "{dataset}", "--k=1"), "/no/such/model"),
        ("knn", ("{model}", "{dataset}", "--image_column=picture"), "'picture'.*image, label"),
        ("knn", ("{model}", "{dataset}", "--test_split=dev"), "dev"),
        ("knn", ("{model}", "{dataset}", "--k=x"), "k"),
        ("knn", ("{model}", "{dataset}", "--neighbors=3"), "--neighbors"),
        ("knn", ("{model}",), "DATASET is missing"),
        ("knn", ("{model}", "{dataset}", "--k=1", "--processor={dataset}"), "--processor"),
        ("knn", ("{model}", "{dataset}", "--num_workers=0"), "k is 200, the training set has 40"),
        ("linear_probe", ("{model}", "{dataset}", "--blocks=9", "--num_workers=0"), "9 blocks"),
        ("extract_features", ("{model}", "{dataset}", "--output=features.npy"), "safetensors"),
    ],
)
def test_errors_are_one_line(
    call: Call, model: str, dataset: str, name: str, arguments: tuple[str, ...], message: str
) -> None:
    code, output, errors = call(
        name, *(argument.format(model=model, dataset=dataset) for argument in arguments)
    )
    assert code == 2
    assert "Traceback" not in errors
    last = [line.rsplit("\r", 1)[-1] for line in errors.strip().splitlines()][-1]
    assert "error: " in last
    assert re.search(message, last)
    assert "{" not in output


@pytest.mark.parametrize("name", ["extract_features", "knn", "linear_probe"])
def test_help(call: Call, name: str) -> None:
    code, output, _ = call(name, "--help")
    assert code == 0
    assert "any vision model that AutoModel" in output
    assert "--image_column" in output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a\n b"), 2),
        (FloatingPointError("a b"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_errors_become_exit_codes(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @report_errors
    def main() -> int:
        raise error

    assert main() == code
    assert capsys.readouterr().err == ("error: a b\n" if code == 2 else "interrupted\n")


def test_faults_of_the_program_are_not_hidden() -> None:
    @report_errors
    def main() -> int:
        raise KeyError("fault")

    with pytest.raises(KeyError):
        main()
