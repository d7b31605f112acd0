"""Wrong recipes: every field with every kind of wrong value is refused in one line that names it,
or is sound.
"""

import math
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esvit_hf.commands.main import main
from esvit_hf.common.settings import list_settings, optional_kind
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import read_recipe

FIELDS = {each.name: each for each in list_settings(Recipe)}
KINDS = {name: optional_kind(each.kind)[0] for name, each in FIELDS.items()}
OPTIONAL = {name for name, each in FIELDS.items() if optional_kind(each.kind)[1]}
NUMBERS = {name: kind for name, kind in KINDS.items() if kind in (int, float)}
WRONG_TYPES: dict[str, list[Any]] = {
    "int": [1.5, "many", [1], {"a": 1}, float("nan"), float("inf"), "1e3x", True],
    "float": ["many", [1], {"a": 1}, "1e3x", True],
    "bool": ["many", 2, [True], {"a": 1}],
    "str": [[1], {"a": 1}, 3],
    "Path": [[1], {"a": 1}, 3],
    "list": ["many", 3, {"a": 1}, [{"a": 1}]],
    "dict": ["many", 3, [1]],
    "Literal": ["many", 3, [1], {"a": 1}],
    "tuple": ["many", 3, [1], {"a": 1}, ["a", "b"]],
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


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """Sections of fields by their names with dots; a name that is no field stays as it is."""
    sections: dict[str, Any] = {"data": {"dataset": "data"}}
    for name, value in fields.items():
        *places, leaf = name.split(".") if name in FIELDS else (name,)
        section = sections
        for place in places:
            section = section.setdefault(place, {})
        section[leaf] = value
    return sections


def refusal(folder: Path, sections: dict[str, Any]) -> str | None:
    """Return why a recipe is refused, None if it is not."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    try:
        parsed = read_recipe([str(path)])
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    for name in FIELDS:
        value: Any = parsed
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else getattr(value, part)
            if value is None:
                break
        assert value is not None or name in OPTIONAL or name.startswith("objectives."), name
        assert not isinstance(value, float) or math.isfinite(value), name
    return None


def kind_of(name: str) -> str:
    kind = str(KINDS[name]).split("[")[0].split(".")[-1]
    return kind.removeprefix("<class '").removesuffix("'>")


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_types_are_named(name: str, tmp_path: Path) -> None:
    for value in WRONG_TYPES[kind_of(name)]:
        reason = refusal(tmp_path, nested({name: value}))
        assert reason is not None and name in reason, value


@pytest.mark.parametrize("name", FIELDS)
def test_odd_values_are_sound_or_named(name: str, tmp_path: Path) -> None:
    for value in EVIL:
        reason = refusal(tmp_path, nested({name: value}))
        assert reason is None or name in reason, value
    if name not in OPTIONAL:
        assert f"{name} must not be null" in str(refusal(tmp_path, nested({name: None})))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_bounds(name: str, tmp_path: Path) -> None:
    for value in (-1, 2**70 if NUMBERS[name] is int else float("inf"), 10**400):
        reason = refusal(tmp_path, nested({name: value}))
        assert reason is not None and name in reason, value


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
    reason = refusal(tmp_path, nested(recipe))
    if unknown := set(recipe) - set(FIELDS):
        assert reason is not None, unknown


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"objectives": {}}, "objectives must name at least one of view, region"),
        (
            {"objectives": {"region": {"start_epoch": 3}}},
            "objectives need one that takes part in every epoch, but none does in epoch 0",
        ),
        (
            {
                "objectives": {
                    "view": {"start_epoch": 4},
                    "region": {"weight_end": 0, "weight_shape": "switch", "weight_hold_epochs": 2},
                }
            },
            "in every epoch, but none does in epoch 2",
        ),
        ({"objectives.region.weight": 0}, "objectives.region.weight is 0 and stays so: give it"),
        (
            {"objectives.region.weight_hold_epochs": 8, "schedule.num_epochs": 8},
            r"weight_hold_epochs must be less than schedule.num_epochs \(8\)",
        ),
        (
            {"objectives.region.start_epoch": 8, "schedule.num_epochs": 8},
            r"start_epoch must be less than schedule.num_epochs \(8\)",
        ),
        (
            {"optimizer.warmup_epochs": 9, "schedule.num_epochs": 8},
            r"optimizer.warmup_epochs must not exceed schedule.num_epochs \(8\)",
        ),
        (
            {"data.streaming": True, "run.knn_every_epochs": 1},
            "run.knn_every_epochs must be 0 with data.streaming: true",
        ),
        (
            {"data.views": [{"count": 2, "size": 8, "scale": [0.1, 1.0]}]},
            "data.views need at least one with teacher: true",
        ),
        ({"data.views": [{"count": 2, "size": 8, "scale": [1.0]}]}, r"data.views\[0\].scale"),
        (
            {"data.views": [{"count": 2, "size": 0, "scale": [0.1, 1.0], "teacher": True}]},
            r"data.views\[0\].size must be above 0",
        ),
        ({"run.trackers": [None]}, r"run.trackers\[0\]"),
        ({"optimizer.learning_rate": 10**400}, "must lie within"),
    ],
)
def test_combinations_that_cannot_work_are_named(
    recipe: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=message):
        assert refusal(tmp_path, nested(recipe)) is None


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
        name
        for name, each in FIELDS.items()
        if each.entry.default is each.entry.default_factory is MISSING
    ]
    assert required == ["data.dataset"]
