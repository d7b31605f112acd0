"""Recipes from YAML files, command lines and mappings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esvit_hf.common.files import expand_home
from esvit_hf.common.settings import (
    SettingsError,
    describe_unknown,
    list_settings,
    make_settings,
    optional_kind,
)
from esvit_hf.common.yaml_text import read_yaml
from esvit_hf.pretraining.objectives.registry import default_objectives
from esvit_hf.pretraining.recipe import AUTOMATIC, Recipe
from esvit_hf.pretraining.shipped_recipes import AUTO, RECIPES, find_recipe, list_recipes

# Epochs without a number yet: more than any objective waits for.
_UNKNOWN_EPOCHS = 10_000


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """Read the command line of `esvit pretrain`.

    Args:
        words: `[RECIPE or folder of images] [--section.field VALUE ...]`; the recipe `auto` if none
            is named. A field that is true or false takes `--section.field` and
            `--no_section.field` as well.

    Returns:
        Mapping of sections to fields, some of which may be `auto`.

    Raises:
        ValueError: as `load_recipe`.
    """
    has_first = bool(words) and not words[0].startswith("-")
    flags, problems = _read_flags(words[has_first:])
    if not has_first:
        values = read_values(AUTO, flags)
    elif is_folder_of_images(words[0]):
        values = read_values(AUTO, {"data.dataset": words[0], **flags})
    else:
        values = read_values(words[0], flags)
    if problems:
        raise SettingsError([*problems, *_other_problems(values)])
    return values


def read_recipe(words: Sequence[str]) -> Recipe:
    """Read a command line as `read_words`, for a recipe without automatic fields.

    Args:
        words: the command line.

    Returns:
        The checked recipe.

    Raises:
        ValueError: as `load_recipe`.
    """
    return load_recipe(read_words(words))


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
        ValueError: there is no such recipe, it is no YAML, a field does not exist, is `auto`, or
            has a value of the wrong type or out of range.
    """
    values = read_values(source, overrides)
    if automatic := automatic_fields(values):
        raise ValueError(
            f"{', '.join(automatic)}: `auto` has no value before the images are opened; give the "
            f"recipe to `pretrain` itself, or values for these fields"
        )
    return make_settings(Recipe, values)


def read_values(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read a recipe as it is written, and change fields of it.

    Args:
        source: as for `load_recipe`.
        overrides: as for `load_recipe`.

    Returns:
        Mapping of sections to fields, with all objectives; nothing of it is checked.

    Raises:
        ValueError: there is no such recipe, or it is no YAML.
    """
    values = dict(source) if isinstance(source, Mapping) else _read_file(find_recipe(source))
    # So that an override can change one of the objectives that a recipe has by default.
    values.setdefault(
        "objectives", {name: asdict(chosen) for name, chosen in default_objectives().items()}
    )
    for name, value in (overrides or {}).items():
        replace_field(values, name, value)
    return values


def is_folder_of_images(word: str | Path) -> bool:
    """Tell whether what stands for a recipe is a folder, whose images the recipe `auto` takes."""
    return str(word) not in list_recipes() and expand_home(Path(word)).is_dir()


def automatic_fields(values: Mapping[str, Any]) -> list[str]:
    """List the fields of a mapping of sections that say `auto`."""
    return [name for name in AUTOMATIC if read_field(values, name) == AUTO]


def with_usual_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give fields that say `auto` usual values, so that the others can be checked.

    Args:
        values: mapping of sections to fields.

    Returns:
        The same without `auto`.
    """
    usual = {"optimizer.warmup_epochs": 0, "schedule.num_epochs": _UNKNOWN_EPOCHS}
    draft = dict(values)
    for name in automatic_fields(values):
        section, _, field = name.partition(".")
        draft[section] = {key: each for key, each in draft[section].items() if key != field}
        if name in usual:
            draft[section][field] = usual[name]
    return draft


def read_field(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field of a section; None if it has none."""
    section, _, field = name.partition(".")
    fields = values.get(section)
    return fields.get(field) if isinstance(fields, Mapping) else None


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


def replace_field(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its name with dots; mappings on the way are copied, not changed.

    Args:
        values: mapping to change.
        name: name with dots.
        value: the new value.
    """
    first, dot, rest = name.partition(".")
    if not dot:
        values[first] = value
        return
    inner = values.get(first)
    values[first] = dict(inner) if isinstance(inner, Mapping) else {}
    replace_field(values[first], rest, value)


def _other_problems(values: Mapping[str, Any]) -> list[str]:
    """List what is wrong with values beside flags; a wrong flag may be what is missing."""
    try:
        make_settings(Recipe, with_usual_values(values))
    except SettingsError as error:
        return [problem for problem in error.problems if not problem.endswith(" is missing")]
    return []


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
            problems.append(
                f"{word!r} is no flag: write [RECIPE or FOLDER] [--section.field VALUE ...]"
            )
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
