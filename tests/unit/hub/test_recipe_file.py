"""Recipes that may be published: they start the run anew and name no folder of a machine."""

from pathlib import Path

import pytest

from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.hub.recipe_file import public_recipe
from esvit_hf.pretraining.recipe import recipe_yaml
from esvit_hf.pretraining.recipe_reading import load_recipe


@pytest.mark.parametrize(
    ("dataset", "public"),
    [
        ("~/photos", "photos"),
        ("/scratch/me/shards/*.tar", "shards/*.tar"),
        ("https://me:secret@host/shards/*.tar?signature=abc", "https://host/shards/*.tar"),
        ("me/photos", "me/photos"),
    ],
)
def test_a_recipe_without_folders_starts_the_run_anew(dataset: str, public: str) -> None:
    fields = {"data.dataset": dataset, "run.output_dir": "/scratch/me/run", "run.resume": True}
    fields["run.knn_dataset"] = "/scratch/me/labeled"
    recipe = load_recipe("demo", fields | {"model.name": "~/start", "model.config": {}})
    made = read_yaml(public_recipe(recipe_yaml(recipe)))
    assert made["data"].pop("dataset") == public
    assert made["model"].pop("name") == "start"
    assert made["run"].pop("output_dir") == "run"
    assert made["run"].pop("resume") is False
    assert made["run"].pop("knn_dataset") == "labeled"
    before = read_yaml(recipe_yaml(recipe))
    del before["data"]["dataset"], before["model"]["name"]
    del before["run"]["output_dir"], before["run"]["resume"], before["run"]["knn_dataset"]
    assert made == before


def test_data_of_the_package_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the output folder of an earlier demo.
    monkeypatch.chdir(tmp_path)
    demo = load_recipe("demo")
    (tmp_path / "recipe.yaml").write_text(public_recipe(recipe_yaml(demo)))
    assert load_recipe(tmp_path / "recipe.yaml") == demo
    (tmp_path / "fashion_mnist").mkdir()
    found = load_recipe(tmp_path / "recipe.yaml").data.dataset
    assert found == str(tmp_path / "fashion_mnist")


@pytest.mark.parametrize("text", ["[]", "run: 3", "data: [1]", "{"])
def test_what_is_no_recipe_is_not_published(text: str) -> None:
    with pytest.raises(ValueError):
        public_recipe(text)
