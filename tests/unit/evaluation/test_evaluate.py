"""The job `esvit evaluate` as a user runs it: files, reuse, and what is refused before anything is
computed.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from PIL import Image as PILImage
from tests.support.shades import save_processor, save_small_swin, shades, write_shades
from transformers import AutoImageProcessor, AutoModel, ResNetConfig, ResNetModel

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.evaluation.classifiers.linear_probe import linear_probe
from esvit_hf.evaluation.classifiers.logistic_regression import logistic_probe
from esvit_hf.evaluation.classifiers.nearest_mean import few_shot_accuracy
from esvit_hf.evaluation.classifiers.nearest_neighbors import knn_accuracy
from esvit_hf.evaluation.evaluate import evaluate
from esvit_hf.evaluation.linear import LinearTask
from esvit_hf.evaluation.splits import load_splits
from esvit_hf.features.extraction import compute_features
from esvit_hf.hub.measurements import read_measurements
from esvit_hf.regions.attention import measure_attention_entropy
from esvit_hf.regions.correspondence import measure_correspondence

TASKS = "knn,linear,logistic,few_shot,correspondence,attention"
SETTINGS = (
    "--knn.k",
    "[1,5]",
    "--linear.blocks",
    "[1,2]",
    "--linear.epochs",
    "5",
    "--few_shot.shots",
    "[1,5]",
    "--few_shot.draws",
    "2",
)


def small_resnet() -> ResNetModel:
    torch.manual_seed(0)
    return ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_swin(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_shades(tmp_path / "shades", "train", 40)
    write_shades(tmp_path / "shades", "test", 13, seed=1)
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
        "feature_map",
        "few_shot",
        "knn",
        "linear_probe",
        "logistic",
        "neighbors",
        "worst_errors",
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
        f"esvit evaluate {model.name} shades --tasks {TASKS} --report out --knn.k '[1,5]' "
        f"--linear.blocks '[1,2]' --linear.epochs 5 --few_shot.shots '[1,5]' --few_shot.draws 2"
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
    monkeypatch.setattr("esvit_hf.features.store.compute_features", None)
    code, output, _ = call(
        model, "shades", "--tasks", "knn,linear,logistic,few_shot", "--report", "again", *SETTINGS
    )
    assert code == 0
    again = json.loads(output.strip().splitlines()[-1])["tasks"]
    assert again == {name: numbers for name, numbers in report["tasks"].items() if name in again}
    assert not (tmp_path / "again" / "attention_entropy.png").exists()


@pytest.mark.filterwarnings("ignore:the best")
def test_the_numbers_are_those_of_the_classifiers_and_measurements(model: Path, data: Path) -> None:
    found = evaluate(
        model,
        data,
        tasks=TASKS,
        seed=3,
        knn={"k": [3]},
        linear={"blocks": [2], "epochs": 4},
        few_shot={"shots": [5], "draws": 2},
        num_workers=0,
    )
    assert found is not None
    backbone, processor = load_backbone(str(model)), AutoImageProcessor.from_pretrained(model)
    splits = load_splits(str(data), train_split="train", test_split="test")
    two = [compute_features(backbone, s, processor, blocks=2) for s in (splits.train, splits.test)]
    one = [features.last_blocks(1) for features in two]
    labels = splits.train_labels, splits.test_labels
    inputs = (one[0].values, labels[0], one[1].values, labels[1])

    def percents(*shares: float) -> list[float]:
        return [round(100 * share, 3) for share in shares]

    numbers = found["tasks"]
    (row,) = numbers["knn"]["accuracies"]
    assert [row["top1"], row["top5"]] == percents(*knn_accuracy(*inputs, k=[3])[3, 0.07])
    probe = linear_probe(
        *(two[0].values, labels[0], two[1].values, labels[1]),
        block_widths=two[0].block_widths,
        blocks=[2],
        epochs=4,
        seed=3,
    )
    assert percents(probe.top1, probe.mean_per_class) == [
        numbers["linear"]["top1"],
        numbers["linear"]["mean_per_class"],
    ]
    logistic = logistic_probe(*inputs[:3], seed=3)
    assert numbers["logistic"]["strength"] == logistic.strength
    right = (logistic.scores.argmax(dim=1) == labels[1]).double().mean().item()
    assert [numbers["logistic"]["top1"]] == percents(right)
    (few,) = few_shot_accuracy(*inputs, shots=[5], draws=2, seed=3)
    assert numbers["few_shot"]["accuracies"][0]["draws"] == percents(*few.draws)
    crops = measure_correspondence(backbone, splits.test, processor, seed=3)
    assert [numbers["correspondence"]["protocols"][0]["accuracy"]] == percents(crops.accuracy)
    heads = measure_attention_entropy(backbone, splits.test, processor)
    assert numbers["attention"]["blocks"][0]["heads"] == [round(heads[0].entropy, 4)]


@pytest.mark.filterwarnings("ignore:the best learning rate")
def test_objects_in_memory_give_the_numbers_of_their_files(
    model: Path, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "tasks": ["knn", "linear"],
        "knn": {"k": [3]},
        "linear": LinearTask(blocks=[1, 2], epochs=4),
        "num_workers": 0,
    }
    named = evaluate(model, data, report=tmp_path / "named", **settings)
    assert named is not None
    assert json.loads((tmp_path / "named" / "report.json").read_text()) == named

    network = AutoModel.from_pretrained(model).train()
    rows = DatasetDict({"train": shades(40), "test": shades(13, seed=1)})
    processor = AutoImageProcessor.from_pretrained(model)
    kept = sorted((tmp_path / "cache").rglob("*"))
    loaded = evaluate(network, rows, processor=processor, **settings)
    assert loaded is not None
    assert loaded["tasks"] == named["tasks"]
    names = ("in-memory EsvitSwinModel", "in-memory data")
    assert (loaded["model"], loaded["dataset"]) == names
    assert loaded["command"].startswith(shlex.join(["esvit", "evaluate", *names]))
    assert sorted((tmp_path / "cache").rglob("*")) == kept
    assert network.training

    everything = concatenate_datasets([rows["train"], rows["test"]])
    backbone, splits = load_backbone(str(model)), {"train_split": "train[:40]"}
    sliced = evaluate(
        backbone, everything, processor=model, test_split="train[40:]", **splits, **settings
    )
    assert sliced is not None and sliced["tasks"] == named["tasks"]


def test_numbers_alone_need_no_matplotlib(
    model: Path, data: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, output, _ = call(model, data, "--tasks", "knn,few_shot", "--knn.k", "[1]")
    assert code == 0
    assert set(json.loads(output.strip().splitlines()[-1])["tasks"]) == {"knn", "few_shot"}
    code, _, errors = call(model, data, "--tasks", "few_shot", "--report", "out")
    assert code == 2 and "pip install 'esvit-hf[plots]'" in errors


@pytest.mark.filterwarnings("ignore:the best learning rate", "ignore:the best strength")
@pytest.mark.parametrize(
    ("images", "neighbors", "shots"), [(20, [10, 20], [1, 5, 10]), (4, [6], [1])]
)
def test_the_defaults_measure_a_small_folder_of_class_folders(
    images: int, neighbors: list[int], shots: list[int], model: Path, call: Call, tmp_path: Path
) -> None:
    for index in range(images):
        for name, shade in (("dark", 40), ("light", 200)):
            file = tmp_path / "photos" / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PILImage.new("RGB", (40, 30), (shade + index, shade, shade)).save(file)
    with (
        pytest.warns(UserWarning, match="knn: k .*200 is left out, as there are"),
        pytest.warns(UserWarning, match="linear: blocks 4 is left out, as EsvitSwinModel has 2"),
    ):
        code, output, errors = call(model, "photos")
    assert code == 0, errors
    assert "features: " in errors and "Loading weights" not in errors
    assert "--linear.blocks" in json.loads(output.strip().splitlines()[-1])["command"]
    tasks = json.loads(output.strip().splitlines()[-1])["tasks"]
    assert sorted(tasks) == ["few_shot", "knn", "linear", "logistic"]
    assert [row["k"] for row in tasks["knn"]["accuracies"]] == neighbors
    assert [row["shots"] for row in tasks["few_shot"]["accuracies"]] == shots


def test_images_in_both_splits_are_reported(
    model: Path, data: Path, call: Call, tmp_path: Path
) -> None:
    with pytest.warns(
        UserWarning, match=r"40 of 40 test images are training images too \(image 0, 1, 2, \.\.\.\)"
    ):
        code, output, _ = call(
            model,
            data,
            *("--test_split", "train", "--tasks", "knn", "--knn.k", "[1]", "--report", "out"),
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
        (
            ("--tasks", "knn", "--knn.k", "[10,200]"),
            "k is 200, the training set has 40 rows: choose k from 1 to 40",
        ),
        (
            ("--tasks", "few_shot", "--few_shot.shots", "[50]"),
            "class 'light' has 13 training images, and 50 shots.*lower shots",
        ),
        (("--tasks", "knn", "--knn.k", "[1,0]"), r"--knn.k is \[1, 0\]: give one value above 0"),
        (("--tasks", "knn", "--knn.k", "three"), "knn.k.*three"),
        (("--tasks", "knn", "--knn.neighbors", "[3]"), "--knn.neighbors"),
        (("--tasks", "few_shot", "--few_shot.shots", "[]"), r"shots is \[\]: give one value"),
        (
            ("--tasks", "knn", "--few_shot.draws", "2"),
            "options of few_shot are given, but --tasks is 'knn': add few_shot",
        ),
        (("--tasks", "knn", "--knn.k", "[1]", "--test_split", "dev"), "dev"),
        (("--tasks", "knn", "--knn.k", "[1]", "--image_column", "picture"), "'picture'.*label"),
        (("--tasks", "knn", "--knn.k", "[1]", "--processor", "{data}"), "--processor"),
        (("--tasks", "linear", "--linear.epochs", "0"), "--linear.epochs"),
        (("--tasks", "linear", "--linear.validation_fraction", "1"), "between 0 and 1"),
        (
            ("--tasks", "linear", "--linear.blocks", "[7]"),
            "7 blocks asked for, EsvitSwinModel reports 2: lower the number",
        ),
        (
            (
                *("--tasks", "knn", "--knn.k", "[1]"),
                *("--report", "{data}/train-00000-of-00001.parquet"),
            ),
            "name another folder",
        ),
        (
            (
                *("--tasks", "knn", "--knn.k", "[1]"),
                *("--features_folder", "{data}/train-00000-of-00001.parquet"),
            ),
            "another folder",
        ),
        # Folders that are there and take no file, whoever asks.
        (("--tasks", "knn", "--knn.k", "[1]", "--report", "/proc"), "name another folder"),
        (("--tasks", "knn", "--knn.k", "[1]", "--features_folder", "/proc"), "another folder"),
        (
            (
                *("--tasks", "linear", "--linear.blocks", "[1]"),
                *("--linear.output_dir", "/proc/x"),
            ),
            "/proc/x' cannot be written",
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


@pytest.mark.parametrize(("images", "numbers"), [(40, [10, 20]), (6, [6])])
def test_more_neighbors_than_images_are_left_out_of_the_default(
    images: int, numbers: list[int], model: Path, data: Path
) -> None:
    found = evaluate(model, data, tasks="knn", train_split=f"train[:{images}]", num_workers=0)
    assert found is not None
    assert [row["k"] for row in found["tasks"]["knn"]["accuracies"]] == numbers


def test_what_is_not_there_is_named(model: Path, data: Path, call: Call) -> None:
    for words in (("/no/such/model", data), (model, "/no/such/data")):
        code, output, errors = call(*words, "--tasks", "knn", "--knn.k", "[1]")
        assert (code, output) == (2, "")
        assert "/no/such" in errors.strip().splitlines()[-1]


def test_bad_data_is_refused_before_a_network_is_loaded(
    model: Path, call: Call, tmp_path: Path
) -> None:
    for split, classes in (("train", 1), ("test", 1)):
        write_shades(tmp_path / "one", split, 4, classes=classes)
    for split, classes in (("train", 2), ("test", 3)):
        write_shades(tmp_path / "absent", split, 6, classes=classes)
    (tmp_path / "no_network").mkdir()
    (tmp_path / "no_network" / "config.json").write_text("{}")
    messages = {
        "one": "all training images have class 'dark'",
        "absent": "for example class 'light'",
    }
    for folder, message in messages.items():
        code, _, errors = call(tmp_path / "no_network", folder, "--report", "out")
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
    small_resnet().save_pretrained(tmp_path / "resnet")
    save_processor(tmp_path / "resnet")
    code, _, errors = call(
        "resnet", data, "--tasks", f"knn,{tasks}", "--knn.k", "[1]", "--report", "out"
    )
    assert code == 2
    assert re.search(message, errors)
    assert not (tmp_path / "cache" / "esvit_hf" / "features").exists() or not list(
        (tmp_path / "cache" / "esvit_hf" / "features").iterdir()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"knn": {"k": 3}}, "knn.k is 3: give a list of integers"),
        ({"knn": {"neighbors": [3]}}, "neighbors"),
        ({"knn": [3]}, "knn is .3.: give a dictionary of its options, or a KnnTask"),
        ({"epochs": 3}, "evaluate has no argument 'epochs'"),
        ({"tasks": ["few_shot"], "knn": {"k": [3]}}, "options of knn are given"),
        ({"tasks": []}, "choose from knn"),
        ({"dataset": [1, 2]}, "dataset is of type list: give a name"),
        ({"dataset": shades(6), "test_split": "test"}, "no split 'test'.*train"),
        ({"model": torch.nn.Linear(2, 2)}, "model is of type Linear: give a name"),
        ({"model": small_resnet()}, "a loaded network .* give processor"),
    ],
)
def test_bad_arguments_from_python(
    arguments: dict[str, Any], message: str, model: Path, data: Path
) -> None:
    usual: dict[str, Any] = {"model": model, "dataset": data, "tasks": ["knn"], "num_workers": 0}
    with pytest.raises(ValueError, match=message):
        evaluate(**{**usual, **arguments})
