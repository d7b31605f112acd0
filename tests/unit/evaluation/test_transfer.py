"""The records of the transfer data sets, labels of several classes, and splits of local copies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image
from tests.support.paths import ROOT

from esvit_hf.data.loading import load_dataset_split, local_split_names
from esvit_hf.evaluation.metrics import METRICS
from esvit_hf.evaluation.multi_label import read_multi_labels
from esvit_hf.evaluation.transfer_datasets import METRIC_LABELS, TRANSFER_DATASETS
from esvit_hf.evaluation.transfer_report import (
    TransferResult,
    TransferRow,
    datasets_table,
    display_names,
    format_transfer,
    summary,
)

DOCUMENTATION = ROOT / "docs" / "transfer.md"


def test_the_records_agree_with_each_other() -> None:
    names = [dataset.name for dataset in TRANSFER_DATASETS]
    assert len(names) == len(set(names)) == 18
    assert set(METRIC_LABELS) == set(METRICS)
    for dataset in TRANSFER_DATASETS:
        assert dataset.metric in METRICS
        assert dataset.verified == (dataset.hub_name is not None)
        assert dataset.hub_name is not None or dataset.note
        assert dataset.validation_split is None or dataset.validation_images
        assert len({dataset.train_split, dataset.validation_split, dataset.test_split}) == 3
    assert [each.name for each in TRANSFER_DATASETS if each.multi_label] == ["VOC 2007"]
    assert [each.name for each in TRANSFER_DATASETS if each.metric == "roc_auc"] == [
        "Hateful Memes"
    ]
    per_class = ["FGVC Aircraft", "Oxford-IIIT Pets", "Caltech-101", "Oxford Flowers 102"]
    assert [
        each.name for each in TRANSFER_DATASETS if each.metric == "mean_per_class_accuracy"
    ] == per_class
    assert [each.name for each in TRANSFER_DATASETS if not each.sizes_verified] == [
        "SUN397",
        "STL-10",
        "UCF101 frames",
    ]


def test_the_documented_table_is_current() -> None:
    page = DOCUMENTATION.read_text()
    command, table = (
        page.split("<!-- datasets: ")[1].split("<!-- end of datasets -->")[0].split(" -->\n", 1)
    )
    assert table.strip() == datasets_table().strip(), (
        f"replace the table by the output of {command}"
    )


def lists(rows: list[Any], feature: Any = None) -> Dataset:
    return Dataset.from_dict(
        {"labels": rows}, features=Features({"labels": feature or List(Value("int64"))})
    )


def test_lists_of_classes() -> None:
    train, test = read_multi_labels([lists([[0, 2], [], [1]]), lists([[3], [0]])], "labels")
    assert train.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert test.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    named = List(ClassLabel(names=["cat", "dog"]))
    assert torch.equal(
        *read_multi_labels([lists([[0], [0, 1]], named), lists([[0], [0, 1]])], "labels")
    )


def test_one_number_a_class() -> None:
    train, test = read_multi_labels([lists([[0, 1, 0], [1, 1, -1]]), lists([[0, 0, 1]])], "labels")
    assert train.tolist() == [[0, 1, 0], [1, 1, -1]]
    assert test.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            lists([1, 2], Value("int64")),
            "column 'labels' holds 1: each image needs a list of integers",
        ),
        (lists([["a"], ["b"]], List(Value("string"))), "each image needs a list of integers"),
        (lists([[0, 1], None]), "holds None"),
        (lists([[], []]), "must list the classes"),
        (lists([[0, -2], [3]]), "numbered from 0 up"),
        (lists([[0, 0, 2], [1, 0, 0]]), "holds one number a class, but also 0 or 2"),
    ],
)
def test_other_labels_are_refused(dataset: Dataset, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_multi_labels([dataset], "labels")


def test_split_names_of_every_layout(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"label": [0, 1]})
    (tmp_path / "parquet").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "parquet" / f"{split}-00000.parquet")
    DatasetDict({"train": rows, "publicTest": rows}).save_to_disk(tmp_path / "saved")
    rows.save_to_disk(tmp_path / "one")
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / split / "0.png")
    expected = {
        "parquet": ["train", "validation"],
        "saved": ["train", "publicTest"],
        "one": ["train"],
        "images": ["train", "validation"],
        "parquet/train-00000.parquet": ["train"],
    }
    for name, splits in expected.items():
        assert local_split_names(tmp_path / name) == splits
        for split in splits:
            assert len(load_dataset_split(str(tmp_path / name), split=split)) in (1, 2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"")
    (tmp_path / "broken" / "README.md").write_text("---\nconfigs: 3\n---\n")
    with pytest.raises(ValueError, match="broken cannot be read as a data set"):
        local_split_names(tmp_path / "broken")


def result(value: float) -> TransferResult:
    return TransferResult(value, 1.0, 50.0, 10, None, 0.2, 5, [])


def test_summary_by_hand() -> None:
    first, second, third, fourth = TRANSFER_DATASETS[:4]
    rows = [
        TransferRow(first, "measured", [], [result(50), result(60)]),
        TransferRow(second, "measured", [], [result(70), result(70)]),
        TransferRow(third, "not available", ["offline"]),
        TransferRow(fourth, "failed", ["broken", "note"]),
    ]
    numbers = summary(rows, ["a", "b"])
    assert (numbers["mean"], numbers["wins"], numbers["ties"]) == ([60, 65], [0, 1], 1)
    assert numbers["not_available"] == {third.name: "offline"}
    assert numbers["failed"] == {fourth.name: "broken"}
    assert format_transfer(numbers).splitlines() == [
        "data set  metric    a      b",
        "Food-101  accuracy  50.00  60.00",
        "CIFAR-10  accuracy  70.00  70.00",
        "mean                60.00  65.00",
    ]
    assert format_transfer(summary(rows[2:], ["a"])) == ""
    assert "mean" not in summary(rows[2:], ["a"])
    assert "wins" not in summary([TransferRow(first, "measured", [], [result(50)])], ["a"])


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [str(tmp_path / run / "teacher") for run in ("a", "b")]
    assert display_names(paths) == ["teacher (1)", "teacher (2)"]
    assert display_names([paths[0], "owner/name"]) == ["teacher", "owner/name"]
