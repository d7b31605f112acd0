"""The documentation: links lead somewhere, lines and cells fit, commands and fields exist."""

import ast
import configparser
import contextlib
import dataclasses
import io
import itertools
import os
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.support.paths import ROOT

from esvit_hf.commands.main import COMMANDS, _find_command, _load
from esvit_hf.common.command_line import parse_function
from esvit_hf.common.settings import list_settings
from esvit_hf.evaluation.evaluate import evaluate  # noqa: F401 - registers the tasks
from esvit_hf.evaluation.task import TASKS
from esvit_hf.pretraining.automatic import draft_recipe
from esvit_hf.pretraining.objectives.registry import OBJECTIVES
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.recipe_reading import read_words
from esvit_hf.pretraining.shipped_recipes import list_recipes

WIDTH = 100
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "src/**/*.md")
    for path in ROOT.glob(pattern)
)
# `esvit evaluate --report` writes the reports.
WRITTEN = [
    path
    for path in DOCUMENTS
    if path.parent == ROOT
    or (path.is_relative_to(ROOT / "docs") and not path.is_relative_to(ROOT / "docs" / "reports"))
]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
# Fields that pages explain how to add.
OF_EXAMPLES = {"masked.share", "masked.start_epoch", "masked.weight", "retrieval.k"}


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def prose_and_code(text: str) -> Iterator[tuple[str, str]]:
    """Lines with the language of their block of code, which is empty in prose."""
    language = ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            language = "" if language else line.strip().removeprefix("```") or "text"
        else:
            yield line, language


def prose(path: Path) -> list[str]:
    return [line for line, language in prose_and_code(path.read_text()) if not language]


def anchors(path: Path) -> set[str]:
    titles = [line.lstrip("#").strip() for line in prose(path) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", names(DOCUMENTS))
def test_every_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    for markdown, html in LINK.findall("\n".join(prose(path))):
        target, _, anchor = (markdown or html).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = Path(os.path.normpath(path.parent / target)) if target else path
        assert place.exists(), f"{name} links to {target}"
        assert place.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(place), f"{name} links to {target}#{anchor}"


@pytest.mark.parametrize("name", names(WRITTEN))
def test_lines_and_cells_fit(name: str) -> None:
    for line, language in prose_and_code((ROOT / name).read_text()):
        if line.lstrip().startswith("|") and not language:
            cells = re.sub(r"\]\([^)]*\)|\][\[][^\]]*\]", "]", line).split("|")
            assert max(len(cell.strip()) for cell in cells) <= WIDTH, line
        elif not re.match(r"\[[^\]]+\]: https://", line):
            assert len(line) <= WIDTH, line


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


# Programs whose commands pages show.
SHOWN = re.compile(r"(?:[A-Z_]+=\S+ )*(?:make|pip|accelerate|torchrun|(?:\S*/)?(?:esvit|python)) ")


def shell_lines(path: Path) -> Iterator[tuple[list[str], bool]]:
    """Words of the commands on a page, and whether they stand in a block of shell commands."""
    lines = list(prose_and_code(path.read_text()))
    blocks = "\n".join(line for line, language in lines if language == "bash")
    prose = "\n".join(line for line, language in lines if not language)
    for line in blocks.replace("\\\n", " ").splitlines():
        if SHOWN.match(line.strip()):
            yield shlex.split(line, comments=True), True
    for code in re.findall(r"`([^`]+)`", prose):
        if SHOWN.match(code):
            yield shlex.split(code), False


def commands(path: Path) -> Iterator[list[str]]:
    """Whole commands of `esvit` on a page, as words behind `esvit`; prose also names some."""
    for words, in_block in shell_lines(path):
        words = list(itertools.takewhile(lambda word: word not in (">", "[--section.field"), words))
        if words[0] == "esvit":
            found = words[1:]
        elif "esvit_hf.commands.main" in words:
            found = words[words.index("esvit_hf.commands.main") + 1 :]
        elif "examples/pretrain.py" in words:
            found = ["pretrain", *words[words.index("examples/pretrain.py") + 1 :]]
        else:
            continue
        named = " ".join(found) in COMMANDS or found[1:2] == [] or found[1].startswith("-")
        if in_block or not named:
            yield found


COMMAND_LINES = [
    pytest.param(words, id=f"{name}: {shlex.join(words)}")
    for name in names(DOCUMENTS)
    for words in commands(ROOT / name)
]


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_commands_are_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words in (["--help"], ["--version"], ["COMMAND", "--help"]):
        return
    name = _find_command(words)
    command, rest = COMMANDS[name], words[len(name.split()) :]
    if name == "pretrain":
        rest = [word for word in rest if word not in ("--print_recipe", "--help")]
        if rest and (rest[0].endswith(".yaml") or rest[0] == "RECIPE"):
            rest[0] = "demo"
        assert not rest or rest[0] in (*list_recipes(), "PHOTOS")
        monkeypatch.chdir(tmp_path)
        Path("PHOTOS").mkdir()
        draft_recipe(read_words(rest or ["demo"]))
        return
    groups = _load(command.groups) if command.groups else {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        parse_function(_load(command.function), rest, program=f"esvit {name}", groups=groups)


def scripts_of_functions() -> Iterator[tuple[str, list[str]]]:
    """Scripts that take the arguments of a function, with the words behind them on a page."""
    for name in names(DOCUMENTS):
        for words, _ in shell_lines(ROOT / name):
            for place, script in enumerate(words):
                path = ROOT / script
                if script.endswith(".py") and path.is_file() and "import run\n" in path.read_text():
                    yield script, words[place + 1 :]


def test_commands_of_scripts_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    understood = set()
    for script, words in scripts_of_functions():

        def parse(function: Callable[..., Any], words: list[str] = words) -> None:
            parse_function(function, words, program="script")

        monkeypatch.setattr("esvit_hf.commands.command_line.run", parse)
        runpy.run_path(str(ROOT / script), run_name="__main__")
        understood.add(script)
    assert len(understood) > 2


def test_pages_have_commands() -> None:
    assert len(COMMAND_LINES) > 60


def unknown_parts(words: list[str], written: list[str]) -> set[str]:
    """Parts of a command that do not exist: targets, extras, commands, modules and scripts.

    Args:
        words: of the command.
        written: names of scripts that the reader has written by then.
    """
    program, *rest = [word for word in words if not re.match("[A-Z_]+=", word)]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return set(rest) - set(targets)
    if program == "pip":
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        extras = {extra for word in rest for extra in re.findall(r"\[(\w+)\]", word)}
        return extras - set(config["options.extras_require"])
    if program == "esvit":
        names = (*COMMANDS, "--help", "--version", "COMMAND")
        return {rest[0]} - {name.split()[0] for name in names}
    modules = [after for word, after in itertools.pairwise(rest) if word == "-m"]
    scripts = [word for word in rest if word.endswith(".py") and word not in written]
    return {
        *(module for module in modules if module != "twine" and not find_spec(module)),
        *(script for script in scripts if not (ROOT / script).is_file()),
    }


def test_what_commands_name_exists() -> None:
    unknown = set()
    # The changelog also names what there was before.
    for name in set(names(DOCUMENTS)) - {"CHANGELOG.md"}:
        path = ROOT / name
        written = re.findall(r"Save\s(?:it|this\sone)\sas\s+`([^`]+)`", path.read_text())
        for words, _ in shell_lines(path):
            unknown |= {(name, part) for part in unknown_parts(words, written)}
    assert unknown == set()


def test_files_that_pages_name_exist() -> None:
    folders = "benchmarks|docs|examples|model_cards|src|studies|tests"
    paths = re.compile(rf"`((?:{folders})/[\w./-]+)`")
    unknown = {
        (name, found)
        for name in names(WRITTEN)
        for found in paths.findall((ROOT / name).read_text())
        if not (ROOT / found).exists() and found != "tests/unit/ROOM/test_MODULE.py"
    }
    assert unknown == set()


def test_the_reference_has_every_task_and_objective() -> None:
    for page, classes in (("tasks.md", TASKS), ("objectives.md", OBJECTIVES)):
        text = (ROOT / "docs" / "reference" / page).read_text()
        for one in classes.values():
            assert f"::: {one.__module__}.{one.__name__}\n" in text


def known_fields() -> set[str]:
    recipe = {each.name for each in list_settings(Recipe)}
    objectives = {
        f"objectives.{name}.{each.name}"
        for name, objective in OBJECTIVES.items()
        for each in list_settings(objective.settings_class)
    }
    tasks = {
        f"{name}.{option.name}"
        for name, task in TASKS.items()
        for option in dataclasses.fields(task)
    }
    examples = OF_EXAMPLES | {f"objectives.{name}" for name in OF_EXAMPLES}
    return recipe | objectives | tasks | examples


@pytest.mark.parametrize("name", names(DOCUMENTS))
def test_every_field_exists(name: str) -> None:
    flags = re.findall(r"--(?:no_)?([a-z_]+\.[a-z_.]*[a-z_])", (ROOT / name).read_text())
    # In a page about recipes, a field stands without the dashes of its flag.
    sections = "|".join(field.name for field in dataclasses.fields(Recipe))
    flags += re.findall(
        rf"`((?:{sections})\.(?!safetensors)[a-z_.]*[a-z_])`", (ROOT / name).read_text()
    )
    unknown = {
        flag
        for flag in set(flags) - known_fields() - {"section.field"}
        if not flag.startswith(("model.config.", "objectives.NAME."))
    }
    assert unknown == set()


# Flags of accelerate, pip, torchrun and transformers, a field of a message, and a style of names.
OF_OTHER_PROGRAMS = {
    *("config_file", "cpu", "extra-index-url", "fields", "nproc_per_node", "num_processes"),
    *("hub_model_id", "push_to_hub", "snake_case"),
}


def arguments_of_programs() -> set[str]:
    """Names of arguments in what is run from the clone."""
    folders = ("benchmarks", "docs", "examples", "studies", "tests/support")
    trees = (
        ast.parse(path.read_text()) for folder in folders for path in (ROOT / folder).rglob("*.py")
    )
    nodes = [node for tree in trees for node in ast.walk(tree)]
    words = {node.value for node in nodes if isinstance(node, ast.Constant)}
    flags = {word[2:] for word in words if isinstance(word, str) and word.startswith("--")}
    return flags | {node.arg for node in nodes if isinstance(node, ast.arg)}


def known_flags() -> set[str]:
    """Flags of all commands that are no fields of a recipe or of a task."""
    found = {"help", "version", "print_recipe"}
    for name, command in COMMANDS.items():
        if command.reads_words:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            parse_function(_load(command.function), ["--help"], program=f"esvit {name}")
        found |= set(re.findall(r"--([a-z_]+)", printed.getvalue()))
    return found


def test_every_flag_exists() -> None:
    known = known_flags() | arguments_of_programs() | OF_OTHER_PROGRAMS
    unknown = {
        (name, flag)
        for name in names(WRITTEN)
        for flag in re.findall(
            r"(?<![\w-])--(?:no_)?([a-z][a-z_-]*)(?![\w.])", (ROOT / name).read_text()
        )
        if flag not in known
    }
    assert unknown == set()


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/networks.md"])
def test_the_first_lines_of_python_run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    block = re.search(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    assert block
    exec(compile(block[1], name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    for shape in re.findall(r"# (\(\d[\d, ]*\))", block[1]):
        assert f"torch.Size([{shape[1:-1]}])" in printed
