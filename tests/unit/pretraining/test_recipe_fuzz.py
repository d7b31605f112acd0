"""Wrong recipes: every field with every kind of wrong value is refused in one line that names it,
or is sound.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esvit_hf.commands.main import main
from esvit_hf.pretraining import parse_arguments, recipe
from esvit_hf.pretraining.recipe import PretrainingArguments

FIELDS = {entry.name: entry for entry in fields(PretrainingArguments)}
OPTIONAL = {name for name, entry in FIELDS.items() if entry.default is None}
NUMBERS = {
    name: entry.type for name, entry in FIELDS.items() if entry.type in (int, float, int | None)
}
WRONG_TYPES: dict[str, list[Any]] = {
    "int": [1.5, "many", [1], {"a": 1}, float("nan"), float("inf"), "1e3x", True],
    "float": ["many", [1], {"a": 1}, "1e3x", True],
    "bool": ["many", 2, [True], {"a": 1}],
    "str": [[1], {"a": 1}, 3],
    "Path": [[1], {"a": 1}, 3],
    "list": ["many", 3, {"a": 1}, [{"a": 1}]],
    "dict": ["many", 3, [1]],
    "Literal": ["many", 3, [1], {"a": 1}],
}
EVIL = [
    -1,
    -0.5,
    2**31,
    2**70,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "\n",
    "../..",
    "ü",
    "\0",
    [],
    {},
    None,
]


@pytest.fixture(autouse=True, scope="module")
def one_parser() -> Iterator[None]:
    """Build the parser once, which takes longer than to read a recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "argument_parser", functools.cache(recipe.argument_parser))
        yield


def refusal(folder: Path, recipe: dict[str, Any]) -> str | None:
    """Return why a recipe is refused, None if it is not."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"dataset": "data", **recipe}))
    try:
        parsed = parse_arguments([str(path)])
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    for name in FIELDS:
        value = getattr(parsed, name)
        assert value is not None or name in OPTIONAL, name
        assert not isinstance(value, float) or math.isfinite(value), name
    return None


def kind_of(name: str) -> str:
    kind = str(FIELDS[name].type).split(" | ")[0].split("[")[0].split(".")[-1]
    return {
        "<class 'int'>": "int",
        "<class 'float'>": "float",
        "<class 'bool'>": "bool",
        "<class 'str'>": "str",
    }.get(kind, kind.removesuffix("'>"))


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_types_are_named(name: str, tmp_path: Path) -> None:
    for value in WRONG_TYPES[kind_of(name)]:
        reason = refusal(tmp_path, {name: value})
        assert reason is not None and name in reason, value


@pytest.mark.parametrize("name", FIELDS)
def test_odd_values_are_sound_or_named(name: str, tmp_path: Path) -> None:
    for value in EVIL:
        reason = refusal(tmp_path, {name: value})
        assert reason is None or name in reason, value
    if name not in OPTIONAL:
        assert name == "dataset" or "must not be null" in str(refusal(tmp_path, {name: None}))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_bounds(name: str, tmp_path: Path) -> None:
    for value in (-1, 2**70 if NUMBERS[name] is not float else float("inf")):
        reason = refusal(tmp_path, {name: value})
        assert reason is not None and name in reason, value
    reason = refusal(tmp_path, {name: 10**400})
    assert reason is not None and (name in reason or "too large" in reason)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)) | st.text(max_size=8),
        st.sampled_from(EVIL)
        | st.integers()
        | st.floats()
        | st.booleans()
        | st.text(max_size=5)
        | st.just([{"size": 8}]),
        min_size=1,
        max_size=5,
    )
)
def test_combinations_are_sound_or_one_line(tmp_path: Path, recipe: dict[str, Any]) -> None:
    reason = refusal(tmp_path, recipe)
    if unknown := set(recipe) - set(FIELDS):
        assert reason is not None, unknown


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"view_weight": 0, "region_weight": 0},
            "view_weight and region_weight must not both be 0",
        ),
        ({"region_start_epoch": 3, "view_weight": 0}, "region_start_epoch needs a view loss"),
        (
            {"region_start_epoch": 8, "num_epochs": 8},
            r"region_start_epoch must be less than num_epochs \(8\)",
        ),
        ({"warmup_epochs": 9, "num_epochs": 8}, r"warmup_epochs must not exceed num_epochs \(8\)"),
        (
            {"streaming": True, "knn_every_epochs": 1},
            "knn_every_epochs must be 0 with streaming: true",
        ),
        (
            {"views": [{"count": 2, "size": 8, "scale": [0.1, 1.0]}]},
            "views need at least one with teacher: true",
        ),
        ({"views": [{"count": 2, "size": 8, "scale": [1.0]}]}, "views"),
        ({"views": [{"count": 2, "size": 0, "scale": [0.1, 1.0], "teacher": True}]}, "size"),
        ({"trackers": [None]}, "trackers"),
        ({"model_konfig": {}}, "a field 'model_konfig', which does not exist"),
        ({"learning_rate": 10**400}, "too large"),
    ],
)
def test_combinations_that_cannot_work_are_named(
    recipe: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=message):
        assert refusal(tmp_path, recipe) is None


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "3", "a: [", "dataset: !!python/object/apply:os.system ['exit 3']", "\0", "&a *a"],
)
def test_files_that_are_no_recipe(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main(["pretrain", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_recipe_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(bytes(range(128, 256)))
    assert main(["pretrain", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_the_fuzzing_knows_all_fields() -> None:
    assert {kind_of(name) for name in FIELDS} <= set(WRONG_TYPES)
    required = [
        entry.name for entry in FIELDS.values() if entry.default is entry.default_factory is MISSING
    ]
    assert required == ["dataset"]
