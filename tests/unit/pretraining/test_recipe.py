"""Recipes in Python: built, changed, and written so that they read back equal."""

from dataclasses import replace
from pathlib import Path

import pytest

from esvit_hf.common.settings import SettingsError, list_settings
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings, RegionSettings
from esvit_hf.pretraining.recipe import DataSettings, HubSettings, Recipe, RunSettings, recipe_yaml
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.shipped_recipes import AUTO, list_recipes

ODD = {
    "data.dataset": "1e3",
    "data.config_name": "no",
    "data.label_column": "ü: [",
    "data.views": [
        {"count": 3, "size": 7, "scale": [0.1, 1], "teacher": True, "jitter": [0, 0, 0, 0.5]}
    ],
    "model.config": {"depths": [1, 2], "deep": {"ratio": 1e-7, "names": ["a", "null"]}},
    "objectives.region": None,
    "optimizer.learning_rate": 1e-5,
    "run.output_dir": Path("out") / "2012-01-01",
    "run.trackers": [],
    "run.mixed_precision": "no",
}


def test_sections_and_names_say_where_a_field_is() -> None:
    recipe = Recipe(data=DataSettings("photos"), run=RunSettings(seed=3))
    assert recipe == load_recipe({}, {"data.dataset": "photos", "run.seed": 3})
    assert recipe == load_recipe({"data": {"dataset": "photos"}, "run": {"seed": 3}})
    assert recipe.objectives == {"view": ObjectiveSettings(), "region": RegionSettings()}


def test_what_is_built_in_python_is_checked() -> None:
    data = DataSettings("photos", views=[ViewSpec(1, 8, (0.1, 1.0))], num_workers=-1)
    with pytest.raises(SettingsError) as caught:
        Recipe(data=data, run=RunSettings(batch_size=0))
    assert caught.value.problems == [
        "data.num_workers must be 0 or more; it is -1",
        "run.batch_size must be above 0; it is 0",
    ]
    with pytest.raises(SettingsError) as caught:
        Recipe(data=replace(data, num_workers=1), hub=HubSettings(push=True))
    assert caught.value.problems == [
        "data.views need at least one with teacher: true",
        "data.views need at least two crops of an image to compare",
        "hub.model_id must name the model to publish",
    ]


def test_a_recipe_in_python_takes_plain_values() -> None:
    run = RunSettings(output_dir="out")  # type: ignore[arg-type]
    assert Recipe(data=DataSettings("photos"), run=run).run.output_dir == Path("out")


@pytest.mark.parametrize("name", sorted({*list_recipes()} - {AUTO}))
def test_what_is_printed_reads_back_equal(name: str) -> None:
    for recipe in (load_recipe(name), load_recipe(name, ODD)):
        assert load_recipe(read_yaml(recipe_yaml(recipe))) == recipe


def test_every_field_is_printed() -> None:
    printed = read_yaml(recipe_yaml(load_recipe("demo")))
    for each in list_settings(Recipe):
        value = printed
        for part in each.name.split("."):
            assert part in value, each.name
            value = value[part]
