"""Command lines of `esvit pretrain`: recipes by name and by path, flags, and what is wrong with
them.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from esvit_hf.pretraining.automatic import draft_recipe
from esvit_hf.pretraining.objectives.settings import ObjectiveSettings, RegionSettings
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import load_recipe, read_recipe, read_words

DATA = ("--data.dataset", "photos")


def value_of(recipe: Recipe, name: str) -> Any:
    section, field = name.split(".")
    return getattr(getattr(recipe, section), field)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--optimizer.learning_rate", "1e-3"], "optimizer.learning_rate", 1e-3),
        (["--optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--run.seed", "1", "--run.seed", "2"], "run.seed", 2),
        (["--run.resume"], "run.resume", True),
        (["--run.resume", "true"], "run.resume", True),
        (["--run.resume", "--run.seed", "2"], "run.resume", True),
        (["--no_heads.train_prototype_gain"], "heads.train_prototype_gain", False),
        (["--heads.train_prototype_gain", "false"], "heads.train_prototype_gain", False),
        (["--run.output_dir", "2012"], "run.output_dir", Path("2012")),
        (["--data.train_split", "train[:10%]"], "data.train_split", "train[:10%]"),
        (["--data.label_column", "null"], "data.label_column", None),
        (["--run.mixed_precision", "no"], "run.mixed_precision", "no"),
        (["--run.trackers", "[auto, wandb]"], "run.trackers", ["auto", "wandb"]),
        (["--model.config.depths", "[1, 2]"], "model.config", {"depths": [1, 2]}),
        (
            ["--model.config", "{a: 1, b: 2}", "--model.config.b", "3"],
            "model.config",
            {"a": 1, "b": 3},
        ),
    ],
)
def test_flags_change_fields(words: list[str], name: str, value: Any) -> None:
    assert value_of(draft_recipe(read_words([*DATA, *words])), name) == value


def test_a_flag_replaces_what_the_recipe_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {dataset: photos}\nmodel: {config: {a: 1}}\nheads: {num_layers: 2, hidden_dim: 8}\n"
    )
    recipe = read_recipe([str(path), "--model.config", "{b: 2}", "--heads.num_layers", "4"])
    assert recipe.model.config == {"b": 2}
    assert (recipe.heads.num_layers, recipe.heads.hidden_dim) == (4, 8)


@pytest.mark.parametrize(
    ("words", "objectives"),
    [
        (["--objectives.region", "null"], {"view": ObjectiveSettings()}),
        (
            ["--objectives.region.start_epoch", "2"],
            {"view": ObjectiveSettings(), "region": RegionSettings(start_epoch=2)},
        ),
        (["--objectives", "{view: {weight: 1}}"], {"view": ObjectiveSettings(weight=1.0)}),
        (["--objectives", "{region: {}, view: null}"], {"region": RegionSettings()}),
    ],
)
def test_objectives_are_those_that_are_named(
    words: list[str], objectives: dict[str, ObjectiveSettings]
) -> None:
    assert draft_recipe(read_words([*DATA, *words])).objectives == objectives


def test_a_dataset_may_lie_beside_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("data: {dataset: ./photos}")
    monkeypatch.chdir(tmp_path.parent)
    recipe = read_recipe([f"{tmp_path.name}/mine.yaml"])
    assert Path(recipe.data.dataset) == tmp_path / "photos"
    # On the command line a path is one from here.
    assert draft_recipe(read_words(["--data.dataset", "./photos"])).data.dataset == "./photos"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demoo"], "recipe 'demoo' is neither a file, .*: did you mean demo?"),
        (["here/swin_64.yml"], "recipe 'here/swin_64.yml' .*: did you mean swin_64px?"),
        (["xyz"], "shipped are auto, demo, swin_64px, swin_tiny_w7_in1k"),
        (
            ["--run.seed", "1", "demo"],
            "'demo' is no flag: write [RECIPE or FOLDER] [--section.field",
        ),
        (["--run.seed"], "--run.seed needs a value"),
        (["--data"], "--data needs a value"),
        (["--run.seed", "[1"], "--run.seed '[1' is no YAML"),
        (["--learning_rate", "1"], "--learning_rate does not exist: did you mean optimizer.lear"),
        (["--run.learning_rate", "1"], "did you mean optimizer.learning_rate?"),
        (["--head_hidden_dim", "1"], "--head_hidden_dim does not exist: did you mean heads.hid"),
        (["--view_weight", "1"], "--view_weight does not exist: did you mean objectives.view.weig"),
        (["--objectives.regio.weight", "1"], "did you mean objectives.region.weight?"),
        (["--run.seed.x", "1"], "--run.seed.x does not exist"),
        (["--no_run.seed"], "--no_run.seed does not exist: did you mean run.seed?"),
        (["--run.sed", "1", "--run.resum"], "run.sed .* run.seed?; --run.resum .* run.resume?"),
        (
            ["--run.sed", "1", "--run.batch_size", "0", "--heads", "[1", "--run.compile", "maybe"],
            "--run.sed does not exist.*; --heads '[1' is no YAML.*; run.batch_size must be above 0"
            ".*; run.compile must be true or false",
        ),
        (["--model", "vit"], "model must be a mapping of fields to values; it is 'vit'"),
        (["--run", "{sed: 1}"], "run.sed does not exist: did you mean run.seed?"),
    ],
)
def test_wrong_words_are_named_with_the_nearest(words: list[str], message: str) -> None:
    pattern = ".*".join(map(re.escape, message.split(".*")))
    flags = words if words[0].startswith("-") else [*words[1:]]
    recipe = [] if words[0].startswith("-") else words[:1]
    with pytest.raises(ValueError, match=pattern):
        draft_recipe(read_words([*recipe, *DATA, *flags]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_prototypes: 3", "num_prototypes does not exist: did you mean heads.num_prototypes?"),
        ("head: {num_layers: 3}", "head does not exist: did you mean heads?"),
        ("heads: {}\ndat: {}", "dat does not exist: did you mean data?"),
        ("objectives: {reg: {}}", "objectives.reg does not exist: did you mean objectives.region?"),
        (
            "data: {dataset: d, views: [{count: 2, size: 8, scale: [0.1, 1], teachr: true}]}",
            "data.views[0].teachr does not exist: did you mean data.views[0].teacher?",
        ),
        ("run: {seed: 1}\nrun: {seed: 2}", "run is given twice"),
        ("data: {dataset: d, batch_size: 3}", "data.batch_size .*: did you mean run.batch_size?"),
    ],
)
def test_unknown_names_of_a_file_are_refused_at_any_depth(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(ValueError, match=pattern):
        read_recipe([str(path)])


def test_a_folder_stands_for_the_recipe_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "demo"):
        Path(name).mkdir()
    assert read_words(["photos"]) == read_words(["auto", "--data.dataset", "photos"])
    assert read_words(["--data.dataset", "photos"]) == read_words(["photos"])
    assert read_words(["photos", "--run.seed", "2"])["run"]["seed"] == 2
    # The name of a recipe is no folder.
    assert read_words(["demo"])["data"]["dataset"].endswith("fashion_mnist")


def test_fields_that_are_auto_are_named_where_they_have_no_value() -> None:
    with pytest.raises(ValueError, match="^model.name, run.batch_size: `auto` has no value"):
        load_recipe("demo", {"run.batch_size": "auto", "model.name": "auto"})
    with pytest.raises(ValueError, match="run.seed must be a whole number; it is 'auto'"):
        load_recipe("demo", {"run.seed": "auto"})


def test_beside_a_mistyped_flag_no_field_is_wrong_that_says_auto(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        read_words([str(tmp_path), "--schedule.num_epochs", "2", "--run.batch_siz", "3"])
    assert str(caught.value) == "--run.batch_siz does not exist: did you mean run.batch_size?"


def test_a_mistyped_flag_is_not_missed_as_well() -> None:
    with pytest.raises(ValueError) as error:
        read_recipe(["--data.datset", "photos"])
    assert str(error.value) == "--data.datset does not exist: did you mean data.dataset?"


def test_overrides_leave_their_source_alone() -> None:
    source = {"data": {"dataset": "photos"}, "model": {"config": {"a": 1}}}
    recipe = load_recipe(source, {"model.config.a": 2, "run.seed": 4})
    assert (recipe.model.config, recipe.run.seed) == ({"a": 2}, 4)
    assert source == {"data": {"dataset": "photos"}, "model": {"config": {"a": 1}}}


def test_every_path_may_start_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("data: {dataset: ~/photos}\nrun: {output_dir: ~/run}\n")
    recipe = load_recipe("~/mine.yaml", {"model.name": "~/start"})
    assert recipe.data.dataset == str(tmp_path / "photos")
    assert recipe.run.output_dir == tmp_path / "run"
    assert recipe.model.name == str(tmp_path / "start")
