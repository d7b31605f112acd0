"""Paths as users write them."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from esvit_hf.commands.main import COMMANDS
from esvit_hf.common.arguments import argument_types, flat_arguments
from esvit_hf.common.command_line import parse_function
from esvit_hf.common.files import expand_home
from esvit_hf.common.settings import list_settings
from esvit_hf.evaluation.task import TASKS
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import load_recipe


def test_the_home_folder_is_put_in_for_the_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expand_home("~/run") == "/home/ada/run"
    assert expand_home("~/shards/*.tar") == "/home/ada/shards/*.tar"
    assert expand_home(Path("~/run")) == Path("/home/ada/run")
    assert expand_home("~") == "/home/ada"


@pytest.mark.parametrize("place", ["user/model", "./run", "a~b", "https://host/~ada/x.tar", "/~"])
def test_everything_else_stays_as_it_is(place: str) -> None:
    assert expand_home(place) == place


def test_an_unknown_user_is_one_line() -> None:
    with pytest.raises(ValueError, match="~nobody-here/run names no home folder: give the path"):
        expand_home("~nobody-here/run")


def holds_a_path(hint: object) -> bool:
    return "Path" in str(hint).replace("PythonOnly", "")


def commands_with_paths() -> Iterator[tuple[str, str]]:
    """Each command with each of its arguments that may be a path."""
    for name, command in COMMANDS.items():
        if command.reads_words:
            continue
        hints = argument_types(load(command.function))
        yield from (
            (name, each)
            for each, hint in hints.items()
            # A list of files is written as a list of words.
            if each != "return" and (holds_a_path(hint) or (name, each) == ("features", "dataset"))
        )


def load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def words_with(function: Any, argument: str, value: str) -> list[str]:
    """A command line that gives an argument, and all that have no default."""
    words: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        given = value if name == argument else "x"
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            words.append(given)
        elif name == argument or parameter.default is parameter.empty:
            words += [] if parameter.kind is parameter.VAR_KEYWORD else [f"--{name}", given]
    return words


@pytest.mark.parametrize(("command", "argument"), list(commands_with_paths()))
def test_every_path_of_every_command_may_start_at_home(
    command: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    function = load(COMMANDS[command].function)
    given = '{"name": "~/x"}' if argument == "local_copies" else "~/x"
    words = words_with(function, argument, given)
    parsed = parse_function(function, words, program="esvit")[argument]
    assert str(parsed) in (
        "/home/ada/x",
        "['/home/ada/x']",
        "[PosixPath('/home/ada/x')]",
        "{'name': '/home/ada/x'}",
        "{'name': PosixPath('/home/ada/x')}",
    )
    # What is called from Python has no parser.
    assert function.__code__ is flat_arguments(function).__code__, "flat_arguments is missing"


def test_every_path_of_every_task_may_start_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    paths = [
        (task, field.name)
        for task in TASKS.values()
        for field in fields(task)
        if holds_a_path(argument_types(task)[field.name])
    ]
    assert paths
    for task, name in paths:
        assert getattr(task(**{name: Path("~/x")}), name) == Path("/home/ada/x")


def test_every_path_of_a_recipe_may_start_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {each.name for each in list_settings(Recipe) if holds_a_path(each.kind)}
    assert paths == {"run.output_dir"}
    changes = dict.fromkeys([*paths, "data.dataset", "model.name"], "~/x")
    Path(tmp_path / "recipe.yaml").write_text("data: {dataset: photos}")
    recipe = load_recipe("~/recipe.yaml", changes)
    found = {recipe.run.output_dir, Path(recipe.data.dataset), Path(recipe.model.name)}
    assert found == {tmp_path / "x"}
