"""Labels of every kind: the same classes for the same values, and a word for what is no label."""

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from esvit_hf.data.labels import Labels, names_in_common, read_labels


def read(values: list[Any], kind: Any) -> Labels | None:
    rows = Dataset.from_dict({"label": values}, features=Features({"label": kind}))
    return read_labels(rows, "label", "data")


@pytest.mark.parametrize(
    ("values", "kind", "numbers", "names"),
    [
        ([2480498, 9510564, 2480498], Value("int64"), [0, 1, 0], ["2480498", "9510564"]),
        ([2024, 1999, 2024, 9], Value("int32"), [2, 1, 2, 0], ["9", "1999", "2024"]),
        ([2**40, 5], Value("int64"), [1, 0], ["5", str(2**40)]),
        ([2**63 - 1, 5], Value("uint64"), [1, 0], ["5", str(2**63 - 1)]),
        ([-1, 1, -1], Value("int8"), [0, 1, 0], ["-1", "1"]),
        ([True, False, True], Value("bool"), [1, 0, 1], ["False", "True"]),
        (["owl", "bee", "owl"], Value("string"), [1, 0, 1], ["bee", "owl"]),
        (["owl", "", "é"], Value("large_string"), [1, 0, 2], ["", "owl", "é"]),
        ([2, 0, 2], ClassLabel(names=["owl", "bee", "ant"]), [2, 0, 2], ["owl", "bee", "ant"]),
    ],
)
def test_values_become_classes(
    values: list[Any], kind: Any, numbers: list[int], names: list[str]
) -> None:
    found = read(values, kind)
    assert found is not None
    assert found.numbers.dtype == np.int64
    assert (found.numbers.tolist(), found.names) == (numbers, names)
    assert found.are_named == isinstance(kind, ClassLabel)


def test_labels_in_several_pieces_and_another_order() -> None:
    rows = Dataset.from_dict({"label": ["owl", "bee", "cat", "owl", "ant"]}).select([4, 3, 0, 1])
    found = read_labels(rows, "label", "data")
    assert found is not None
    assert (found.numbers.tolist(), found.names) == ([0, 2, 2, 1], ["ant", "bee", "owl"])


@pytest.mark.parametrize("kind", [Value("int64"), ClassLabel(num_classes=3)])
def test_secret_labels_are_none(kind: Any) -> None:
    assert read([-1, -1], kind) is None


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["a", None, None], Value("string"), "2 of the 3 labels in column 'label' of data are mis"),
        ([1, -1], ClassLabel(num_classes=2), "1 of the 2 labels in column 'label' of data are mis"),
        ([0.0, 1.0], Value("float64"), "holds float64, no class labels"),
        ([[1]], [Value("int64")], "several labels an image"),
    ],
)
def test_what_is_no_label(values: list[Any], kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(values, kind)


def labels(names: list[str], are_named: bool) -> Labels:
    return Labels(np.zeros(1, np.int64), names, are_named)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (labels(["1999", "2024"], False), labels(["2024", "2030"], False), ["2024", "2030"]),
        (labels(["cat", "dog"], True), labels(["dog", "owl"], True), ["dog", "owl"]),
        (labels(["cat", "dog"], True), labels(["dog"], False), ["dog"]),
        (labels(["cat", "dog"], True), labels(["0", "1"], False), ["cat", "dog"]),
        (labels(["cat", "dog"], True), labels(["1"], False), ["dog"]),
        (labels(["cat", "dog"], True), labels(["1", "7"], False), ["1", "7"]),
        (labels(["0", "1"], False), labels(["cat", "dog", "owl"], True), ["0", "1", "2"]),
        (labels(["0", "1"], True), labels(["1"], False), ["1"]),
        (labels(["False", "True"], False), labels(["0", "1"], False), ["False", "True"]),
        (labels(["0", "1", "2"], False), labels(["False", "True"], False), ["0", "1"]),
        (labels(["False", "True"], False), labels(["no", "yes"], True), ["False", "True"]),
        (labels(["no", "yes"], True), labels(["True"], False), ["yes"]),
        (labels(["True", "False"], True), labels(["False", "True"], False), ["False", "True"]),
        (labels(["False", "True"], False), labels(["True", "False"], True), ["True", "False"]),
        (labels(["False", "True"], False), labels(["True"], False), ["True"]),
    ],
)
def test_splits_are_matched_by_value(train: Labels, test: Labels, expected: list[str]) -> None:
    assert names_in_common(train, test) == expected
