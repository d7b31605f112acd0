"""Recipes from YAML files, command lines and mappings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esvit_hf.common.settings import (
    SettingsError,
    describe_unknown,
    list_settings,
    make_settings,
    optional_kind,
)
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.pretraining.objectives.registry import default_objectives
from esvit_hf.pretraining.recipe import Recipe
from esvit_hf.pretraining.shipped_recipes import RECIPES, find_recipe


def read_recipe(words: Sequence[str]) -> Recipe:
    """Read the command line of `esvit pretrain`.

    Args:
        words: `[RECIPE] [--section.field VALUE ...]`; a field that is true or false takes
            `--section.field` and `--no_section.field` as well.

    Returns:
        The checked recipe.

    Raises:
        ValueError: as `load_recipe`.
    """
    has_recipe = bool(words) and not words[0].startswith("-")
    values, problems = _read_flags(words[has_recipe:])
    try:
        recipe = load_recipe(words[0] if has_recipe else {}, values)
    except SettingsError as error:
        # A flag that is wrong may be what is missing.
        others = [each for each in error.problems if not (problems and _is_missing(each))]
        raise SettingsError([*problems, *others]) from error
    if problems:
        raise SettingsError(problems)
    return recipe


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Load a recipe and change fields of it.

    Args:
        source: name of a shipped recipe, path of a YAML file, or mapping of sections to fields.
        overrides: values by name with dots, such as `{"schedule.max_steps": 20}`; each replaces
            what the recipe says.

    Returns:
        The checked recipe.

    Raises:
        ValueError: there is no such recipe, it is no YAML, a field does not exist, or a value has
            the wrong type or is out of range.
    """
    values = dict(source) if isinstance(source, Mapping) else _read_file(find_recipe(source))
    # So that an override can change one of the objectives that a recipe has by default.
    values.setdefault(
        "objectives", {name: asdict(chosen) for name, chosen in default_objectives().items()}
    )
    for name, value in (overrides or {}).items():
        _replace(values, name, value)
    return make_settings(Recipe, values)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"recipe {str(path)!r} is no YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {str(path)!r} must be a mapping of sections; it is {values!r}")
    for section, field in (("data", "dataset"), ("run", "knn_dataset")):
        fields = values.get(section)
        if isinstance(fields, dict) and str(fields.get(field)).startswith("./"):
            fields[field] = _find_beside(path, fields[field])
    return values


def _find_beside(path: Path, place: str) -> str:
    beside, shipped = (folder / place for folder in (path.resolve().parent, RECIPES))
    return str(shipped if shipped.exists() and not beside.exists() else beside)


def _replace(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its name with dots; mappings on the way are copied, not changed."""
    first, dot, rest = name.partition(".")
    if not dot:
        values[first] = value
        return
    inner = values.get(first)
    values[first] = dict(inner) if isinstance(inner, Mapping) else {}
    _replace(values[first], rest, value)


def _is_missing(problem: str) -> bool:
    return problem.endswith(" is missing")


def _read_flags(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of flags by their names with dots, in their order, and what is wrong with
    others.
    """
    kinds = {each.name: optional_kind(each.kind) for each in list_settings(Recipe)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            problems.append(f"{word!r} is no flag: write [RECIPE] [--section.field VALUE ...]")
            continue
        name, equals, text = word[2:].partition("=")
        if not equals and name.startswith("no_") and kinds.get(name[3:], (None,))[0] is bool:
            values[name[3:]] = False
            continue
        given = bool(equals)
        if not given and rest and not rest[0].startswith("--"):
            text, given = rest.pop(0), True
        kind, optional = kinds.get(name, (Any, True))
        if name not in kinds and not _holds_fields(name, kinds):
            problems.append(f"--{_unknown_flag(name, kinds)}")
        elif given:
            try:
                values[name] = _parse(name, text, kind, optional)
            except ValueError as error:
                problems.append(str(error))
        elif kind is bool:
            values[name] = True
        else:
            problems.append(f"--{name} needs a value")
    return values, problems


def _holds_fields(name: str, kinds: Mapping[str, tuple[Any, bool]]) -> bool:
    """Tell whether a name is that of a section, or of something inside a free mapping."""
    parts = name.split(".")
    outer = [".".join(parts[:length]) for length in range(1, len(parts))]
    return any(kinds.get(place, (None,))[0] == dict[str, Any] for place in outer) or any(
        known.startswith(f"{name}.") for known in kinds
    )


def _unknown_flag(name: str, kinds: Mapping[str, tuple[Any, bool]]) -> str:
    place = f"{name.rpartition('.')[0]}."
    siblings = [known.removeprefix(place) for known in kinds if known.startswith(place)]
    sections = list(dict.fromkeys(known.partition(".")[0] for known in kinds))
    return describe_unknown(name, siblings or sections, list(kinds))


def _parse(name: str, text: str, kind: Any, optional: bool) -> Any:
    if kind in (str, Path):
        return None if optional and text == "null" else text
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"--{name} {text!r} is no YAML ({error})") from error
