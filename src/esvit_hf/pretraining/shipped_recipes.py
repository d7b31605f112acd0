"""The recipes that come with the package."""

import difflib
from pathlib import Path

from esvit_hf.common.files import expand_home

RECIPES = Path(__file__).parents[1] / "recipes"
AUTO = "auto"
"""What a field says whose value is to be chosen, and the recipe in which all such fields do."""


def list_recipes() -> dict[str, str]:
    """Return what each shipped recipe trains, by its name: the first line of its file."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for path in sorted(RECIPES.glob("*.yaml"))
    }


def find_recipe(name_or_path: str | Path) -> Path:
    """Find the file of a recipe.

    Args:
        name_or_path: name of a shipped recipe, or path of a YAML file.

    Raises:
        ValueError: it is neither.
    """
    shipped = list_recipes()
    if str(name_or_path) in shipped:
        return RECIPES / f"{name_or_path}.yaml"
    path = expand_home(Path(name_or_path))
    if path.is_file():
        return path
    near = difflib.get_close_matches(path.stem, shipped, 1)
    hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped)}"
    raise ValueError(
        f"recipe {str(name_or_path)!r} is neither a file, nor a folder of images, nor the name "
        f"of a shipped recipe: {hint}"
    )
