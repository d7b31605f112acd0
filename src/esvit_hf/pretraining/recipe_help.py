"""The help of `esvit pretrain`: every field of a recipe with its default and its range."""

import argparse
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from esvit_hf.common.settings import Setting, list_settings, optional_kind
from esvit_hf.data.views import ViewSpec
from esvit_hf.pretraining.objectives.settings import RegionSettings
from esvit_hf.pretraining.recipe import AUTOMATIC, Recipe
from esvit_hf.pretraining.shipped_recipes import list_recipes

WIDTH = 100
_VALUES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "true|false"}


def recipe_help() -> str:
    """Return the help, as wide as the terminal but no wider than a page."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    parser = argparse.ArgumentParser(
        prog="esvit pretrain",
        usage="esvit pretrain [RECIPE or FOLDER] [--section.field VALUE ...]",
        description="Pretrain a vision backbone by self-distillation, with EsViT's objectives.",
        epilog="Lists are written [1, 2] and mappings '{name: value}'. A field that is true or "
        "false takes --section.field and --no_section.field too. auto is a value that fits the "
        "machine and the images; the run prints it with its reason.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 6, width),
        add_help=False,
    )
    general = parser.add_argument_group("recipe")
    general.add_argument(
        "RECIPE",
        help=f"name of a shipped recipe ({', '.join(list_recipes())}: `esvit recipes` describes "
        f"them), or path of a YAML file; flags replace what it says. A folder of images stands for "
        "the recipe auto with these images; so does no recipe with --data.dataset",
    )
    general.add_argument(
        "--print_recipe",
        action="store_true",
        help="print the recipe with all its fields as YAML, and train nothing",
    )
    hints = get_type_hints(Recipe)
    for section in fields(Recipe):
        kind, name = hints[section.name], section.name
        if is_dataclass(kind):
            group = parser.add_argument_group(name, _purpose(kind))
        else:
            group = parser.add_argument_group(name, section.metadata["help"])
            kind, name = RegionSettings, f"{name}.NAME"
        for each in list_settings(kind, name):
            group.add_argument(f"--{each.name}", metavar=_flag_metavar(each), help=_help(each))
    group = parser.add_argument_group("an entry of data.views", _purpose(ViewSpec))
    for each in list_settings(ViewSpec):
        group.add_argument(
            each.name, metavar=f"{each.name}: {_metavar(each.kind)}", help=_help(each)
        )
    return parser.format_help().rstrip()


def _purpose(kind: Any) -> str:
    return str(kind.__doc__).splitlines()[0]


def _flag_metavar(each: Setting) -> str:
    return f"{_metavar(each.kind)}{'|auto' * (each.name in AUTOMATIC)}"


def _metavar(kind: Any) -> str:
    kind, _ = optional_kind(kind)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    container = {list: "[...]", tuple: "[...]", dict: "{...}"}.get(get_origin(kind))
    return container or _VALUES[kind]


def _help(each: Setting) -> str:
    notes = ["required"] if each.required else []
    default = each.default
    # Off and nothing need no words; the default views are too long for them.
    if default is not None and default is not False and each.name != "data.views" and default != {}:
        notes.append(f"default: {_in_words(default)}")
    notes += [each.limits] if each.limits else []
    text = f"{each.help} ({'; '.join(notes)})" if notes else each.help
    return text.replace("%", "%%")


def _in_words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_in_words, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
