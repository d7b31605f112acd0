"""The recipe of a run as it may be published: it starts the run anew and names no folder of a
machine.
"""

from pathlib import Path

from esvit_hf.common.files import public_name
from esvit_hf.common.yaml_text import read_yaml, write_yaml

__all__ = ["RECIPE_FILE", "public_place", "public_recipe"]

RECIPE_FILE = "recipe.yaml"

_PLACES = (("data", "dataset"), ("model", "name"), ("run", "output_dir"), ("run", "knn_dataset"))
_SHIPPED = Path(__file__).parents[1] / "recipes"


def public_recipe(text: str) -> str:
    """Take the folders of a machine out of a recipe.

    Args:
        text: YAML of a recipe.

    Returns:
        The recipe with the public names of data, model and output folder. Data that comes with the
        package keeps the `./` by which a recipe finds it anywhere.

    Raises:
        ValueError: it is no recipe.
    """
    values = read_yaml(text)
    sections = values.values() if isinstance(values, dict) else [values]
    if not all(isinstance(section, dict) for section in sections):
        raise ValueError(f"{RECIPE_FILE} is no recipe: remove it, or write it again")
    for section, field in _PLACES:
        if (place := values.get(section, {}).get(field)) is not None:
            values[section][field] = public_place(place)
    if "run" in values:
        values["run"]["resume"] = False
    return write_yaml(values)


def public_place(name_or_path: str | Path) -> str:
    """Return what a published recipe says of data, a model or an output folder.

    Args:
        name_or_path: Hub name, path, pattern or address.

    Returns:
        The last part of what is on this machine; anything else as in `public_name`.
    """
    path = Path(name_or_path)
    if path.parent == _SHIPPED:
        return f"./{path.name}"
    return path.resolve().name if path.exists() else public_name(name_or_path)
