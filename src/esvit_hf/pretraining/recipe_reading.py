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


def read_recipe(words: Sequence[str]) -> Recipe:
    """Read a recipe and the fields that override it.

    Args:
        words: `[RECIPE.yaml] [--section.field value ...]`; a field that is true or false takes
            `--section.field` and `--no_section.field` as well.

    Returns:
        The checked recipe.

    Raises:
        ValueError: the recipe is missing or no YAML, a field does not exist, or a value has the
            wrong type or is out of range.
    """
    if words and not words[0].startswith("-"):
        return load_recipe(words[0], read_flags(words[1:]))
    return load_recipe({}, read_flags(words))


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Load a recipe and change fields of it.

    Args:
        source: path of a YAML file, or a mapping of sections to their fields.
        overrides: values by name with dots, such as `{"schedule.max_steps": 20}`; each replaces
            what the recipe says.

    Returns:
        The checked recipe.

    Raises:
        ValueError: as `read_recipe`.
    """
    values = dict(source) if isinstance(source, Mapping) else _read_file(Path(source))
    values.setdefault("objectives", {name: asdict(s) for name, s in default_objectives().items()})
    for name, value in (overrides or {}).items():
        _replace(values, name, value)
    return make_settings(Recipe, values)


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"recipe {str(path)!r} is not a file: give the path of a YAML recipe")
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"recipe {str(path)!r} is no YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {str(path)!r} must be a mapping of sections; it is {values!r}")
    return values


def _replace(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its name with dots; mappings on the way are copied, not changed."""
    first, dot, rest = name.partition(".")
    if not dot:
        values[first] = value
        return
    inner = values.get(first)
    values[first] = dict(inner) if isinstance(inner, Mapping) else {}
    _replace(values[first], rest, value)


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Read `--section.field value`, `--section.field=value` and, for what is true or false,
    `--section.field` and `--no_section.field`.

    Returns:
        Values by name with dots, in the order of the flags.

    Raises:
        ValueError: a flag does not exist or has no value.
    """
    kinds = {each.name: optional_kind(each.kind) for each in list_settings(Recipe)}
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"{word!r} is no flag: write [RECIPE] [--section.field value ...]")
        name, equals, value = word[2:].partition("=")
        if not equals and name.startswith("no_") and kinds.get(name[3:], (None,))[0] is bool:
            values[name[3:]] = False
            continue
        kind, optional = _kind_of_flag(name, kinds)
        if not equals:
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif kind is bool:
                value = "true"
            else:
                raise ValueError(f"--{name} needs a value")
        values[name] = _parse(name, value, kind, optional)
    return values


def _kind_of_flag(name: str, kinds: Mapping[str, tuple[Any, bool]]) -> tuple[Any, bool]:
    """Return the type of a flag's values; Any for sections, and for what is inside a mapping."""
    if name in kinds:
        return kinds[name]
    parts = name.split(".")
    for length in range(1, len(parts)):
        if kinds.get(".".join(parts[:length]), (None,))[0] == dict[str, Any]:
            return Any, True
    if any(known.startswith(f"{name}.") for known in kinds):
        return Any, True
    siblings = [known for known in kinds if known.rpartition(".")[0] == name.rpartition(".")[0]]
    unknown = describe_unknown(name, [known.rpartition(".")[2] for known in siblings], list(kinds))
    raise SettingsError([f"--{unknown}"])


def _parse(name: str, text: str, kind: Any, optional: bool) -> Any:
    if kind in (str, Path):
        return None if optional and text == "null" else text
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"--{name} {text!r} is no YAML ({error})") from error


def help_text() -> str:
    """Return the help of `esvit pretrain`."""
    lines = ["usage: esvit pretrain [RECIPE.yaml] [--section.field value ...]", ""]
    for each in list_settings(Recipe):
        lines.append(f"  --{each.name}: {each.help} {each.range}".rstrip())
    return "\n".join(lines)
