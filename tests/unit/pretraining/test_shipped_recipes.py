"""Recipes that come with the package: by name, from any folder, in the wheel."""

from pathlib import Path

import pytest
from setuptools.config.setupcfg import read_configuration
from tests.support.paths import ROOT

from esvit_hf.commands.main import main
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.data.sources import load_image_source
from esvit_hf.pretraining.recipe_reading import load_recipe
from esvit_hf.pretraining.shipped_recipes import RECIPES, find_recipe, list_recipes


def test_a_recipe_is_found_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    Path("demo").touch()
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    assert find_recipe("demo") == RECIPES / "demo.yaml"
    # A file of the same name is reached by its path.
    assert find_recipe("./demo") == Path("demo")


def test_a_file_that_is_being_written_has_no_purpose_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.yaml").touch()
    monkeypatch.setattr("esvit_hf.pretraining.shipped_recipes.RECIPES", tmp_path)
    assert list_recipes() == {"new": ""}


def test_the_demo_has_its_images_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "demo", "--print_recipe", "--run.seed", "5"]) == 0
    printed = read_yaml(capsys.readouterr().out)
    assert load_recipe(printed) == load_recipe("demo", {"run.seed": 5})
    assert len(load_image_source(printed["data"]["dataset"], split="test")) == 2000


def test_every_file_goes_into_the_wheel() -> None:
    package = ROOT / "src" / "esvit_hf"
    patterns = read_configuration(str(ROOT / "setup.cfg"))["options"]["package_data"]["esvit_hf"]
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in RECIPES.rglob("*") if path.is_file()}
    assert len(files) > 5 and files <= shipped


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for (name, purpose), line in zip(list_recipes().items(), lines, strict=False):
        assert line.split(maxsplit=1) == [name, purpose]
        assert purpose.endswith(".") and len(line) <= 120
    assert lines[-1] == f"Their files are in {RECIPES}."
    assert "demo" in list_recipes()
