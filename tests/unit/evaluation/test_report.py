"""The job `esvit evaluate` as a user runs it: files, reuse, and what is refused before anything is
computed.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ResNetConfig, ResNetModel

from esvit_hf import EsvitImageProcessor, EsvitSwinConfig, EsvitSwinModel
from esvit_hf.commands.main import main
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.evaluation.jobs import measure_knn, measure_linear_probe
from esvit_hf.evaluation.report import command_of
from esvit_hf.hub.measurements import read_measurements

NAMES = ("dark", "middle", "light")
TASKS = "knn,linear,logistic,few_shot,correspondence,attention"
SETTINGS = (
    "--k",
    "[1,5]",
    "--blocks",
    "[1,2]",
    "--epochs",
    "5",
    "--shots",
    "[1,5]",
    "--draws",
    "2",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = EsvitSwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    EsvitSwinModel(config).save_pretrained(folder)
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def write(folder: Path, split: str, count: int, *, classes: int = 3, seed: int = 0) -> None:
    """Images of overlapping brightness, labeled by the name of the class."""
    random = np.random.default_rng(seed)
    labels = [index % classes for index in range(count)]
    pixels = [
        random.integers(60 * label, 60 * label + 130, (32, 32, 3), dtype=np.uint8)
        for label in labels
    ]
    rows = {
        "image": [PILImage.fromarray(image) for image in pixels],
        "label": [NAMES[label] for label in labels],
    }
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(
        rows, features=Features({"image": Image(), "label": Value("string")})
    ).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "shades", "train", 40)
    write(tmp_path / "shades", "test", 13, seed=1)
    return tmp_path / "shades"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep features and reports of a test to itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def program(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *map(str, words), "--num_workers", "0"])
        output, errors = capsys.readouterr()
        return code, output, errors

    return program


@pytest.mark.filterwarnings("ignore:the best learning rate", "ignore:the best strength")
def test_a_report_of_every_task(
    model: Path, data: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (model, "shades", "--tasks", TASKS, "--report", "out", *SETTINGS)
    code, output, _ = call(*words)
    assert code == 0
    report = json.loads(output.strip().splitlines()[-1])
    out = tmp_path / "out"
    assert report == json.loads((out / "report.json").read_text())
    pictures = (
        "attention_entropy",
        "confusion_matrix",
        "correspondence",
        "few_shot",
        "knn",
        "linear_probe",
        "logistic",
    )
    files = [f"{name}.png" for name in pictures]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*files, "measurements.json", "model_card_block.md", "report.json", "report.md"]
    )
    for name in files:
        with PILImage.open(out / name) as picture:
            assert min(picture.size) > 400
    assert (report["train_images"], report["test_images"], report["classes"]) == (40, 13, 3)
    assert report["command"] == (
        f"esvit evaluate {model.name} shades --report out --tasks {TASKS} --k '[1,5]' --blocks "
        f"'[1,2]' --epochs 5 --shots '[1,5]' --draws 2"
    )
    assert list(report["tasks"]) == TASKS.split(",")
    assert [row["k"] for row in report["tasks"]["knn"]["accuracies"]] == [1, 5]
    assert {(row["blocks"]) for row in report["tasks"]["linear"]["validation"]} == {1, 2}
    assert [row["shots"] for row in report["tasks"]["few_shot"]["accuracies"]] == [1, 5]
    assert [row["protocol"] for row in report["tasks"]["correspondence"]["protocols"]] == [
        "crops",
        "mirror",
    ]
    assert [len(row["heads"]) for row in report["tasks"]["attention"]["blocks"]] == [1, 2]

    records = read_measurements(out / "measurements.json")
    assert {record.dataset for record in records} == {"shades"}
    assert {record.command for record in records} == {report["command"]}
    top1 = [record.value for record in records if (record.task, record.metric) == ("k-NN", "top1")]
    assert top1 == [row["top1"] for row in report["tasks"]["knn"]["accuracies"]]
    page, block = (out / "report.md").read_text(), (out / "model_card_block.md").read_text()
    assert all(f"({name})" in page for name in files)
    assert all(f"| {record.value:.6g} |" in block for record in records)
    assert (
        str(tmp_path)
        not in page
        + block
        + (out / "report.json").read_text()
        + (out / "measurements.json").read_text()
    )

    # The features are there: neither the network nor an image is read for the tasks that need
    # features alone.
    monkeypatch.setattr("esvit_hf.features.store.load_backbone", None)
    monkeypatch.setattr("esvit_hf.features.store.extract_features", None)
    code, output, _ = call(
        model, "shades", "--tasks", "knn,linear,logistic,few_shot", "--report", "again", *SETTINGS
    )
    assert code == 0
    again = json.loads(output.strip().splitlines()[-1])["tasks"]
    assert again == {name: numbers for name, numbers in report["tasks"].items() if name in again}
    assert not (tmp_path / "again" / "attention_entropy.png").exists()


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_the_numbers_are_those_of_the_single_jobs(model: Path, data: Path, tmp_path: Path) -> None:
    report = evaluate(
        str(model),
        str(data),
        report=tmp_path / "out",
        tasks="knn,linear",
        k=[3],
        blocks=[2],
        epochs=4,
        num_workers=0,
    )
    knn = measure_knn(str(model), str(data), k=3, num_workers=0)
    probe = measure_linear_probe(str(model), str(data), blocks=2, epochs=4, num_workers=0)
    assert report is not None and knn is not None and probe is not None
    assert report["tasks"]["knn"]["accuracies"] == knn["knn"]
    assert report["tasks"]["linear"] == {name: probe[name] for name in report["tasks"]["linear"]}


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_an_augmented_probe_learns_from_crops(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "shades"
    write(data, "train", 200)
    write(data, "test", 60, seed=1)
    settings: dict[str, Any] = {
        "blocks": [1, 2],
        "epochs": 3,
        "num_workers": 0,
        "learning_rates": [0.3, 3.0],
    }
    plain, first, again = (
        measure_linear_probe(str(model), str(data), augment=augment, **settings)
        for augment in (False, True, True)
    )
    assert plain is not None and first is not None
    assert first == again
    assert first["validation"] != plain["validation"]


def test_images_in_both_splits_are_reported(
    model: Path, data: Path, call: Call, tmp_path: Path
) -> None:
    with pytest.warns(
        UserWarning, match=r"40 of 40 test images are training images too \(image 0, 1, 2, \.\.\.\)"
    ):
        code, output, _ = call(
            model, data, "--test_split", "train", "--tasks", "knn", "--k", "1", "--report", "out"
        )
    assert code == 0
    assert "remove them" in json.loads(output.strip().splitlines()[-1])["notes"][0]
    for name in ("report.md", "model_card_block.md"):
        assert "40 of 40 test images" in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--tasks", "knn,linear,segmentation"),
            "'knn,linear,segmentation': choose from knn,linear,logistic",
        ),
        (("--tasks", ","), "choose from knn"),
        (("--tasks", "knn"), "k is 200, the training set has 40 rows: choose k from 1 to 40"),
        (
            ("--tasks", "few_shot", "--shots", "50"),
            "class 'light' has 13 training images, and 50 shots.*lower shots",
        ),
        (("--tasks", "knn", "--k", "[1,0]"), r"--k is \[1, 0\]: give one value above 0"),
        (("--tasks", "few_shot", "--shots", "[]"), r"--shots is \[\]: give one value"),
        (("--tasks", "knn", "--k", "1", "--test_split", "dev"), "dev"),
        (
            ("--tasks", "linear", "--blocks", "7"),
            "7 blocks asked for, EsvitSwinModel reports 2: lower the number",
        ),
        (
            ("--tasks", "knn", "--k", "1", "--report", "{data}/train-00000-of-00001.parquet"),
            "name another folder",
        ),
        (
            (
                "--tasks",
                "knn",
                "--k",
                "1",
                "--features_folder",
                "{data}/train-00000-of-00001.parquet",
            ),
            "another folder",
        ),
    ],
)
def test_bad_settings(
    words: tuple[str, ...], message: str, model: Path, data: Path, call: Call
) -> None:
    words = tuple(word.format(data=data) for word in words)
    report = () if "--report" in words else ("--report", "out")
    code, output, errors = call(model, data, *report, *words)
    assert code == 2
    last = [line.rsplit("\r", 1)[-1] for line in errors.strip().splitlines()][-1]
    assert re.search(f"^error: .*{message}", last)
    assert not output


def test_bad_data_is_refused_before_a_network_is_loaded(
    model: Path, call: Call, tmp_path: Path
) -> None:
    for split, classes in (("train", 1), ("test", 1)):
        write(tmp_path / "one", split, 4, classes=classes)
    for split, classes in (("train", 2), ("test", 3)):
        write(tmp_path / "absent", split, 6, classes=classes)
    messages = {
        "one": "all training images have class 'dark'",
        "absent": "for example class 'light'",
    }
    for folder, message in messages.items():
        code, _, errors = call("/no/such/model", folder, "--report", "out")
        assert code == 2
        assert message in errors, errors


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            "correspondence",
            "turns 32 x 32 pixels into a single region.*--processor.*leave correspondence out of "
            "--tasks",
        ),
        ("attention", "attention.*leave attention out of --tasks"),
    ],
)
def test_a_network_without_regions_or_attention(
    tasks: str, message: str, data: Path, call: Call, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    )
    network.save_pretrained(tmp_path / "resnet")
    EsvitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained("resnet")
    code, _, errors = call("resnet", data, "--tasks", f"knn,{tasks}", "--k", "1", "--report", "out")
    assert code == 2
    assert re.search(message, errors)
    assert not (tmp_path / "cache" / "esvit_hf" / "features").exists() or not list(
        (tmp_path / "cache" / "esvit_hf" / "features").iterdir()
    )


def test_a_command_names_what_is_not_at_its_default() -> None:
    def job(
        model: str,
        *,
        out: Path,
        rates: list[float] = [1.0],  # noqa: B006
        flag: bool = False,
        workers: int = 2,
    ) -> None:
        """Stand for a job."""

    arguments = {
        "model": "/home/me/net",
        "out": Path("../x y"),
        "rates": [0.1, 2],
        "flag": True,
        "workers": 7,
    }
    command = command_of("job", job, arguments, private=frozenset({"workers"}))
    assert (
        command
        == f"esvit job net --out '{Path('../x y').resolve().name}' --rates '[0.1,2]' --flag true"
    )
    plain = {"model": "org/net", "out": Path("a/b"), "rates": [1.0], "flag": False, "workers": 7}
    assert (
        command_of("job", job, plain, private=frozenset({"workers"}))
        == "esvit job org/net --out a/b"
    )
