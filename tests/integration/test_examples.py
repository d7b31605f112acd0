"""The example programs, and how those that share a command line end."""

import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from safetensors import SafetensorError
from safetensors.torch import load_file
from tests.support.paths import EXAMPLES, FASHION_MNIST
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.command_line import report_errors
from esvit_hf.data.sources import load_image_source
from esvit_hf.features.extraction import compute_features


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


Run = Callable[..., str]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a program with words; what it prints."""

    def program(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return program


def test_linear_probe(run_example: Run, model: str, dataset: str) -> None:
    printed = run_example("linear_probe", model, dataset, "--epochs", "20")
    assert printed == "top-1 on test: 100.0 %\n"


def test_extract_features(run_example: Run, model: str, dataset: str, tmp_path: Path) -> None:
    target = tmp_path / "features.safetensors"
    run_example("extract_features", model, dataset, "--split", "test", "--output", str(target))
    saved = load_file(target)
    expected = compute_features(
        load_backbone(model),
        load_image_source(dataset, split="test"),
        AutoImageProcessor.from_pretrained(model),
    )
    torch.testing.assert_close(saved["pooled"], expected.values)
    # The view feature of this network is the mean of its regions.
    torch.testing.assert_close(saved["regions"], expected.values)


def test_a_loop_of_your_own_lowers_the_loss_and_leaves_a_network(
    run_example: Run, tmp_path: Path
) -> None:
    words = (str(FASHION_MNIST), str(tmp_path), "--steps", "16", "--batch_size", "8")
    losses = [
        float(line.rsplit(" ", 1)[1]) for line in run_example("training_loop", *words).splitlines()
    ]
    assert len(losses) == 16
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert AutoModel.from_pretrained(tmp_path).config.embed_dim == 32


def test_images_of_many_channels_from_pretraining_to_k_nn(
    run_example: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (str(tmp_path), "--count", "8", "--size", "16", "--num_epochs", "1")
    with pytest.raises(SystemExit) as ended:
        run_example("pretrain_many_channels", *words)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "images of 6 channels: saturation, hue and grayscale" in printed
    assert printed.splitlines()[-1] == "k-NN on the test pictures: 100.0 %"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "network")
    assert (processor.num_channels, processor.value_range) == (6, [0, 10000])
    rows = Dataset.from_parquet(str(tmp_path / "features.parquet"), cache_dir=str(tmp_path))
    network = AutoModel.from_pretrained(tmp_path / "network").eval()
    file = tmp_path / "pictures" / "train" / rows["file"][0].removeprefix("train/")
    with torch.no_grad():
        pixels = processor(tifffile.imread(file), return_tensors="pt").pixel_values
        assert pixels.shape == (1, 6, 16, 16)
        expected = network(pixels).pooler_output[0]
    torch.testing.assert_close(torch.tensor(rows["feature"][0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a\n b"), 2),
        (FloatingPointError("a b"), 2),
        (SafetensorError("a b"), 2),
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


def test_files_that_cannot_be_used_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(lambda: len(Path("/no/file").read_text()))() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot read or write /no/file (No such file or directory): ")


def test_what_is_said_starts_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    @report_errors
    def main() -> int:
        with tqdm(total=2, leave=False) as bar:
            bar.update()
            sys.stderr.write(warnings.formatwarning("careful", UserWarning, "file.py", 1))
        raise ValueError("a b")

    assert main() == 2
    assert {"warning: careful", "error: a b"} <= set(capsys.readouterr().err.split("\n"))


def test_faults_of_the_program_are_not_hidden() -> None:
    @report_errors
    def main() -> int:
        raise KeyError("fault")

    with pytest.raises(KeyError):
        main()
