"""Transfer from local copies to the table, on real networks, against scikit-learn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Value
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from tests.support.transfer_copies import (
    CLASSES,
    save_copies,
    save_model,
    save_parquet,
    single_label,
)

from esvit_hf.backbones.loading import load_backbone
from esvit_hf.commands.main import main
from esvit_hf.data.loading import load_dataset_split
from esvit_hf.evaluation import transfer_running
from esvit_hf.evaluation.classifiers.logistic_regression import logistic_probe
from esvit_hf.evaluation.transfer import transfer
from esvit_hf.evaluation.transfer_data import load_transfer_data
from esvit_hf.evaluation.transfer_datasets import TRANSFER_DATASETS
from esvit_hf.features.extraction import compute_features, load_image_processor
from esvit_hf.hub.measurements import read_measurements

pytestmark = pytest.mark.filterwarnings("ignore:the best L2 strength", "ignore:the last fit")
BY_NAME = {dataset.name: dataset for dataset in TRANSFER_DATASETS}


@pytest.fixture(scope="module", autouse=True)
def short_search() -> Iterator[None]:
    """Fewer fits than the protocol has; the search itself is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_running, "STRENGTHS", (0.01, 1.0, 100.0))
        patch.setattr(transfer_running, "HALVINGS", 1)
        yield


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_copies(tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [save_model(folder / "wide"), save_model(folder / "narrow", seed=1, width=4)]


@pytest.fixture(scope="module")
def measured(
    copies: dict[str, str], models: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """All copies and one set without any, both models, through the command line."""
    folder = tmp_path_factory.mktemp("measured")
    names = json.dumps([*copies, "UCF101 frames"])
    arguments = [
        "--datasets",
        names,
        "--local_copies",
        json.dumps(copies),
        "--report",
        str(folder / "report"),
    ]
    kept = ["--features_folder", str(folder / "features"), "--num_workers", "0"]
    assert main(["transfer", *models, *arguments, *kept]) == 0
    return folder, json.loads((folder / "report" / "transfer.json").read_text())


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in report["table"] if row["dataset"] == name)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("CIFAR-10", "accuracy"),
        ("DTD", "accuracy"),
        ("FER 2013", "accuracy"),
        ("Oxford-IIIT Pets", "mean per class"),
        ("Hateful Memes", "ROC AUC"),
    ],
)
def test_numbers_are_those_of_scikit_learn(
    measured: tuple[Path, dict[str, Any]],
    copies: dict[str, str],
    models: list[str],
    name: str,
    metric: str,
) -> None:
    found = row(measured[1], name)
    assert (found["status"], found["metric"]) == ("measured", metric)
    result = found["results"][0]
    data = load_transfer_data(BY_NAME[name], copies[name])
    backbone, processor = load_backbone(models[0]), load_image_processor(models[0])
    features = {
        split: compute_features(backbone, source, processor).values.double().numpy()
        for split, source in data.sources.items()
    }
    fitted_on = [split for split in ("train", "validation") if split in features]
    train = np.concatenate([features[split] for split in fitted_on])
    labels = np.concatenate([data.labels[split].numpy() for split in fitted_on])
    oracle = LogisticRegression(
        C=1 / result["strength"], solver="newton-cg", tol=1e-8, max_iter=1000
    )
    oracle.fit(train - train.mean(axis=0), labels)
    test, expected = features["test"] - train.mean(axis=0), data.labels["test"].numpy()
    value = {
        "accuracy": lambda: accuracy_score(expected, oracle.predict(test)),
        "mean per class": lambda: balanced_accuracy_score(expected, oracle.predict(test)),
        "ROC AUC": lambda: roc_auc_score(expected, oracle.decision_function(test)),
    }[metric]()
    assert result["value"] == pytest.approx(100 * value, abs=1e-9)
    assert result["test_images"] == len(expected)
    assert result["train_images"] + (result["validation_images"] or 0) == len(labels)
    # The search is by the data set's own metric, on images that are not tested.
    validation = None
    if result["validation_images"]:
        validation = torch.from_numpy(features["validation"]), data.labels["validation"]
    again = logistic_probe(
        torch.from_numpy(features["train"]),
        data.labels["train"],
        torch.from_numpy(features["test"]),
        strengths=transfer_running.STRENGTHS,
        halvings=transfer_running.HALVINGS,
        metric=BY_NAME[name].metric,
        validation=validation,
    )
    assert result["strength"] == again.strength
    assert result["validation_value"] == 100 * again.validation[again.strength]
    assert (result["validation_images"] is not None) == (name in ("DTD", "FER 2013"))


def test_multi_label(measured: tuple[Path, dict[str, Any]]) -> None:
    found = row(measured[1], "VOC 2007")
    assert (found["status"], found["metric"]) == ("measured", "11-point mAP")
    # Better than the share of positives, which is what chance reaches.
    assert found["results"][0]["value"] > 55


def test_the_table(measured: tuple[Path, dict[str, Any]]) -> None:
    folder, report = measured
    page = (folder / "report" / "transfer.md").read_text()
    assert "| data set | metric | wide | narrow |" in page
    line = next(line for line in page.splitlines() if line.startswith("| CIFAR-10 "))
    assert "90, 20 % held out | 45 |" in line
    assert (
        "90 images to train and validate on, 50000 published; 45 test images, 10000 published"
        in line
    )
    line = next(line for line in page.splitlines() if line.startswith("| DTD "))
    assert "60 + 30 | 30 |" in line
    assert "| UCF101 frames | accuracy | not available | not available |" in page
    assert report["not_available"].keys() == {"UCF101 frames"}
    pairs = [
        [result["value"] for result in each["results"]]
        for each in report["table"]
        if each["results"]
    ]
    assert report["mean"] == pytest.approx(np.mean(pairs, axis=0))
    assert report["wins"] == [sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)]
    assert sum(report["wins"]) + report["ties"] == len(pairs) == 6
    for first, second in pairs:
        assert first == second or f"**{max(first, second):.2f}**" in page
    assert f"| mean of 6 | | {report['mean'][0]:.2f} | {report['mean'][1]:.2f} |" in page
    assert str(folder) not in page


def test_measurements(measured: tuple[Path, dict[str, Any]], copies: dict[str, str]) -> None:
    folder, report = measured
    for index, file in enumerate(("measurements.json", "measurements-2.json")):
        records = read_measurements(folder / "report" / file)
        assert [record.dataset for record in records] == list(copies)
        assert [record.value for record in records] == [
            row(report, name)["results"][index]["value"] for name in copies
        ]
        assert all(str(folder) not in record.command for record in records)
    command = report["command"]
    assert command.startswith(
        'esvit transfer wide narrow --report transfer --datasets \'["CIFAR-10", "DTD", '
    )
    assert command in (folder / "report" / "transfer.md").read_text()
    assert [revision.split(":")[0] for revision in report["revisions"]] == ["sha256", "sha256"]
    assert (
        "esvit transfer narrow --report transfer --datasets CIFAR-10 --local_copies"
        in records[0].command
    )


def again(
    measured: tuple[Path, dict[str, Any]], models: list[str], copies: dict[str, str], **changes: Any
) -> Any:
    folder, _ = measured
    settings: dict[str, Any] = {
        "datasets": ["CIFAR-10", "DTD"],
        "local_copies": copies,
        "num_workers": 0,
        **changes,
    }
    return transfer(
        models, report=folder / "report", features_folder=folder / "features", **settings
    )


def test_finished_data_sets_are_not_measured_again(
    measured: tuple[Path, dict[str, Any]],
    models: list[str],
    copies: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    calls: list[Any] = []
    probe = transfer_running.logistic_probe
    monkeypatch.setattr(
        transfer_running,
        "logistic_probe",
        lambda *args, **kwargs: calls.append(0) or probe(*args, **kwargs),
    )
    result = again(measured, models, copies)
    assert not calls
    cifar = [each["value"] for each in row(measured[1], "CIFAR-10")["results"]]
    dtd = [each["value"] for each in row(measured[1], "DTD")["results"]]
    assert result["mean"] == pytest.approx(np.mean([cifar, dtd], axis=0))
    # The seed draws the held-out share; DTD has validation images and does not need it, but says so
    # in its key.
    again(measured, models[:1], copies, seed=1)
    assert len(calls) == 2
    again(measured, models[:1], copies, seed=1)
    assert len(calls) == 2
    # Other images, other numbers.
    other = {**copies, "CIFAR-10": copies["DTD"]}
    again(measured, models[:1], other, datasets="CIFAR-10")
    assert len(calls) == 3
    # The same images, other labels.
    again(measured, models[:1], copies, datasets="VOC 2007")
    assert len(calls) == 3
    changed = {
        split: load_dataset_split(copies["VOC 2007"], split=split) for split in ("train", "test")
    }
    for split, rows in changed.items():
        changed[split] = rows.map(lambda row: {"npy": [1 - abs(value) for value in row["npy"]]})
    other = {"VOC 2007": save_parquet(tmp_path / "changed", **changed)}
    again(measured, models[:1], other, datasets="VOC 2007")
    assert len(calls) == 4
    for path in (measured[0] / "report" / "results").glob("cifar-10-*.json"):
        path.write_text("{")
    with pytest.warns(UserWarning, match="is damaged.*CIFAR-10 is measured again"):
        assert again(measured, models[:1], copies, datasets="CIFAR-10")["mean"] == [cifar[0]]


def test_an_interrupted_run_goes_on(
    models: list[str], copies: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[Any] = []
    probe = transfer_running.logistic_probe

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return probe(*args, **kwargs)

    monkeypatch.setattr(transfer_running, "logistic_probe", interrupted)
    arguments: dict[str, Any] = {
        "report": tmp_path / "report",
        "datasets": ["DTD", "CIFAR-10"],
        "num_workers": 0,
    }
    arguments.update(local_copies=copies, features_folder=tmp_path / "features")
    with pytest.raises(KeyboardInterrupt):
        transfer(models[:1], **arguments)
    result = transfer(models[:1], **arguments)
    assert len(calls) == 3
    assert result is not None
    assert list(result["measured"]) == ["DTD", "CIFAR-10"]
    (tmp_path / "report" / "measurements-2.json").write_text("of an earlier run with two models")
    transfer(models[:1], **arguments)
    assert not (tmp_path / "report" / "measurements-2.json").exists()


def test_what_cannot_be_measured_is_named(
    models: list[str], copies: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    broken = tmp_path / "broken"
    broken.mkdir()
    split = single_label(30, 0)
    split.to_parquet(broken / "train-0.parquet")
    split.filter(lambda each: each["label"] == 0).to_parquet(broken / "test-0.parquet")
    three = {
        "Hateful Memes": copies["DTD"],
        "STL-10": str(tmp_path / "only_train"),
        "Food-101": str(broken),
    }
    (tmp_path / "only_train").mkdir()
    split.to_parquet(tmp_path / "only_train" / "train-0.parquet")
    result = transfer(
        models[:1],
        report=tmp_path / "report",
        datasets=["Hateful Memes", "MNIST", "STL-10", "Food-101"],
        local_copies=three,
        features_folder=tmp_path / "features",
        num_workers=0,
    )
    assert result is not None
    assert result["failed"] == {
        "Hateful Memes": f"roc_auc got scores of {CLASSES} classes: it is for two classes"
    }
    assert "ylecun/mnist cannot be loaded from the Hub" in result["not_available"]["MNIST"]
    assert "only_train has no split 'test'" in result["not_available"]["STL-10"]
    assert list(result["measured"]) == ["Food-101"]
    page = (tmp_path / "report" / "transfer.md").read_text()
    assert "| Hateful Memes | ROC AUC | failed |" in page
    assert "test images are train images too" in page
    assert str(tmp_path) not in page
    with pytest.raises(ValueError, match=r"no data set could be measured \(MNIST: ylecun/mnist"):
        transfer(models[:1], report=tmp_path / "none", datasets=["MNIST"], num_workers=0)
    assert "| MNIST |" in (tmp_path / "none" / "transfer.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"datasets": ["CIFAR10"]},
            "--datasets names 'CIFAR10': choose all, or from Food-101, CIFAR-10",
        ),
        ({"datasets": []}, "name at least one"),
        ({"datasets": ["DTD", "DTD"]}, "none twice"),
        ({"local_copies": {"cifar": "."}}, "--local_copies names 'cifar': choose from Food-101"),
        ({"local_copies": {"DTD": "/no/such"}}, "/no/such for DTD, which does not exist"),
        ({"validation_fraction": 0.0}, "between 0 and 1"),
        ({"models": []}, "0 models are given"),
        ({"models": ["a", "b", "c"]}, "3 models are given"),
        ({"models": ["/no/such/model"]}, "/no/such/model"),
    ],
)
def test_bad_input(
    arguments: dict[str, Any], message: str, tmp_path: Path, models: list[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        transfer(
            **{"models": models[:1], "report": tmp_path, "features_folder": tmp_path, **arguments}
        )
    assert not any(tmp_path.glob("*.md"))


def test_report_must_be_a_folder(tmp_path: Path, models: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is no folder to write to"):
        transfer(models[:1], report=tmp_path / "file")


def test_images_of_one_class_are_refused_before_any_work(tmp_path: Path, models: list[str]) -> None:
    split = single_label(20, 0).filter(lambda each: each["label"] == 0)
    for name in ("train", "test"):
        split.to_parquet(tmp_path / f"{name}-0.parquet")
    with pytest.raises(ValueError, match="all training images have class 'class 0'"):
        load_transfer_data(BY_NAME["DTD"], str(tmp_path))


def test_copies_without_test_images_are_refused(tmp_path: Path) -> None:
    single_label(20, 0).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match="has no split 'test' but train: give one with training"):
        load_transfer_data(BY_NAME["DTD"], str(tmp_path))


def test_labels_that_are_not_found(tmp_path: Path) -> None:
    for name in ("train", "test"):
        single_label(20, 0).cast_column("label", Value("int64")).rename_column(
            "label", "kind"
        ).to_parquet(tmp_path / f"{name}-0.parquet")
    with pytest.raises(
        ValueError, match="has the columns image, kind: the one with the classes must be called"
    ):
        load_transfer_data(BY_NAME["DTD"], str(tmp_path))
    with pytest.raises(
        ValueError,
        match="has the columns image, kind: the one with lists of classes must be called",
    ):
        load_transfer_data(BY_NAME["VOC 2007"], str(tmp_path))


def test_image_folders_and_a_class_without_training_images(tmp_path: Path) -> None:
    for split, classes in (("train", (0, 1)), ("val", (0, 1)), ("test", (0, 1, 2))):
        rows = single_label(12, 0)
        for index, (image, label) in enumerate(zip(rows["image"], rows["label"], strict=True)):
            if label in classes:
                folder = tmp_path / split / f"class {label}"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{index}.png")
    with pytest.raises(
        ValueError,
        match="1 test classes have no training image, for example class 'class 2': "
        "use a training split that holds every class, or drop those test images$",
    ):
        load_transfer_data(BY_NAME["Food-101"], str(tmp_path))
    for path in (tmp_path / "test" / "class 2").iterdir():
        path.unlink()
    data = load_transfer_data(BY_NAME["Food-101"], str(tmp_path))
    # The Hub calls the test images of Food-101 'validation'; a copy that has both means what it
    # says.
    assert set(data.sources) == {"train", "validation", "test"}
    assert torch.equal(data.labels["train"], data.labels["validation"])
